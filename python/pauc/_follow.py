"""Sends the numbers of a run to an experiment tracker, while it trains or afterwards."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
import uuid
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from . import _ron
from ._errors import DataError, RecipeError, missing_package
from ._events import scalars
from ._runs import parse_events, read_info, read_recipe

Callback = Callable[[int, Dict[str, float]], None]


def follow(
    run: Union["os.PathLike[str]", str],
    to: Union[str, Callback],
    *,
    poll: float = 0.5,
    timeout: Optional[float] = None,
    state: Union["os.PathLike[str]", str, None] = None,
    **options: Any,
) -> str:
    """Sends the numbers of a run to Weights & Biases, to MLflow, or to a function, until the run ends.

    Numbers have the tags of pauc's TensorBoard files, such as `train/loss` and `probe/knn/cos/k20/t0.07`.
    The recipe becomes the configuration (W&B) or the parameters (MLflow).

    What was sent is remembered, by default in the run's folder, so that a later call continues where this
    one stopped, in the same W&B or MLflow run. A resumed run repeats some steps; they are sent once.

    Args:
        run: The run, or its folder. It may be training in another process, or have ended.
        to: `"wandb"`, `"mlflow"`, or a function of the step and the numbers by tag.
        poll: Seconds between two looks at the log.
        timeout: Seconds after which `TimeoutError` is raised if the run has not ended; by default never.
        state: The file that remembers what was sent. By default `follow-wandb.json` or `follow-mlflow.json`
            in the run's folder; a function is called from the first step each time unless a file is given.
        options: For W&B, arguments of `wandb.init`, such as `project` and `mode`. For MLflow,
            `tracking_uri`, `experiment` and `run_name`.

    Returns:
        How the run ended: `finished`, `interrupted`, `failed`, or `abandoned` if its process was killed.

    Raises:
        DataError: If the folder is not a run.
        RecipeError: If `to` is unknown.
        MissingPackage: If the package of the tracker is not installed.
        TimeoutError: After `timeout` seconds.
    """
    path = Path(run)
    info = read_info(path)
    memory = _Memory(_state_file(path, to, state))
    target = _open(to, path, info, memory, options)
    deadline = None if timeout is None else time.monotonic() + timeout
    log, status, is_complete = _Log(path / "metrics.jsonl"), "running", False
    try:
        while status == "running":
            # Look for the end first: the next read then includes everything written before it.
            status = _status(path)
            _send(log, target, memory)
            if status == "running":
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError(f"{path}: the run has not ended after {timeout} s")
                time.sleep(poll)
        is_complete = True
    finally:
        target.close(status if is_complete else None)
    if status == "abandoned":
        warnings.warn(f"the run's process is gone; `pauc-cli resume {path}` continues it", stacklevel=2)
    return status


def _state_file(run: Path, to: Union[str, Callback], state: Union["os.PathLike[str]", str, None]) -> Optional[Path]:
    if state is not None:
        return Path(state)
    return run / f"follow-{to}.json" if isinstance(to, str) else None


def _status(run: Path) -> str:
    """Returns how the run ended, or `running`."""
    status = str(read_info(run).get("status"))
    if status != "running" or _is_locked(run / "run.lock"):
        return status
    # The process may have ended well since the first look at its status.
    status = str(read_info(run).get("status"))
    return "abandoned" if status == "running" else status


def _is_locked(path: Path) -> bool:
    """Returns whether a process holds the lock of a run; true where nothing tells."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _send(log: "_Log", target: "_Target", memory: "_Memory") -> None:
    """Sends what is new in the log."""
    by_step: Dict[int, Dict[str, float]] = {}
    for step, values in log.new_scalars():
        new = {tag: value for tag, value in values.items() if step > memory.last.get(tag, -1)}
        by_step.setdefault(step, {}).update(new)
    for step in sorted(step for step, values in by_step.items() if values):
        target.send(step, by_step[step])
        memory.last.update(dict.fromkeys(by_step[step], step))
    if by_step:
        memory.save()


