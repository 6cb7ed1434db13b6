#!/usr/bin/env python3
"""Regenerates the golden files and compares them with those in the repository, or writes them.

python3 golden/generate.py --check            compares all files; exits with 1 if one differs
python3 golden/generate.py --check vit terms  compares some
python3 golden/generate.py --check --available
                                              compares those whose packages are installed, and names the skipped ones
python3 golden/generate.py --write vit        writes one file; without a name, all files
"""

import argparse
import ast
import importlib
import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common import plain, text

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NAMES = [
    "augmentations",
    "clustering",
    "concentration",
    "encoders",
    "halves",
    "optimizers",
    "probes",
    "resnets",
    "rotate_equalize",
    "schedules",
    "terms",
    "vit",
    "vit_options",
]
# The maximum number of differences shown per file.
SHOWN = 5


def largest(v):
    """The largest magnitude in a nested array."""
    if isinstance(v, list):
        return max(map(largest, v), default=0.0)
    return abs(v) if isinstance(v, float) else 0.0


class Comparison:
    """Compares two values and collects their differences.

    Two floats may differ by `tolerance` times a scale: the largest magnitude in their array, or for numbers
    outside of arrays, among those of their object, and at least `floor`. Everything else must be equal.
    """

    def __init__(self, tolerance, floor):
        self.tolerance, self.floor = tolerance, floor
        self.differences, self.floats, self.farthest = [], 0, 0.0

    def differ(self, path, stored, made):
        self.differences.append(f"{path or 'the file'}: expected {stored}, got {made}")

    def compare(self, stored, made, path="", lone=0.0, array=None):
        """`lone` is the scale of numbers outside of arrays, `array` that of the enclosing array."""
        if isinstance(stored, float) and isinstance(made, float):
            self.compare_floats(stored, made, path, lone if array is None else array)
        elif type(stored) is not type(made):
            self.differ(path, type(stored).__name__, type(made).__name__)
        elif isinstance(stored, dict):
            if stored.keys() != made.keys():
                self.differ(path, f"keys {sorted(stored)}", sorted(made))
            lone = max((abs(v) for v in stored.values() if isinstance(v, float)), default=0.0)
            for key in stored:
                if key in made:
                    self.compare(stored[key], made[key], f"{path}.{key}" if path else key, lone)
        elif isinstance(stored, list):
            if len(stored) != len(made):
                self.differ(path, f"length {len(stored)}", len(made))
            array = largest(stored) if array is None else array
            for i, (a, b) in enumerate(zip(stored, made)):
                self.compare(a, b, f"{path}[{i}]", array=array)
        elif stored != made:
            self.differ(path, repr(stored), repr(made))

    def compare_floats(self, stored, made, path, scale):
        within = max(scale, self.floor)
        off = abs(stored - made)
        self.floats += 1
        if off:
            self.farthest = max(self.farthest, off / within if within else float("inf"))
        # NaN is not close to any number.
        if not off <= self.tolerance * within:
            self.differ(path, stored, f"{made}, {off:.1e} off where {self.tolerance * within:.1e} is allowed")


def check(module, path, made):
    """Returns the differences of a stored file from the generated one, and how close they are."""
    if not path.exists():
        return ["the file is missing"], ""
    if isinstance(made, bytes):
        return ([] if path.read_bytes() == made else ["the bytes differ"]), "same bytes"
    comparison = Comparison(module.TOLERANCE, module.FLOOR)
    comparison.compare(json.loads(path.read_text()), made)
    if not comparison.farthest:
        return comparison.differences, "same values"
    near = f"{comparison.floats} floats within {comparison.farthest:.1e}, {module.TOLERANCE:.1e} allowed"
    return comparison.differences, near


def write(path, made):
    if isinstance(made, bytes):
        path.write_bytes(made)
    else:
        path.write_text(text(made))


def path_of(name):
    """The path of a generator's file. Parses the source, because its packages may not be installed."""
    for statement in ast.parse((HERE / f"{name}.py").read_text()).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="PATH")], value=ast.Constant(value=path)):
                return ROOT / path
    raise LookupError(f"{name}.py has no PATH")


def strays():
    """Golden files without a generator."""
    known = set(map(path_of, NAMES))
    return sorted(path for path in ROOT.glob("*/tests/golden/*") if path.is_file() and path not in known)


def other_versions():
    """Packages whose installed version is not the pinned one."""
    for line in (HERE / "requirements.txt").read_text().split():
        package, wanted = line.split("==")
        try:
            installed = version(package).split("+")[0]
        except PackageNotFoundError:
            continue
        if installed != wanted:
            yield f"{package}: expected {wanted}, got {installed}"


def load(names, available):
    """Imports the generators. With `available`, reports and skips those whose packages are missing.

    NumPy is always required, since `common` needs it. So the generators that need only NumPy always run.
    """
    modules = []
    for name in names:
        try:
            modules.append(importlib.import_module(name))
        except ModuleNotFoundError as missing:
            if not available or missing.name in ("numpy", *NAMES):
                raise
            print(f"SKIPPED {path_of(name).relative_to(ROOT)}: {name}.py needs {missing.name}", flush=True)
    return modules


def make_torch_repeatable():
    """Makes sums deterministic. Threads would not speed up such small networks."""
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)


def run(module, writing):
    """Compares a generator's file with its current output, or writes it. Returns whether they agree."""
    start = time.perf_counter()
    path, made = ROOT / module.PATH, plain(module.make())
    differences, near = check(module, path, made)
    seconds = f"({time.perf_counter() - start:.1f} s)"
    if not differences:
        print(f"ok      {module.PATH}: {near} {seconds}", flush=True)
        return True
    # A file that agrees is not rewritten, even if its last digits differ.
    if writing:
        write(path, made)
        print(f"WRITTEN {module.PATH}: {len(differences)} differences {seconds}", flush=True)
        return True
    print(f"DIFFERS {module.PATH}: {len(differences)} differences {seconds}", flush=True)
    for difference in differences[:SHOWN]:
        print(f"        {difference}")
    return False


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="compare with the stored files")
    action.add_argument("--write", action="store_true", help="write the files")
    parser.add_argument(
        "--available", action="store_true", help="skip generators whose packages are not installed"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="one of " + ", ".join(NAMES))
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"unknown generator {', '.join(unknown)}; expected some of {', '.join(NAMES)}")
    if options.available and not options.check:
        parser.error("--available needs --check")

    modules = load(options.names or NAMES, options.available)
    make_torch_repeatable()
    failed = not all([run(module, options.write) for module in modules])
    if not modules:
        failed = True
        print("NOTHING was compared: no generator has all its packages installed; install golden/requirements.txt")
    if options.check and not options.names:
        for path in strays():
            failed = True
            print(f"STRAY   {path.relative_to(ROOT)}: no generator writes it")
    if failed and (others := list(other_versions())):
        print(f"The cause may be package versions: {'; '.join(others)}.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
