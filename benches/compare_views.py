"""Compares pauc's loader with torchvision on Pillow, alternately: two SimCLR views per image. Prints a Markdown table.

    cargo build --release -p pauc-cli && python benches/compare_views.py [--rounds 3] [--jpeg 32=FOLDER 224=FOLDER]

Needs torch, torchvision, numpy and pillow in the Python that runs it. Without --jpeg it measures only 32 px from memory;
each folder holds class folders of JPEG files. pauc does not cache decoded images. The table has medians of images per
second of wall time, with one thread each; the last column is for two loader threads. Close other programs.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve()
PAUC = HERE.parent.parent / "target" / "release" / "pauc-cli"
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--seconds", type=float, default=5)
parser.add_argument("--jpeg", nargs="*", default=[], metavar="SIZE=FOLDER")
parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)  # the image size that this process measures with torchvision
options = parser.parse_args()


def kernel(size):
    return max(3, size // 10 | 1)


def peer(size):
    import numpy as np
    import torch
    import torchvision.transforms as T
    from PIL import Image

    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.jpeg:
        files = sorted(pathlib.Path(options.jpeg[0]).glob("**/*.[jJ][pP]*[gG]"))[:512]
        read = lambda i: Image.open(files[i % len(files)]).convert("RGB")
    else:
        pixels = np.random.default_rng(0).integers(0, 255, (512, size, size, 3), dtype=np.uint8)
        images = [Image.fromarray(p) for p in pixels]
        read = lambda i: images[i % 512]
    jitter = T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8)
    blur = T.RandomApply([T.GaussianBlur(kernel(size), (0.1, 2.0))], 0.5)
    views = T.Compose([T.RandomResizedCrop(size, scale=(0.2, 1.0)), T.RandomHorizontalFlip(), jitter,
                       T.RandomGrayscale(0.2), blur, T.ToTensor(), T.Normalize([0.5] * 3, [0.25] * 3)])

    def some(first):
        for i in range(first, first + 32):
            image = read(i)
            views(image), views(image)

    some(0)
    done, rates, began = 32, [], time.perf_counter()
    while len(rates) < 5 or time.perf_counter() - began < options.seconds:
        start = time.perf_counter()
        some(done)
        rates.append(32 / (time.perf_counter() - start))
        done += 32
    print(json.dumps(statistics.median(rates)))


def theirs(size, folder):
    command = [sys.executable, HERE, "--peer", size, "--seconds", options.seconds] + (["--jpeg", folder] if folder else [])
    return json.loads(subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True).stdout)


def ours(size, data, threads):
    ops = (f"RandomResizedCrop(size: {size}, scale: (0.2, 1.0)), HorizontalFlip(), ColorJitter(), Grayscale(), "
           f"GaussianBlur(model: Exact, kernel: {kernel(size)})")
    command = [PAUC, "bench", "data", data, "--set", f"views=[(count: 2, ops: [{ops}])]", "--loader-threads", threads,
               "--seconds", options.seconds, "--json"]
    out = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True).stdout
    [speed] = json.loads(out)["speed"]
    return speed["images_per_second"]


if options.peer:
    sys.exit(peer(options.peer))
with tempfile.TemporaryDirectory() as folder:
    import numpy as np

    pixels = pathlib.Path(folder) / "pixels.npy"
    np.save(pixels, np.random.default_rng(0).integers(0, 255, (512, 32, 32, 3), dtype=np.uint8))
    cases = [("32 px from memory", 32, f'Npy(images: "{pixels}")', None)]
    for text in options.jpeg:
        size, where = text.split("=", 1)
        data = f'ImageFolder(root: "{os.path.abspath(where)}", cache: 0)'
        cases.append((f"{size} px from JPEG files", int(size), data, os.path.abspath(where)))
    print("| images | torchvision, images/s | pauc, images/s | ratio | two loader threads |")
    print("|---|---|---|---|---|")
    for name, size, data, where in cases:
        rounds = [(theirs(size, where), ours(size, data, 1), ours(size, data, 2)) for _ in range(options.rounds)]
        peers, one, two = (statistics.median(r[i] for r in rounds) for i in range(3))
        ratio, gain = statistics.median(o / t for t, o, _ in rounds), statistics.median(w / o for _, o, w in rounds)
        print(f"| {name} | {peers:.0f} | {one:.0f} | {ratio:.1f}× | {two:.0f}, {gain:.2f}× |", flush=True)
