"""Compares encoders of pauc with PyTorch's, alternately. Prints a Markdown table of medians and ratios.

    cargo build --release -p pauc-cli && python benches/compare.py [--rounds 3] [--seconds 4] [--threads 1 2] [--only resnet18]

Needs torch, torchvision and timm in the Python that runs it. PyTorch's time is the better of its two memory layouts.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
PAUC = HERE.parent / "target" / "release" / "pauc-cli"
CASES = [
    # net, width, stem, batch, size, form
    ("resnet18", 64, "small", 64, 32, "simclr"),
    ("resnet18", 64, "small", 64, 32, "moco"),
    ("resnet18", 16, "small", 64, 32, "simclr"),
    ("resnet18", 16, "small", 64, 32, "moco"),
    ("resnet50", 64, "small", 32, 64, "simclr"),
    ("resnet50", 64, "imagenet", 32, 224, "simclr"),
    ("resnet18", 64, "small", 64, 32, "inference"),
    ("resnet50", 64, "imagenet", 32, 224, "inference"),
    # Their widths are fixed.
    ("convnext_atto", 40, "small", 32, 32, "simclr"),
    ("convnext_tiny", 96, "imagenet", 16, 96, "simclr"),
    ("convnext_tiny", 96, "imagenet", 16, 96, "inference"),
    ("vit_tiny", 192, "small", 64, 32, "simclr"),
    ("vit_tiny", 192, "small", 64, 32, "inference"),
    ("vit_small", 384, "imagenet", 16, 224, "simclr"),
]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--seconds", type=float, default=4)
parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
parser.add_argument("--only", default="", help="only cases whose name in the table contains this")
options = parser.parse_args()


def run(command):
    out = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def ours(net, width, stem, batch, size, form, threads):
    if net.startswith("convnext_"):
        encoder = f"ConvNeXt(size: {net[9:].capitalize()}, patch: {1 if stem == 'small' else 4})"
    elif net.startswith("vit_"):
        encoder = f"VisionTransformer(size: {net[4:].capitalize()}, patch: {4 if stem == 'small' else 16})"
    else:
        encoder = f"{net.replace('resnet', 'ResNet')}(stem: {'Small' if stem == 'small' else 'ImageNet'}, width: {width})"
    [line] = run([PAUC, "bench", "--encoder", encoder, "--batch", batch, "--size", size, "--form", form,
                  "--threads", threads, "--seconds", options.seconds, "--json"])
    return line["step_ms_median"], (line["memory_bytes"] or 0) / 2**20


def theirs(net, width, stem, batch, size, form, threads):
    best = None
    for layout in ["nchw", "nhwc"]:
        [line] = run([sys.executable, HERE / "torch_encoder.py", "--net", net, "--width", width, "--stem", stem,
                      "--batch", batch, "--size", size, "--form", form, "--threads", threads,
                      "--seconds", options.seconds, "--layout", layout])
        if best is None or line["step_ms_median"] < best[0]:
            best = line["step_ms_median"], line["memory_mib_max"]
    return best


print("| step | threads | pauc, ms | PyTorch, ms | ratio | memory, MiB |")
print("|---|---|---|---|---|---|")
for case in CASES:
    name = f"{case[0]} width {case[1]}, {case[3]} × {case[4]} px, {case[5]}"
    if options.only not in name:
        continue
    for threads in options.threads:
        rounds = [(ours(*case, threads), theirs(*case, threads)) for _ in range(options.rounds)]
        ratio = statistics.median(t[0] / o[0] for o, t in rounds)
        mine, peer = (statistics.median(r[i][0] for r in rounds) for i in (0, 1))
        memory = f"{max(r[0][1] for r in rounds):.0f} / {max(r[1][1] for r in rounds):.0f}"
        print(f"| {name} | {threads} | {mine:.1f} | {peer:.1f} | {ratio:.2f}× | {memory} |", flush=True)
