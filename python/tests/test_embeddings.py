from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

import pauc
from pauc._safetensors import TensorFile


def test_both_formats_have_the_same_rows(trained: pauc.Run, cli: Callable[..., str], tmp_path: Path) -> None:
    cli("embed", trained.path, "--out", tmp_path / "a.safetensors")
    cli("embed", trained.path, "--out", tmp_path / "b.npy")
    cli("embed", trained.path, "--out", tmp_path / "c.npy", "--vectors", "embeddings")
    both = pauc.embeddings(tmp_path / "a.safetensors")
    features = pauc.embeddings(tmp_path / "b.npy")
    embeddings = pauc.embeddings(tmp_path / "c.npy")
    assert both.features is not None and both.embeddings is not None
    assert both.features.shape == (48, 24) and both.embeddings.shape == (48, 8) and both.features.dtype == np.float32
    assert np.allclose(np.linalg.norm(both.embeddings, axis=1), 1, atol=1e-6)
    assert np.array_equal(both.features, features.vectors) and features.embeddings is None
    assert np.array_equal(both.embeddings, embeddings.vectors) and embeddings.features is None
    for found in (both, features, embeddings):
        assert list(found.ids) == list(range(48)) and len(found) == 48
        assert found.labels is not None and list(found.labels) == [0, 1, 2] * 16
        assert found.metadata["provenance"] == both.metadata["provenance"] and found.metadata["split"] == "test"


