from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

import pauc

Sent = List[Tuple[int, Dict[str, float]]]


def _recorded(run: Any) -> List[Tuple[str, int, float]]:
    """Returns every recorded number of a run: tag, step and value."""
    metrics = pauc.metrics(run)
    found = []
    for name in metrics.names():
        steps, values = metrics.history(name)
        found += [(name, int(s), float(v)) for s, v in zip(steps, values)]
    return sorted(found)


def _flat(sent: Sent) -> List[Tuple[str, int, float]]:
    return sorted((tag, step, value) for step, values in sent for tag, value in values.items())


def _start(recipe: str, folder: Path, *options: str) -> "subprocess.Popen[bytes]":
    """Starts a training in another process, and waits until it has written its first events."""
    path = folder / "recipe.ron"
    path.write_text(recipe, encoding="utf-8")
    command = [str(pauc.binary()), "run", str(path), f"--out={folder / 'runs'}", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(folder.glob("runs/*/*/metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_a_finished_run_is_sent_completely(trained: pauc.Run) -> None:
    sent: Sent = []
    assert pauc.follow(trained, to=lambda step, values: sent.append((step, values))) == "finished"
    assert _flat(sent) == _recorded(trained)
    assert [step for step, _ in sent] == [0, 1, 2, 3, 4, 5, 6]


def test_a_living_run_is_followed_to_its_end(recipe: str, tmp_path: Path) -> None:
    process = _start(recipe, tmp_path, "--set=train.epochs=40")
    (run,) = tmp_path.glob("runs/*/*")
    sent: Sent = []
    was_running = []

    def take(step: int, values: Dict[str, float]) -> None:
        was_running.append(process.poll() is None)
        sent.append((step, values))

    assert pauc.follow(run, to=take, poll=0.01, timeout=120) == "finished"
    assert process.wait() == 0
    assert was_running[0], "numbers came before the run had ended"
    assert _flat(sent) == _recorded(run)


def test_an_interrupted_run_is_continued_where_it_was(recipe: str, tmp_path: Path) -> None:
    process = _start(recipe, tmp_path, "--set=train.epochs=2000", "--set=train.checkpoint_every=Steps(5)")
    (run,) = tmp_path.glob("runs/*/*")
    first: Sent = []

    def stop_later(step: int, values: Dict[str, float]) -> None:
        first.append((step, values))
        if step == 12 and "train/loss" in values:
            process.send_signal(signal.SIGINT)

    state = tmp_path / "state.json"
    assert pauc.follow(run, to=stop_later, poll=0.01, timeout=60, state=state) == "interrupted"
    assert process.wait() == 130
    again: Sent = []
    pauc.follow(run, to=lambda s, v: again.append((s, v)), state=state)
    assert again == [], "nothing is sent twice"
    # The events after the last checkpoint are recorded again.
    command = [str(pauc.binary()), "resume", str(run), f"--max-steps={first[-1][0] + 9}"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    second: Sent = []
    pauc.follow(run, to=lambda s, v: second.append((s, v)), state=state)
    assert min(step for step, _ in second) >= first[-1][0]
    keys = [(tag, step) for tag, step, _ in _flat(first + second)]
    assert len(keys) == len(set(keys)) and keys == [(tag, step) for tag, step, _ in _recorded(run)]


def test_a_rewound_log_is_not_sent_twice(trained: pauc.Run, tmp_path: Path) -> None:
    shutil.copytree(trained.path, tmp_path / "run")
    log = tmp_path / "run" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    info = tmp_path / "run" / "run.json"
    info.write_text(info.read_text().replace('"finished"', '"running"'))
    # This process holds the lock, as a training would.
    import fcntl

    lock = open(tmp_path / "run" / "run.lock", "a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    log.write_text("".join(lines[:-3]) + lines[-3][:10])
    sent: Sent = []
    ready = threading.Event()

    def take(step: int, values: Dict[str, float]) -> None:
        sent.append((step, values))
        ready.set()

    def rewind() -> None:
        ready.wait(30)
        time.sleep(0.1)
        # As `resume` does: a shorter file takes the place of the log, then grows.
        (tmp_path / "new").write_text("".join(lines[:4]))
        os.replace(tmp_path / "new", log)
        time.sleep(0.1)
        with open(log, "a") as file:
            file.write("".join(lines[4:]))
        (tmp_path / "new").write_text(info.read_text().replace('"running"', '"finished"'))
        os.replace(tmp_path / "new", info)

    thread = threading.Thread(target=rewind)
    thread.start()
    assert pauc.follow(tmp_path / "run", to=take, poll=0.01, timeout=30) == "finished"
    thread.join()
    lock.close()
    assert _flat(sent) == _recorded(trained)


def test_a_killed_run_is_abandoned(recipe: str, tmp_path: Path) -> None:
    process = _start(recipe, tmp_path, "--set=train.epochs=2000")
    (run,) = tmp_path.glob("runs/*/*")
    with pytest.raises(TimeoutError, match="has not ended after 0.2 s"):
        pauc.follow(run, to=lambda step, values: None, poll=0.01, timeout=0.2)
    process.kill()
    process.wait()
    with pytest.warns(UserWarning, match="pauc-cli resume"):
        assert pauc.follow(run, to=lambda step, values: None) == "abandoned"


def test_mistakes_are_named(trained: pauc.Run, tmp_path: Path) -> None:
    with pytest.raises(pauc.RecipeError, match="'wandb' or 'mlflow'"):
        pauc.follow(trained, to="tensorboard")
    with pytest.raises(TypeError, match="no options"):
        pauc.follow(trained, to=print, project="x")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(pauc.DataError, match="state.json.*remove the file"):
        pauc.follow(trained, to=print, state=tmp_path / "state.json")


@pytest.fixture
def own(trained: pauc.Run, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    shutil.copytree(trained.path, tmp_path / "run")
    return tmp_path / "run"


def test_mlflow_has_every_number_and_the_recipe(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Newer versions prefer a database to files.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    uri = (tmp_path / "store").as_uri()
    assert pauc.follow(own, to="mlflow", tracking_uri=uri, experiment="mine") == "finished"
    client = MlflowClient(tracking_uri=uri)
    experiment: Any = client.get_experiment_by_name("mine")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.params["encoder"], run.data.params["train.epochs"]) == ("FINISHED", "ConvNet", "2")
    assert run.data.params["objective.0.term.temperature"] == "0.2"

    def stored() -> List[Tuple[str, int, float]]:
        tags = client.get_run(run.info.run_id).data.metrics
        history = [(tag, m) for tag in tags for m in client.get_metric_history(run.info.run_id, tag)]
        return sorted((tag, m.step, m.value) for tag, m in history)

    assert stored() == _recorded(own)
    pauc.follow(own, to="mlflow", tracking_uri=uri, experiment="mine")
    assert len(client.search_runs([experiment.experiment_id])) == 1 and stored() == _recorded(own)


def _wandb_records(file: Path) -> Iterator[Any]:
    """Yields the records of a W&B file: protocol buffers in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        rest = 32768 - at % 32768
        if rest < 7:
            at += rest
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        # 1 is a whole record, 4 is the last part of one.
        if kind in (1, 4):
            message: Any = getattr(wandb_internal_pb2, "Record")()
            message.ParseFromString(parts)
            yield message
            parts = b""


def test_wandb_has_every_number_and_the_recipe(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    options: Dict[str, Any] = {"mode": "offline", "dir": str(tmp_path), "project": "mine"}
    assert pauc.follow(own, to="wandb", **options) == "finished"
    assert pauc.follow(own, to="wandb", **options) == "finished"
    sent, ids, config = [], set(), {}
    for file in sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb")):
        for record in _wandb_records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id)
                config.update({u.key: json.loads(u.value_json) for u in record.run.config.update})
            if kind == "history":
                items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                sent += [(tag, items["_step"], value) for tag, value in items.items() if not tag.startswith("_")]
    assert len(ids) == 1, "the second call continues the first"
    assert (config["encoder"], config["train.epochs"]) == ("ConvNet", 2)
    assert sorted(sent) == _recorded(own)
