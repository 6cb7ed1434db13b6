from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pytest

import pauc


def _varint(data: bytes, at: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _fields(data: bytes) -> Iterator[Tuple[int, Any]]:
    """Yields numbers and values of the fields of a protocol buffer."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        value: Any
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}.get(key & 7)
            if length is None:
                length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        yield key >> 3, value


def _tensorboard(run: Path) -> List[Tuple[int, str, float]]:
    """Reads (step, tag, value) of the TensorBoard file of a run."""
    (path,) = run.glob("events.out.tfevents.*")
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = dict(_fields(data[at + 12 : at + 12 + length]))
        at += length + 16
        for _, value in _fields(event.get(5, b"")):
            parts = dict(_fields(value))
            found.append((event.get(2, 0), parts[1].decode(), struct.unpack("<f", parts[2])[0]))
    return found


def test_numbers_are_those_of_the_tensorboard_file(trained: pauc.Run) -> None:
    metrics = pauc.metrics(trained)
    found: List[Tuple[int, str, float]] = []
    for name in metrics.names():
        steps, values = metrics.history(name)
        found += [(int(s), name, float(np.float32(v))) for s, v in zip(steps, values)]
    expected = _tensorboard(trained.path)
    assert len(expected) > 50
    assert sorted(found) == sorted(expected)
    assert {"train/loss", "term/InfoNce", "health/spread", "probe/knn/cos/k5/t0.07"} <= set(metrics.names())


def test_metrics_of_a_run_are_the_newest_of_the_trained_encoder(trained: pauc.Run) -> None:
    steps, values = pauc.metrics(trained).history("probe/knn/cos/k5/t0.07")
    assert list(steps) == [3, 6] and trained.metrics["knn/cos/k5/t0.07"] == values[-1]
    with pytest.raises(KeyError, match="never recorded"):
        pauc.metrics(trained).history("train/los")


def test_damaged_and_truncated_lines_are_left_out(tmp_path: Path) -> None:
    good = '{"event":"step","step":1,"epoch":1,"lr":0.1,"loss":null,"terms":[],"grad_norm":2,"images_per_second":3}\n'
    (tmp_path / "metrics.jsonl").write_text(good + "not json\n\n[1]\n" + good.replace("1", "2") + good[:20])
    metrics = pauc.metrics(tmp_path)
    assert metrics.damaged == [2, 4] and len(metrics.events) == 2
    assert metrics.names() == ["train/gradient_norm", "train/images_per_second", "train/lr"]


def test_gradients_have_norms_their_total_and_the_cosines_that_exist(tmp_path: Path) -> None:
    terms = '[{"name":"A","norm":0.5,"cosines":[]},{"name":"B","norm":null,"cosines":[-0.25]},'
    terms += '{"name":"C","norm":0.5,"cosines":[null,1]}]'
    line = f'{{"event":"gradients","step":8,"epoch":0.5,"terms":{terms},"total":0.75}}\n'
    # Earlier versions did not write the total.
    (tmp_path / "metrics.jsonl").write_text(line + line.replace(',"total":0.75', "").replace(":8,", ":9,"))
    metrics = pauc.metrics(tmp_path)
    cosines = ["gradient_cosine/A/B", "gradient_cosine/B/C"]
    assert metrics.names() == ["gradient/A", "gradient/C", "gradient/total", *cosines]
    assert [list(values) for values in metrics.history("gradient/total")] == [[8], [0.75]]
    assert [list(values) for values in metrics.history(cosines[0])] == [[8, 9], [-0.25, -0.25]]


def test_runs_are_found_below_a_folder(trained: pauc.Run, tmp_path: Path) -> None:
    shutil.copytree(trained.path, tmp_path / "sweep" / "a" / "seed3")
    shutil.copytree(trained.path, tmp_path / "sweep" / "b" / "seed3")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    with pytest.warns(UserWarning, match=r"damaged.run\.json.*rebuilds it"):
        found = pauc.runs(tmp_path)
    assert [run.path.parent.name for run in found] == ["a", "b"]
    assert found[0].metrics == trained.metrics and found[0].recipe == trained.recipe
    with pytest.raises(pauc.DataError, match="no such folder"):
        pauc.runs(tmp_path / "none")


def test_a_table_has_recipes_and_metrics(trained: pauc.Run) -> None:
    pytest.importorskip("pandas")
    table = pauc.runs(trained.path.parent).to_dataframe()
    row: Dict[str, Any] = table.iloc[0].to_dict()
    assert (row["status"], row["seed"], row["encoder"], row["train.epochs"]) == ("finished", 3, "ConvNet", 2)
    assert row["objective[0].term.temperature"] == 0.2
    assert row["knn/cos/k5/t0.07"] == trained.metrics["knn/cos/k5/t0.07"]
    steps = pauc.metrics(trained).to_dataframe()
    assert list(steps.index) == [0, 1, 2, 3, 4, 5, 6] and steps["train/loss"].notna().sum() == 6


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    for read in (pauc.metrics, pauc.encoder, lambda run: pauc.follow(run, to=print)):
        try:
            with pytest.raises(pauc.DataError, match="not a run"):
                read(tmp_path)
        except pauc.MissingPackage:
            pass


def test_the_recorded_events_are_json_lines(trained: pauc.Run) -> None:
    lines = (trained.path / "metrics.jsonl").read_text().splitlines()
    assert pauc.metrics(trained).events == [json.loads(line) for line in lines]
