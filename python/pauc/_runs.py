"""Folders of runs, and what they recorded."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Tuple, Union

import numpy as np
import numpy.typing as npt

from . import _ron
from ._errors import DataError, missing_package
from ._events import scalars

if TYPE_CHECKING:
    import pandas

_PathLike = Union["os.PathLike[str]", str]


@dataclass(frozen=True)
class Run:
    """A run: one recipe, trained with one seed.

    Attributes:
        path: The folder.
        name: The recipe's name.
        hash: The first digits of the recipe's hash, without its seed.
        seed: The seed.
        status: `running`, `finished`, `interrupted` or `failed`. A run whose process was killed stays
            `running`.
        recipe: The recipe with every default, as nested dictionaries; components are `Component`s.
        metrics: The newest value of each metric of the trained encoder, such as `knn/cos/k20/t0.07`.
            Accuracies are fractions.
        info: The content of `run.json`.
    """

    path: Path
    name: str
    hash: str
    seed: int
    status: str
    recipe: Dict[str, Any] = field(repr=False)
    metrics: Dict[str, float]
    info: Dict[str, Any] = field(repr=False)

    def __fspath__(self) -> str:
        return str(self.path)

    def row(self) -> Dict[str, Any]:
        """Returns status, values of the recipe (by their paths, as in `--set`) and metrics, in one dictionary."""
        row = {"path": str(self.path), "name": self.name, "hash": self.hash, "seed": self.seed, "status": self.status}
        values = {key: value for key, value in _ron.flatten(self.recipe).items() if key not in row}
        return {**row, **values, **self.metrics}


class Runs(List[Run]):
    """A list of runs."""

    def to_dataframe(self) -> "pandas.DataFrame":
        """Returns a table with a row per run and the columns of `Run.row`.

        Raises:
            MissingPackage: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as e:
            raise missing_package("pandas", "to_dataframe") from e
        return pandas.DataFrame([run.row() for run in self])


def runs(folder: _PathLike = "runs") -> Runs:
    """Returns the runs in a folder and its subfolders, by path.

    Folders that cannot be read as a run are left out, with a warning.

    Raises:
        DataError: If there is no such folder.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder")
    found = Runs()
    for path in _folders(Path(folder)):
        try:
            found.append(load(path))
        except DataError as e:
            warnings.warn(f"left out: {e}", stacklevel=2)
    return found


def _folders(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        if "run.json" in files:
            folders.clear()
            yield Path(path)
        folders.sort()


def load(folder: _PathLike) -> Run:
    """Reads a run.

    Raises:
        DataError: If the folder is not a run, or a file of it is damaged.
    """
    path = Path(folder)
    info = read_info(path)
    try:
        name, digits, seed, status = info["name"], info["hash"], int(info["seed"]), info["status"]
    except (KeyError, TypeError, ValueError) as e:
        raise DataError(f"{path / 'run.json'}: {e!r} is missing or wrong") from e
    events = metrics(path) if (path / "metrics.jsonl").is_file() else Metrics([], [])
    return Run(path, name, digits, seed, status, read_recipe(path), events.newest(), info)


def read_info(run: Path) -> Dict[str, Any]:
    """Reads `run.json`."""
    path = run / "run.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise DataError(f"{run}: not a run (no run.json)") from e
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: {e}; `pauc-cli resume {run}` rebuilds it") from e
    if not isinstance(info, dict):
        raise DataError(f"{path}: not an object; `pauc-cli resume {run}` rebuilds it")
    return info


def read_recipe(run: Path) -> Dict[str, Any]:
    """Reads the resolved recipe of a run."""
    path = run / "recipe.resolved.ron"
    try:
        return recipe_of(path.read_text(encoding="utf-8"), str(path))
    except OSError as e:
        raise DataError(f"{path}: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8: {e}") from e


def recipe_of(text: str, place: str) -> Dict[str, Any]:
    """Parses a resolved recipe; errors name its place."""
    try:
        recipe = _ron.loads(text)
    except _ron.RonError as e:
        raise DataError(f"{place}: not a recipe: {e}") from e
    if not isinstance(recipe, dict):
        raise DataError(f"{place}: not a recipe")
    return dict(recipe)


@dataclass(frozen=True)
class Metrics:
    """The events of a run.

    Attributes:
        events: The lines of `metrics.jsonl`, in their order.
        damaged: The numbers, from 1, of lines that are not events. A last line that a crash cut short does
            not count.
    """

    events: List[Dict[str, Any]]
    damaged: List[int]

    def newest(self) -> Dict[str, float]:
        """Returns the newest value of each metric of the trained encoder; NaN if it was not finite."""
        newest: Dict[str, float] = {}
        for event in self.events:
            if event.get("event") == "probe" and event.get("subject") == "trained":
                for metric in event.get("metrics", []):
                    value = metric["value"]
                    newest[metric["name"]] = float("nan") if value is None else float(value)
        return newest

    def names(self) -> List[str]:
        """Returns the tags of all recorded numbers, such as `train/loss` and `probe/knn/cos/k20/t0.07`."""
        return sorted({tag for event in self.events for tag in scalars(event)})

    def history(self, name: str) -> Tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Returns the steps at which a number was recorded, and its values.

        Raises:
            KeyError: If it was never recorded.
        """
        steps, values = [], []
        for event in self.events:
            value = scalars(event).get(name)
            if value is not None:
                steps.append(event["step"])
                values.append(value)
        if not steps:
            raise KeyError(f"{name}: never recorded; recorded are {', '.join(self.names())}")
        return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)

    def to_dataframe(self) -> "pandas.DataFrame":
        """Returns a table with a row per step and a column per recorded number.

        Raises:
            MissingPackage: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as e:
            raise missing_package("pandas", "to_dataframe") from e
        rows: Dict[int, Dict[str, float]] = {}
        for event in self.events:
            found = scalars(event)
            if found:
                rows.setdefault(event["step"], {}).update(found)
        return pandas.DataFrame.from_dict(rows, orient="index").sort_index().rename_axis("step")


def metrics(run: _PathLike) -> Metrics:
    """Reads the events that a run has recorded so far.

    Raises:
        DataError: If the folder has no `metrics.jsonl`.
    """
    path = Path(run) / "metrics.jsonl"
    try:
        content = path.read_bytes()
    except FileNotFoundError as e:
        raise DataError(f"{run}: not a run (no metrics.jsonl)") from e
    except OSError as e:
        raise DataError(f"{path}: {e.strerror or e}") from e
    return parse_events(content)


def parse_events(content: bytes) -> Metrics:
    """Parses lines of `metrics.jsonl`."""
    events, damaged = [], []
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.strip():
            continue
        event = _event(line)
        if event is not None:
            events.append(event)
        elif line.endswith(b"\n"):
            damaged.append(number)
    return Metrics(events, damaged)


def _event(line: bytes) -> "Dict[str, Any] | None":
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_event = isinstance(event, dict) and isinstance(event.get("event"), str)
    return event if is_event and isinstance(event.get("step", 0), int) else None
