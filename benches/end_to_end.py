"""Times whole runs, from the start of the process to the last probe: pauc against PyTorch with lightly and faiss.

    cargo build --release -p pauc-cli && python benches/end_to_end.py --data fashion-mnist=data/fashion-mnist \\
        cifar10=data/cifar10 --rounds 3 --out end-to-end.json

Both train the same ResNet-18 with the same views, batch size, schedule and number of epochs. Both export their
features, and the same code computes the accuracies from them. Needs what `torch_run.py` needs.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

import torch_run

HERE = pathlib.Path(__file__).resolve().parent
SETTINGS = ["f32", "bf16", "compile"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", nargs="+", required=True, help="fashion-mnist=FOLDER, cifar10=FOLDER")
parser.add_argument("--methods", nargs="+", default=["simclr", "moco", "pcl"])
parser.add_argument("--settings", nargs="+", default=SETTINGS, choices=SETTINGS, help="how PyTorch runs")
parser.add_argument("--images", type=int, default=20000)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--pauc", default=HERE.parent / "target" / "release" / "pauc-cli")
parser.add_argument("--out", help="write all measurements to this JSON file")
options = parser.parse_args()

PEER = torch_run.arguments().parse_args(["simclr", "--data", "", "--out", ""])


def recipe(method, data):
    """Returns a recipe with the settings of `torch_run.py`."""
    name, folder = data.split("=", 1)
    gray = name == "fashion-mnist"
    dataset = f"{'FashionMnist' if gray else 'Cifar10'}(root: {json.dumps(str(pathlib.Path(folder).resolve()))})"
    jitter = "brightness: 0.4, contrast: 0.4" + ("" if gray else ", saturation: 0.4, hue: 0.1")
    views = [
        f"RandomResizedCrop(size: {28 if gray else 32}, scale: (0.2, 1.0))",
        "HorizontalFlip(p: 0.5)",
        f"ColorJitter(p: 0.8, {jitter})",
        *([] if gray else ["Grayscale(p: 0.2)"]),
    ]
    terms, more = ["(term: InfoNce(temperature: 0.2))"], ""
    if method != "simclr":
        terms = ["(term: InfoNce(temperature: 0.2, negatives: Queue))"]
        more = f"momentum_encoder: Ema(momentum: 0.99), queue: {PEER.queue},"
    if method == "pcl":
        terms.append(f"(term: ProtoNce(), from: Epochs({PEER.warm_up}))")
        more += f"clusterer: KMeans(k: {PEER.prototypes}, spherical: true, start: Epochs({PEER.warm_up}), every: Epochs(1)),"
    return f"""Recipe(
        name: "{method}-{name}",
        data: Subset(of: {dataset}, train: PerClass({options.images // 10})),
        views: [(count: 2, ops: [{", ".join(views)}])],
        encoder: ResNet18(stem: Small, width: {PEER.width}),
        projector: Mlp(dims: [128, 64]),
        objective: [{", ".join(terms)}],
        {more}
        optimizer: Sgd(lr: 0.06, momentum: 0.9, weight_decay: 5e-4),
        schedule: Cosine(),
        train: (epochs: {options.epochs}, batch: {PEER.batch}),
        probes: [Knn(k: 20, at: End), Linear(at: End)],
        baselines: [],
    )"""


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with code {done.returncode}:\n{done.stderr}")
    return done.stdout


def ours(method, data, folder):
    file = folder / "recipe.ron"
    file.write_text(recipe(method, data))
    threads = ["--threads", options.threads]
    start = time.time()
    run([options.pauc, *threads, "run", file, "--out", folder / "runs"])
    seconds = time.time() - start
    [saved] = (folder / "runs").glob("*/seed0")
    for split in ("train", "test"):
        run([options.pauc, *threads, "embed", saved, "--split", split, "--out", folder / f"{split}.npy"])
    return seconds


def theirs(method, data, setting, folder):
    command = [sys.executable, HERE / "torch_run.py", method, "--data", data, "--images", options.images, "--epochs",
               options.epochs, "--threads", options.threads, "--setting", setting, "--out", folder]
    return json.loads(run([*command, "--started", time.time()]).splitlines()[-1])["seconds"]


def measured(work):
    """Returns the seconds of `work(folder)`, and the accuracies on the features it wrote to the folder."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        seconds = work(folder)
        files = [f"{split}{part}.npy" for split in ("train", "test") for part in ("", ".labels")]
        return dict(seconds=seconds, **torch_run.probes(*(np.load(folder / file) for file in files)))


def table(rows):
    print("| run | pauc, s | PyTorch f32, s | bf16, s | compiled, s | fastest PyTorch / pauc | kNN / linear of pauc | of PyTorch |")
    print("|---|---|---|---|---|---|---|---|")
    for (data, method), rounds in rows.items():
        seconds = {name: statistics.median(r[name]["seconds"] for r in rounds) for name in rounds[0]}
        others = [name for name in rounds[0] if name != "pauc"]
        ratio = statistics.median(min(r[name]["seconds"] for name in others) / r["pauc"]["seconds"] for r in rounds)
        best = min(others, key=seconds.get)
        accuracy = [f"{100 * rounds[0][n]['knn']:.1f} / {100 * rounds[0][n]['linear']:.1f} %" for n in ("pauc", best)]
        times = [f"{seconds[name]:.0f}" if name in seconds else "" for name in ("pauc", *SETTINGS)]
        print(f"| {method}, {data} | {' | '.join(times)} | {ratio:.1f}× | {' | '.join(accuracy)} |", flush=True)


def main():
    rows = {}
    for data in options.data:
        for method in options.methods:
            for _ in range(options.rounds):
                found = {"pauc": measured(lambda folder: ours(method, data, folder))}
                for setting in options.settings:
                    found[setting] = measured(lambda folder: theirs(method, data, setting, folder))
                rows.setdefault((data.split("=")[0], method), []).append(found)
                print(json.dumps(dict(data=data.split("=")[0], method=method, **found)), file=sys.stderr, flush=True)
    table(rows)
    if options.out:
        settings = {key: getattr(options, key) for key in ("images", "epochs", "rounds", "threads")}
        runs = [dict(data=data, method=method, rounds=rounds) for (data, method), rounds in rows.items()]
        pathlib.Path(options.out).write_text(json.dumps(dict(settings=settings, runs=runs), indent=1) + "\n")


main()
