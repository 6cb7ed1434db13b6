"""Exceptions. Each failure of pauc has the exit code that `pauc-cli` would end with."""

from __future__ import annotations

from typing import Dict, Type


class PaucError(Exception):
    """A failure of pauc.

    Attributes:
        message: What is wrong, where, and what to do.
        code: The exit code of `pauc-cli` for such a failure.
    """

    code: int = 1

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class RunFailed(PaucError):
    """A run failed, or an output cannot be written (exit code 1)."""

    code = 1


class RecipeError(PaucError):
    """A recipe or an argument is wrong (exit code 2)."""

    code = 2


class DataError(PaucError):
    """Data, a checkpoint or a file of a run is missing, damaged or changed (exit code 4)."""

    code = 4


class Interrupted(PaucError):
    """A signal stopped the run after a checkpoint; `pauc-cli resume` continues it (exit code 130)."""

    code = 130


class MissingPackage(ImportError):
    """An optional package is needed and is not installed."""


_BY_CODE: Dict[int, Type[PaucError]] = {e.code: e for e in (RunFailed, RecipeError, DataError, Interrupted)}


def of_exit_code(code: int, message: str) -> PaucError:
    """Returns the exception for an exit code of `pauc-cli`."""
    return _BY_CODE.get(code, PaucError)(message, code)


def missing_package(package: str, purpose: str) -> MissingPackage:
    """Returns the exception for an optional package that cannot be imported."""
    return MissingPackage(f"{purpose} needs the package `{package}`: pip install {package}", name=package)
