"""Compares two builds of pauc-cli: cold start, `check` of a recipe, and the training step.

    python benches/versions.py OLD NEW [--recipe recipes/quickstart.ron] [--rounds 15]

OLD and NEW are binaries, for example of a worktree of an older commit and of this one, both built with --release. Each
round runs both, one after the other, and the order alternates. The time is the processor time of the process on one
thread, since that hardly depends on what else the machine does. Prints the median of each and the ratio of the medians.
"""

import argparse
import os
import statistics
import subprocess
import tempfile

STEPS = (4, 24)


def seconds(command):
    """The processor time of a command, which has to succeed."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def steps(binary, recipe, count):
    """The time of a run that ends after some steps, without probes."""
    with tempfile.TemporaryDirectory() as out:
        changes = ["--set", "probes=[]", "--set", "baselines=[]", "--max-steps", str(count), "--out", out]
        return seconds([binary, "--threads", "1", "run", recipe, *changes])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--recipe", default="recipes/quickstart.ron")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    recipe = options.recipe
    measured = {
        "cold start": lambda binary: seconds([binary, "--threads", "1", "--version"]),
        "check": lambda binary: seconds([binary, "--threads", "1", "check", recipe]),
        # The difference leaves out the start, the figures and the report.
        "step": lambda binary: (steps(binary, recipe, STEPS[1]) - steps(binary, recipe, STEPS[0]))
        / (STEPS[1] - STEPS[0]),
    }
    print(f"{'':12}{'old':>12}{'new':>12}{'new / old':>12}")
    for name, measure in measured.items():
        times = {"old": [], "new": []}
        for number in range(options.rounds):
            order = ["old", "new"] if number % 2 == 0 else ["new", "old"]
            for which in order:
                times[which].append(measure(vars(options)[which]))
        old, new = (statistics.median(times[which]) for which in ("old", "new"))
        print(f"{name:12}{old * 1e3:9.2f} ms{new * 1e3:9.2f} ms{new / old:12.3f}")


if __name__ == "__main__":
    main()
