"""The `pauc-cli` that belongs to this package."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Iterator

from ._errors import PaucError

_NAME = "pauc-cli.exe" if os.name == "nt" else "pauc-cli"


def binary() -> Path:
    """Returns the path of the program `pauc-cli`.

    It is the one that was installed with this package. The environment variable `PAUC_CLI` names another one.

    Raises:
        PaucError: If there is none.
    """
    chosen = os.environ.get("PAUC_CLI")
    if chosen:
        if not Path(chosen).is_file():
            raise PaucError(f"PAUC_CLI={chosen}: no such file")
        return Path(chosen)
    for candidate in _candidates():
        if candidate.is_file():
            return candidate
    raise PaucError(
        f"the program {_NAME} was not found: install the package again, or set PAUC_CLI to its path"
    )


def _candidates() -> Iterator[Path]:
    try:
        installed = metadata.files("pauc") or []
    except metadata.PackageNotFoundError:
        installed = []
    for file in installed:
        if file.name == _NAME:
            yield Path(str(file.locate()))
    yield Path(sysconfig.get_path("scripts")) / _NAME
    on_path = shutil.which(_NAME)
    if on_path is not None:
        yield Path(on_path)
