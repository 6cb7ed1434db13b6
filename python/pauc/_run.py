"""Trains recipes with the program of this package."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import IO, Any, Callable, List, Mapping, Optional, Sequence, Union

from . import _ron
from ._binary import binary
from ._errors import RecipeError, RunFailed, of_exit_code
from ._runs import Run, load

Changes = Union[Mapping[str, Any], Sequence[str]]


def _print(line: str) -> None:
    print(line, flush=True)


def run(
    recipe: Union["os.PathLike[str]", str],
    *,
    set: Optional[Changes] = None,  # noqa: A002 (the name of the option)
    out: Union["os.PathLike[str]", str] = "runs",
    seed: Optional[int] = None,
    max_steps: Optional[int] = None,
    force: bool = False,
    device: Optional[str] = None,
    threads: Optional[int] = None,
    memory: Optional[str] = None,
    log: Optional[Callable[[str], None]] = _print,
) -> Run:
    """Trains a recipe, and returns the run. A finished run is not trained again.

    An interrupt (Ctrl-C, or "stop" in a notebook) lets the run save a checkpoint before `KeyboardInterrupt`
    is raised; `pauc.resume` continues it.

    Args:
        recipe: The path of a recipe, or its text: a string with a line break or `(` that is not the path of a file.
        set: Values of the recipe to change, by path: `{"train.epochs": 5, "encoder.stem": "Small"}`. Strings
            are RON, as on the command line: a text needs its own quotes, `{"name": '"mine"'}`.
        out: The folder to write runs to.
        seed: The seed; by default that of the recipe.
        max_steps: Stop after this many optimizer steps.
        force: Train a finished run again and replace it.
        device: `cpu` or `cuda:0`.
        threads: Threads for computing; all cores by default.
        memory: Refuse recipes that need more memory than this, such as `8GiB`.
        log: Called with each line that pauc prints; `None` prints nothing.

    Raises:
        RecipeError: If the recipe or an argument is wrong.
        DataError: If data is missing or damaged.
        RunFailed: If training fails.
        Interrupted: If a signal to pauc itself stopped the run.
    """
    options = [
        *(f"--set={change}" for change in _assignments(set)),
        f"--out={os.fspath(out)}",
        *([] if seed is None else [f"--seeds={seed}"]),
        *([] if max_steps is None else [f"--max-steps={max_steps}"]),
        *(["--force"] if force else []),
        *([] if memory is None else [f"--memory={memory}"]),
        *_common(device, threads),
    ]
    if not _is_text(recipe):
        return _train(os.fspath(recipe), options, log)
    with tempfile.TemporaryDirectory(prefix="pauc-") as folder:
        path = Path(folder) / "recipe.ron"
        path.write_text(os.fspath(recipe), encoding="utf-8")
        return _train(str(path), options, log)


def resume(
    run: Union["os.PathLike[str]", str],
    *,
    device: Optional[str] = None,
    threads: Optional[int] = None,
    log: Optional[Callable[[str], None]] = _print,
) -> Run:
    """Continues an interrupted run, and returns it.

    Args:
        run: The run, or its folder.
        device: `cpu` or `cuda:0`.
        threads: Threads for computing; all cores by default.
        log: Called with each line that pauc prints; `None` prints nothing.

    Raises:
        DataError: If no checkpoint is intact, or the data has changed.
        RunFailed: If the folder is not a run, or training fails.
        Interrupted: If a signal to pauc itself stopped the run.
    """
    _call(["resume", *_common(device, threads), "--", os.fspath(run)], log)
    return load(run)


def _common(device: Optional[str], threads: Optional[int]) -> List[str]:
    return [
        *([] if device is None else [f"--device={device}"]),
        *([] if threads is None else [f"--threads={threads}"]),
    ]


def _is_text(recipe: Union["os.PathLike[str]", str]) -> bool:
    return isinstance(recipe, str) and re.search(r"[\n(]", recipe) is not None and not os.path.isfile(recipe)


def _assignments(changes: Optional[Changes]) -> List[str]:
    if changes is None:
        return []
    if isinstance(changes, str):
        raise RecipeError(f"set={changes!r}: expected a dictionary, or a list of texts such as 'train.epochs=5'")
    if isinstance(changes, Mapping):
        return [f"{path}={_ron.dumps(value)}" for path, value in changes.items()]
    return list(changes)


def _train(recipe: str, options: List[str], log: Optional[Callable[[str], None]]) -> Run:
    output = _call(["run", *options, "--json", "--", recipe], log)
    try:
        folder = json.loads(output.strip().splitlines()[-1])["run"]
    except (IndexError, KeyError, TypeError, ValueError) as e:
        raise RunFailed(f"pauc-cli did not name the run; it printed {output!r}") from e
    return load(folder)


def _call(arguments: List[str], log: Optional[Callable[[str], None]]) -> str:
    """Runs `pauc-cli`, and returns its output. `log` gets the lines that it prints on stderr.

    Raises:
        PaucError: If its exit code is not 0.
    """
    process = subprocess.Popen(
        [str(binary()), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        # An interrupt of the terminal reaches pauc once, from `_stop`.
        start_new_session=os.name == "posix",
    )
    stdout, stderr = process.stdout, process.stderr
    assert stdout is not None and stderr is not None
    output: List[str] = []
    reader = threading.Thread(target=lambda: output.append(stdout.read()), daemon=True)
    reader.start()
    lines: List[str] = []
    try:
        for line in stderr:
            lines.append(line.rstrip("\n"))
            if log is not None:
                log(lines[-1])
    except BaseException:
        _stop(process, stderr, log)
        raise
    finally:
        code = process.wait()
        reader.join()
        stdout.close()
        stderr.close()
    if code != 0:
        raise of_exit_code(code, _message(arguments[0], code, lines))
    return "".join(output)


def _message(verb: str, code: int, lines: List[str]) -> str:
    """Returns the error at the end of what was printed or, if there is none, how the program ended."""
    for i, line in enumerate(lines):
        if re.match(r"error(\[\w+\])?:", line):
            return "\n".join(lines[i:]).strip()
    ending = f"signal {-code}" if code < 0 else f"exit code {code}"
    return "\n".join([f"pauc-cli {verb} ended with {ending}; its last lines:", *lines[-5:]])


def _stop(process: "subprocess.Popen[str]", stderr: IO[str], log: Optional[Callable[[str], None]]) -> None:
    """Asks pauc to save a checkpoint and end, and waits for it. A second interrupt ends it at once."""
    for _ in range(2):
        process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        try:
            for line in stderr:
                if log is not None:
                    log(line.rstrip("\n"))
            process.wait()
            return
        except KeyboardInterrupt:
            continue
    process.kill()
