"""Files that `pauc-cli embed` writes."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import numpy as np
import numpy.typing as npt

from ._errors import DataError, missing_package
from ._safetensors import TensorFile

if TYPE_CHECKING:
    import pandas

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Embeddings:
    """The vectors of N images.

    Attributes:
        features: The encoder's output, shape (N, F), if the file has it.
        embeddings: The projector's output, scaled to unit length, shape (N, D), if the file has it.
        ids: The positions of the images in their split, shape (N).
        labels: The classes, shape (N), if the data has labels.
        names: The paths of the images within the dataset, N of them, if the file has them.
        metadata: Where the vectors come from: recipe, seed, step, data, split and `provenance`, one hash of
            all of these.
    """

    features: Optional[Floats]
    embeddings: Optional[Floats]
    ids: Integers
    labels: Optional[Integers] = None
    names: Optional[List[str]] = None
    metadata: Dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def vectors(self) -> Floats:
        """The features or, in a file without features, the embeddings."""
        if self.features is not None:
            return self.features
        if self.embeddings is not None:
            return self.embeddings
        raise DataError("the file has neither features nor embeddings")

    def to_dataframe(self) -> "pandas.DataFrame":
        """Returns a table with a row per image; its columns `features` and `embeddings` hold arrays.

        Raises:
            MissingPackage: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as e:
            raise missing_package("pandas", "to_dataframe") from e
        columns: Dict[str, Any] = {"id": self.ids, "label": self.labels, "name": self.names}
        for name, rows in (("features", self.features), ("embeddings", self.embeddings)):
            columns[name] = None if rows is None else list(rows)
        return pandas.DataFrame({name: column for name, column in columns.items() if column is not None})


def embeddings(file: "os.PathLike[str] | str") -> Embeddings:
    """Reads a file that `pauc-cli embed` wrote: .safetensors, .npy, .csv or .parquet.

    A .npy or .csv file is read with the files beside it, such as `test.ids.npy` and `test.json` beside
    `test.npy`. Parquet needs the package pyarrow.

    Raises:
        DataError: If the file does not exist, is damaged, or its columns do not have equal lengths.
        MissingPackage: If it is a Parquet file, and pyarrow is not installed.
    """
    path = Path(file)
    read = {".safetensors": _safetensors, ".npy": _npy, ".csv": _csv, ".parquet": _parquet}.get(path.suffix)
    if read is None:
        raise DataError(f"{path}: expected a name that ends in .safetensors, .npy, .csv or .parquet")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return _checked(read(path), path)


def _checked(found: Embeddings, path: Path) -> Embeddings:
    columns = {name: getattr(found, name) for name in ("features", "embeddings", "labels", "names")}
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    wrong = [f"{name} has {n}" for name, n in lengths.items() if n != len(found)]
    if wrong:
        raise DataError(f"{path}: ids has {len(found)} rows, but {' and '.join(wrong)}")
    return found


def _names(file: TensorFile) -> Optional[List[str]]:
    """Returns the names: UTF-8 text without separators, and where each of them begins and ends."""
    if "names" not in file:
        return None
    text, ends = file.read("names").tobytes(), file.read("name_offsets").tolist()
    if ends != sorted(ends) or not ends or ends[0] != 0 or ends[-1] != len(text):
        raise DataError(f"{file.path}: `name_offsets` does not fit `names`")
    return [text[begin:end].decode("utf-8", "replace") for begin, end in zip(ends, ends[1:])]


def _safetensors(path: Path) -> Embeddings:
    with TensorFile(path) as file:

        def optional(name: str) -> Optional[npt.NDArray[Any]]:
            return file.read(name) if name in file else None

        return Embeddings(
            features=optional("features"),
            embeddings=optional("embeddings"),
            ids=file.read("ids"),
            labels=optional("labels"),
            names=_names(file),
            metadata=file.metadata,
        )


def _npy(path: Path) -> Embeddings:
    rows = _array(path, 2)

    def beside(what: str) -> Optional[npt.NDArray[Any]]:
        other = path.with_suffix(f".{what}.npy")
        return _array(other, 1) if other.is_file() else None

    ids, names = beside("ids"), beside("names")
    metadata = _json_beside(path)
    is_projected = metadata.get("vectors") == "embeddings"
    return Embeddings(
        features=None if is_projected else rows,
        embeddings=rows if is_projected else None,
        ids=np.arange(len(rows), dtype=np.int64) if ids is None else ids,
        labels=beside("labels"),
        names=None if names is None else [str(name) for name in names],
        metadata=metadata,
    )


def _json_beside(path: Path) -> Dict[str, str]:
    """Reads the provenance beside a file that has no place for it."""
    beside = path.with_suffix(".json")
    try:
        found = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as e:
        raise DataError(f"{beside}: not JSON: {e}") from e
    if not isinstance(found, dict):
        raise DataError(f"{beside}: expected an object")
    return {key: str(value) for key, value in found.items()}


def _array(path: Path, axes: int) -> npt.NDArray[Any]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise DataError(f"{path}: not an intact .npy file: {e}") from e
    if not isinstance(array, np.ndarray) or array.ndim != axes:
        raise DataError(f"{path}: expected an array with {axes} axes, got {np.shape(array)}")
    return array


def _csv(path: Path) -> Embeddings:
    with open(path, newline="", encoding="utf-8") as file:
        lines = csv.reader(file)
        head = next(lines, [])
        rows = list(lines)
    texts = ("id", "label", "name")
    try:
        columns = {name: [row[head.index(name)] for row in rows] for name in texts if name in head}
        places = [i for i, name in enumerate(head) if name not in texts]
        vectors = np.array([[row[i] for i in places] for row in rows], np.float32).reshape(len(rows), -1)
        ids = np.array(columns.get("id", range(len(rows))), np.int64)
        labels = np.array(columns["label"], np.int64) if "label" in columns else None
    except (ValueError, IndexError) as e:
        raise DataError(f"{path}: not a table of vectors: {e}") from e
    # Columns are f0, f1, … or e0, e1, …
    is_projected = all(head[i].startswith("e") for i in places)
    return Embeddings(
        features=None if is_projected else vectors,
        embeddings=vectors if is_projected else None,
        ids=ids,
        labels=labels,
        names=columns.get("name"),
        metadata=_json_beside(path),
    )


def _parquet(path: Path) -> Embeddings:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as e:
        raise missing_package("pyarrow", f"{path}: reading Parquet") from e
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as e:
        raise DataError(f"{path}: not an intact Parquet file: {e}") from e
    have = table.column_names

    def matrix(name: str) -> Optional[Floats]:
        if name not in have:
            return None
        column = table.column(name).combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False)
        return np.ascontiguousarray(values, dtype=np.float32).reshape(len(column), -1)

    def integers(name: str) -> Optional[Integers]:
        return table.column(name).to_numpy().astype(np.int64) if name in have else None

    ids = integers("ids")
    text = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return Embeddings(
        features=matrix("features"),
        embeddings=matrix("embeddings"),
        ids=np.arange(len(table), dtype=np.int64) if ids is None else ids,
        labels=integers("labels"),
        names=table.column("names").to_pylist() if "names" in have else None,
        metadata={key: value for key, value in text.items() if key != "ARROW:schema"},
    )