class _Log:
    """Reads a growing `metrics.jsonl`, complete lines only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self.inode = -1

    def new_scalars(self) -> List[Tuple[int, Dict[str, float]]]:
        try:
            with open(self.path, "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_ino != self.inode or found.st_size < self.position:
                    # A resumed run has moved its last lines aside.
                    self.position, self.inode = 0, found.st_ino
                file.seek(self.position)
                content = file.read()
        except FileNotFoundError:
            return []
        content = content[: content.rfind(b"\n") + 1]
        self.position += len(content)
        parsed = parse_events(content)
        if parsed.damaged:
            warnings.warn(f"{self.path}: {len(parsed.damaged)} lines are not events; they are left out", stacklevel=2)
        return [(event["step"], scalars(event)) for event in parsed.events if "step" in event]


class _Memory:
    """What was sent: the last step of each tag, and the tracker's run."""

    def __init__(self, path: Optional[Path]) -> None:
        self.path = path
        self.last: Dict[str, int] = {}
        self.tracked: Dict[str, str] = {}
        if path is None or not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self.last = {str(tag): int(step) for tag, step in found["last"].items()}
            self.tracked = {str(key): str(value) for key, value in found["tracked"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
            raise DataError(f"{path}: {e!r}; remove the file to send everything again") from e

    def save(self) -> None:
        if self.path is None:
            return
        content = json.dumps({"tracked": self.tracked, "last": self.last}, indent=1)
        descriptor, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content + "\n")
            os.replace(temporary, self.path)
        except BaseException:
            os.unlink(temporary)
            raise


class _Target:
    """Something that takes numbers."""

    def send(self, step: int, values: Dict[str, float]) -> None:
        raise NotImplementedError

    def close(self, status: Optional[str]) -> None:
        """Ends. `status` is that of the run; `None` if following it failed."""


class _Function(_Target):
    def __init__(self, function: Callback) -> None:
        self.function = function

    def send(self, step: int, values: Dict[str, float]) -> None:
        self.function(step, values)


class _Wandb(_Target):
    def __init__(self, run: Path, info: Mapping[str, Any], memory: _Memory, options: Dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as e:
            raise missing_package("wandb", 'follow(to="wandb")') from e
        config = {**_ron.flatten(read_recipe(run)), "pauc": info.get("version")}
        identity = memory.tracked.setdefault("id", uuid.uuid4().hex[:12])
        defaults = {"project": "pauc", "name": _title(info), "group": info.get("name"), "config": config}
        self.run = wandb.init(**{**defaults, "id": identity, "resume": "allow", **options})
        memory.save()

    def send(self, step: int, values: Dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self, status: Optional[str]) -> None:
        if status is not None:
            self.run.summary["status"] = status
        self.run.finish(exit_code=0 if status == "finished" else 1)


class _Mlflow(_Target):
    # The tracker's limits for one request, and for the text of a parameter.
    VALUES, PARAMETERS, TEXT = 1000, 100, 500
    STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "abandoned": "KILLED", "failed": "FAILED"}

    def __init__(self, run: Path, info: Mapping[str, Any], memory: _Memory, options: Dict[str, Any]) -> None:
        try:
            from mlflow import entities
            from mlflow.tracking import MlflowClient
        except ImportError as e:
            raise missing_package("mlflow", 'follow(to="mlflow")') from e
        unknown = options.keys() - {"tracking_uri", "experiment", "run_name"}
        if unknown:
            raise RecipeError(f"MLflow has the options tracking_uri, experiment and run_name, not {sorted(unknown)}")
        self.entities = entities
        self.client = MlflowClient(tracking_uri=options.get("tracking_uri"))
        known = memory.tracked.get("run_id")
        if known is not None:
            self.run_id = known
            self.client.update_run(known, status="RUNNING")
            return
        experiment = self._experiment(options.get("experiment", "pauc"))
        tags = {"pauc.run": str(run.resolve()), "pauc.version": str(info.get("version"))}
        created = self.client.create_run(experiment, run_name=options.get("run_name", _title(info)), tags=tags)
        self.run_id = memory.tracked["run_id"] = str(created.info.run_id)
        self._parameters(_ron.flatten(read_recipe(run)))
        memory.save()

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self.client.create_experiment(name))

    def _parameters(self, values: Mapping[str, Any]) -> None:
        params = [self.entities.Param(_key(path), str(value)[: self.TEXT]) for path, value in values.items()]
        for i in range(0, len(params), self.PARAMETERS):
            self.client.log_batch(self.run_id, params=params[i : i + self.PARAMETERS])

    def send(self, step: int, values: Dict[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self.entities.Metric(_key(tag), value, now, step) for tag, value in values.items()]
        for i in range(0, len(metrics), self.VALUES):
            self.client.log_batch(self.run_id, metrics=metrics[i : i + self.VALUES])

    def close(self, status: Optional[str]) -> None:
        self.client.set_terminated(self.run_id, status=self.STATUS.get(status or "", "FAILED"))


def _title(info: Mapping[str, Any]) -> str:
    return f"{info.get('name')}-{info.get('hash')}/seed{info.get('seed')}"


def _key(name: str) -> str:
    """Returns a name as MLflow allows it: letters, digits and `_-. :/`."""
    return re.sub(r"[^\w\-. :/]", "_", re.sub(r"\[(\d+)\]", r".\1", name), flags=re.ASCII)


_TRACKERS = {"wandb": _Wandb, "mlflow": _Mlflow}


def _open(
    to: Union[str, Callback], run: Path, info: Mapping[str, Any], memory: _Memory, options: Dict[str, Any]
) -> _Target:
    if not isinstance(to, str):
        if options:
            raise TypeError(f"a function takes no options, got {sorted(options)}")
        return _Function(to)
    if to not in _TRACKERS:
        raise RecipeError(f"to={to!r}: expected {' or '.join(map(repr, _TRACKERS))}, or a function")
    return _TRACKERS[to](run, info, memory, options)
