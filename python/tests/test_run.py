from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import List

import pytest

import pauc


def test_a_text_is_trained_with_changes(recipe: str, tmp_path: Path) -> None:
    lines: List[str] = []
    changes = {"train.epochs": 1, "encoder.channels": [5], "optimizer.momentum": 0.5, "name": '"mine"'}
    run = pauc.run(recipe, set=changes, out=tmp_path, seed=7, log=lines.append)
    assert (run.name, run.seed, run.status) == ("mine", 7, "finished")
    assert run.path.is_dir() and run.path.parent.parent == tmp_path
    assert (run.recipe["train"]["epochs"], run.recipe["encoder"]["channels"]) == (1, [5])
    assert run.recipe["encoder"].name == "ConvNet" and run.recipe["optimizer"]["momentum"] == 0.5
    assert 0 <= run.metrics["knn/cos/k5/t0.07"] <= 1
    steps = [line for line in lines if re.match(r"step +\d+  epoch", line)]
    assert len(steps) == 3, lines


def test_a_long_text_and_a_path_with_a_bracket_are_told_apart(recipe: str, tmp_path: Path) -> None:
    long = "// " + "long " * 1000 + "\n" + recipe
    assert pauc.run(long, set={"train.epochs": 1}, out=tmp_path / "runs", log=None).status == "finished"
    path = tmp_path / "a(1).ron"
    path.write_text(recipe.replace("tiny", "other"), encoding="utf-8")
    assert pauc.run(str(path), set={"train.epochs": 1}, out=tmp_path / "runs", log=None).name == "other"


def test_a_path_is_trained_once(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.ron"
    path.write_text(recipe, encoding="utf-8")
    first = pauc.run(path, out=tmp_path / "runs", log=None)
    before = (first.path / "metrics.jsonl").read_bytes()
    lines: List[str] = []
    second = pauc.run(str(path), out=tmp_path / "runs", log=lines.append)
    assert second == first and (first.path / "metrics.jsonl").read_bytes() == before
    assert any("already" in line for line in lines), lines


def test_a_mistake_in_a_recipe_is_an_error_with_its_place(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(pauc.RecipeError, match=r"temperatur[^e][\s\S]*did you mean `temperature`") as caught:
        pauc.run(recipe.replace("temperature", "temperatur"), out=tmp_path, log=None)
    assert caught.value.code == 2 and caught.value.message.startswith("error[E0103]")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_recipe_errors(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(pauc.RecipeError, match="epochz"):
        pauc.run(recipe, set={"train.epochz": 1}, out=tmp_path, log=None)
    with pytest.raises(pauc.RecipeError, match="cannot read the recipe"):
        pauc.run("no/such/recipe.ron", out=tmp_path, log=None)
    with pytest.raises(pauc.RecipeError, match="expected a dictionary"):
        pauc.run(recipe, set="train.epochs=1", out=tmp_path, log=None)
    with pytest.raises(pauc.RecipeError, match="8GiB"):
        pauc.run(recipe, memory="much", out=tmp_path, log=None)


def test_missing_data_is_a_data_error(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(pauc.DataError, match="images.npx") as caught:
        pauc.run(recipe.replace("images.npy", "images.npx"), out=tmp_path, log=None)
    assert caught.value.code == 4


def test_a_folder_that_cannot_be_written_is_a_failure(recipe: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(pauc.RunFailed) as caught:
        pauc.run(recipe, out=tmp_path / "file", log=None)
    assert caught.value.code == 1 and "file" in caught.value.message


def test_another_program_is_named_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAUC_CLI", "/no/such/pauc-cli")
    with pytest.raises(pauc.PaucError, match="PAUC_CLI=/no/such/pauc-cli"):
        pauc.binary()


def test_an_interrupt_saves_a_checkpoint_and_resume_continues(recipe: str, tmp_path: Path) -> None:
    interrupts = [KeyboardInterrupt]

    def interrupt(line: str) -> None:
        if re.match(r"step +2 ", line) and interrupts:
            raise interrupts.pop()

    with pytest.raises(KeyboardInterrupt):
        pauc.run(recipe, set={"train.epochs": 2000}, out=tmp_path, log=interrupt)
    (run,) = pauc.runs(tmp_path)
    assert run.status == "interrupted" and (run.path / "checkpoints" / "last.safetensors").is_file()
    stopper = threading.Thread(target=_stop, args=(run.path,))
    stopper.start()
    with pytest.raises(pauc.Interrupted) as caught:
        pauc.resume(run, log=None)
    stopper.join()
    assert caught.value.code == 130 and "exit code 130" in caught.value.message
    (run_again,) = pauc.runs(tmp_path)
    assert pauc.metrics(run_again).events[-1]["step"] > 1


def _stop(run: Path) -> None:
    """Sends SIGINT to the process that works on a run, once it has begun."""
    deadline = time.monotonic() + 60
    log = run / "metrics.jsonl"
    before = len(log.read_bytes().splitlines())
    while time.monotonic() < deadline and len(log.read_bytes().splitlines()) <= before + 2:
        time.sleep(0.02)
    os.kill(int((run / "run.lock").read_text()), signal.SIGINT)


def test_a_killed_program_is_an_error_with_its_last_lines(recipe: str, tmp_path: Path) -> None:
    def kill(line: str) -> None:
        if re.match(r"step +2 ", line):
            (lock,) = tmp_path.glob("*/*/run.lock")
            os.kill(int(lock.read_text()), signal.SIGKILL)

    with pytest.raises(pauc.PaucError, match=r"pauc-cli run ended with signal 9; its last lines:\n(.*\n)*step") as caught:
        pauc.run(recipe, set={"train.epochs": 2000}, out=tmp_path, log=kill)
    assert caught.value.code == -9


def test_the_terminals_interrupt_reaches_a_script(recipe: str, tmp_path: Path) -> None:
    """As Ctrl-C in a shell: SIGINT to the whole process group of a script."""
    script = "import pauc, sys; pauc.run(sys.argv[1], set={'train.epochs': 2000}, out=sys.argv[2])"
    process = subprocess.Popen(
        [sys.executable, "-c", script, recipe, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            break
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err and "a checkpoint will be saved" in out, (out, err)
    (run,) = pauc.runs(tmp_path)
    assert run.status == "interrupted"