def _write_png(path: Path, pixels: Any) -> None:
    """Writes a gray image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks))


def test_images_are_named_in_every_format(recipe: str, cli: Callable[..., str], tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    names = [f"{split}/{label}/é {i}.png" for split in ("train", "val") for label in "ab" for i in range(8)]
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        _write_png(tmp_path / "images" / name, rng.integers(0, 255, (15, 15), dtype=np.uint8))
    data = f'ImageFolder(root: "{tmp_path / "images"}")'
    run = pauc.run(recipe, set={"data": data, "train.epochs": 1}, out=tmp_path / "runs", log=None)
    vectors = []
    for ending in ("safetensors", "npy", "csv"):
        cli("embed", run.path, "--out", tmp_path / f"a.{ending}")
        found = pauc.embeddings(tmp_path / f"a.{ending}")
        assert found.names is not None and len(found.names) == 16
        assert all(expected.endswith(name) for name, expected in zip(found.names, names[16:])), found.names
        assert found.labels is not None and found.labels.tolist() == [0] * 8 + [1] * 8
        assert found.metadata["split"] == "test"
        vectors.append(found.vectors)
    assert all(np.array_equal(vectors[0], other) for other in vectors)


def test_parquet_has_the_same_rows(trained: pauc.Run, cli: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    cli("embed", trained.path, "--out", tmp_path / "a.safetensors")
    try:
        cli("embed", trained.path, "--out", tmp_path / "a.parquet")
    except AssertionError as e:
        assert "--features parquet" in str(e)
        pytest.skip("this pauc-cli was built without the feature `parquet`")
    expected, found = pauc.embeddings(tmp_path / "a.safetensors"), pauc.embeddings(tmp_path / "a.parquet")
    assert expected.labels is not None and found.labels is not None
    assert np.array_equal(found.labels, expected.labels) and np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.vectors, expected.vectors)
    assert found.embeddings is not None and expected.embeddings is not None
    assert np.array_equal(found.embeddings, expected.embeddings)
    assert found.metadata == expected.metadata


def test_a_table_has_a_row_per_image(trained: pauc.Run, cli: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    cli("embed", trained.path, "--out", tmp_path / "a.safetensors")
    found = pauc.embeddings(tmp_path / "a.safetensors")
    table = found.to_dataframe()
    assert list(table.columns) == ["id", "label", "features", "embeddings"] and len(table) == 48
    assert np.array_equal(np.stack(list(table["features"])), found.vectors)


def _write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_names_and_half_precision_are_read(tmp_path: Path) -> None:
    rows = np.array([[1.5, -2.0], [0.25, 3.0]], np.float32)
    parts = {
        "features": ("BF16", [2, 2], (rows.view(np.uint32) >> 16).astype(np.uint16).tobytes()),
        "ids": ("I64", [2], np.arange(2).tobytes()),
        "name_offsets": ("I64", [3], np.array([0, 13, 23]).tobytes()),
        "names": ("U8", [23], "cats/é 1.pngdogs/2.png".encode()),
    }
    header, data = {}, b""
    for name, (dtype, shape, content) in parts.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    found = pauc.embeddings(_write(tmp_path / "a.safetensors", header, data))
    assert found.names == ["cats/é 1.png", "dogs/2.png"]
    assert np.array_equal(found.vectors, rows)
    wrong = data.replace(np.array([0, 13, 23]).tobytes(), np.array([0, 13, 24]).tobytes())
    with pytest.raises(pauc.DataError, match="name_offsets"):
        pauc.embeddings(_write(tmp_path / "b.safetensors", header, wrong))


def test_tables_of_text_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,label,name,f0,f1\n0,2,"a,b.png",0.5,1e-3\n1,0,c.png,-1,2\n', encoding="utf-8")
    path.with_suffix(".json").write_text('{"seed": 3}')
    found = pauc.embeddings(path)
    assert found.metadata == {"seed": "3"} and found.embeddings is None
    assert found.labels is not None and found.names == ["a,b.png", "c.png"]
    assert np.array_equal(found.vectors, np.array([[0.5, 1e-3], [-1, 2]], np.float32))
    assert (found.ids.tolist(), found.labels.tolist()) == ([0, 1], [2, 0])
    path.write_text("id,e0\n0,0.5\n", encoding="utf-8")
    projected = pauc.embeddings(path)
    assert projected.features is None and projected.vectors.tolist() == [[0.5]]
    path.write_text("id,f0\n0,x\n", encoding="utf-8")
    with pytest.raises(pauc.DataError, match="not a table of vectors"):
        pauc.embeddings(path)


def _entry(**changes: Any) -> Any:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (_entry(data_offsets=[0, 12]), b"\0" * 8, "does not fit"),
        (_entry(data_offsets=[4, 12]), b"\0" * 8, "does not fit"),
        (_entry(data_offsets=[-8, 0]), b"\0" * 8, "does not fit"),
        (_entry(shape=[2**40, 2**40]), b"\0" * 8, "does not fit"),
        (_entry(shape=[-2]), b"\0" * 8, "does not fit"),
        (_entry(shape="2"), b"\0" * 8, "tensor `x`"),
        (_entry(dtype="F4"), b"\0" * 8, "type F4"),
        ({"x": {}}, b"", "tensor `x`"),
        ([], b"", "not an object"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    ],
)
def test_damaged_headers_are_refused(header: Any, data: bytes, message: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "a.safetensors", header, data)
    with pytest.raises(pauc.DataError, match=message) as caught:
        TensorFile(path)
    assert str(path) in str(caught.value)


def test_truncated_files_are_refused(trained: pauc.Run, tmp_path: Path) -> None:
    content = (trained.path / "checkpoints" / "last.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in (0, 4, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(pauc.DataError, match="cut.safetensors"):
            TensorFile(path)


def test_other_mistakes_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(pauc.DataError, match="no such file"):
        pauc.embeddings(tmp_path / "a.npy")
    with pytest.raises(pauc.DataError, match="ends in .safetensors"):
        pauc.embeddings(tmp_path / "a.txt")
    (tmp_path / "a.npy").write_bytes(b"no array")
    with pytest.raises(pauc.DataError, match=r"a\.npy: not an intact"):
        pauc.embeddings(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((3, 2), np.float32))
    np.save(tmp_path / "b.ids.npy", np.arange(2))
    with pytest.raises(pauc.DataError, match="ids has 2 rows, but features has 3"):
        pauc.embeddings(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(pauc.DataError, match="not an intact"):
        pauc.embeddings(tmp_path / "c.npy")
    header = {"ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}
    found = pauc.embeddings(_write(tmp_path / "d.safetensors", header, b"\0" * 8))
    with pytest.raises(pauc.DataError, match="neither features nor embeddings"):
        found.vectors
