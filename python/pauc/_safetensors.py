"""Reads safetensors files with NumPy: https://github.com/huggingface/safetensors."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Dict, List, NamedTuple, Optional, Tuple, Type

import numpy as np
import numpy.typing as npt

from ._errors import DataError

# The format's own limit; a longer header is not read.
_MAX_HEADER = 100_000_000

_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
    # NumPy has no such type: the upper half of an F32.
    "BF16": "<u2",
}  # fmt: skip


class _Entry(NamedTuple):
    dtype: str
    shape: Tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """An open safetensors file. Tensors are read one by one.

    Attributes:
        path: The file.
        metadata: The text entries of its header.
    """

    def __init__(self, path: "os.PathLike[str] | str") -> None:
        """Opens a file and reads its header.

        Raises:
            DataError: If it does not exist, or is damaged.
        """
        self.path = Path(path)
        try:
            self._file: BinaryIO = open(self.path, "rb")
        except OSError as e:
            raise DataError(f"{self.path}: {e.strerror or e}") from e
        try:
            header, self._start, size = self._header()
            self.metadata = self._metadata(header.pop("__metadata__", None))
            self._entries = {name: self._entry(name, value, size) for name, value in header.items()}
        except BaseException:
            self._file.close()
            raise

    def _damaged(self, message: str) -> DataError:
        return DataError(f"{self.path}: not an intact safetensors file: {message}")

    def _header(self) -> Tuple[Dict[str, Any], int, int]:
        """Returns the header, the position of the data, and its length."""
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise self._damaged(f"the header should have {length} bytes, but the file has {size}")
        try:
            header = json.loads(self._file.read(length).decode())
        except (ValueError, RecursionError) as e:
            raise self._damaged(f"the header is not JSON: {e}") from e
        if not isinstance(header, dict):
            raise self._damaged("the header is not an object")
        return header, 8 + length, size - 8 - length

    def _metadata(self, value: Any) -> Dict[str, str]:
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise self._damaged("`__metadata__` does not consist of texts")
        return value

    def _entry(self, name: str, value: Any, size: int) -> _Entry:
        try:
            dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
            items = math.prod(shape)
            is_sound = all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and end <= size
        except (KeyError, TypeError, ValueError) as e:
            raise self._damaged(f"tensor `{name}`: {e!r}") from e
        if dtype not in _DTYPES:
            raise self._damaged(f"tensor `{name}` has the type {dtype}; known: {', '.join(_DTYPES)}")
        if not is_sound or end - begin != items * np.dtype(_DTYPES[dtype]).itemsize:
            raise self._damaged(f"tensor `{name}`: {dtype} of shape {list(shape)} does not fit its place in the file")
        return _Entry(dtype, shape, begin, end)

    def names(self) -> List[str]:
        """Returns the names of the tensors, in the file's order."""
        return list(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str) -> npt.NDArray[Any]:
        """Reads a tensor. BF16 becomes float32.

        Raises:
            DataError: If there is no such tensor, or the file cannot be read.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise DataError(f"{self.path}: no tensor `{name}`; the file has {', '.join(self._entries) or 'none'}")
        self._file.seek(self._start + entry.begin)
        content = self._file.read(entry.end - entry.begin)
        if len(content) != entry.end - entry.begin:
            raise self._damaged(f"tensor `{name}` is cut short")
        values = np.frombuffer(bytearray(content), dtype=_DTYPES[entry.dtype])
        if entry.dtype == "BF16":
            values = (values.astype("<u4") << 16).view("<f4")
        return values.reshape(entry.shape)

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._file.close()
