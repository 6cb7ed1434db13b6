"""Compares pauc with PyTorch on the same GPU, alternately. Prints Markdown tables of medians and ratios.

    cargo build --release -p pauc-cli --features cuda
    cargo bench -p pauc-losses --features cuda --bench terms --no-run
    python benches/compare_cuda.py [--only steps|terms|clusters|errors] [--seconds 3]

Needs torch, torchvision and numpy in the Python that runs it. PyTorch trains eagerly, channels last, with cuDNN's
benchmark mode. Its images are on the GPU; pauc uploads its images in every step, as a run does.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy
import torch
from torch.nn import functional as F

import torch_encoder

ROOT = pathlib.Path(__file__).resolve().parent.parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--pauc", default=ROOT / "target" / "release" / "pauc-cli", help="the pauc-cli binary")
parser.add_argument("--terms", help="the benchmark binary of the terms; by default found with cargo")
parser.add_argument("--device", default="cuda:0")
parser.add_argument("--seconds", type=float, default=3)
parser.add_argument("--only", nargs="+", default=["steps", "terms", "clusters", "errors"])
options = parser.parse_args()

STEPS = [
    # net, stem, batch, size, precision
    ("resnet50", "imagenet", 128, 224, "tf32"),
    ("resnet50", "imagenet", 128, 224, "bf16"),
    ("resnet18", "small", 512, 32, "f32"),
    ("resnet18", "small", 512, 32, "tf32"),
    ("resnet18", "small", 512, 32, "bf16"),
]
NAMES = {"f32": "F32", "tf32": "Tf32", "bf16": "Bf16"}


def lines(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def step(net, stem, batch, size, precision):
    encoder = f"{net.replace('resnet', 'ResNet')}(stem: {'Small' if stem == 'small' else 'ImageNet'})"
    [ours] = lines(options.pauc, "bench", "--device", options.device, "--encoder", encoder, "--batch", batch, "--size", size,
                   "--seconds", options.seconds, "--json", "--set", f"train.cuda.precision={NAMES[precision]}")
    asked = ["--net", net, "--stem", stem, "--batch", batch, "--size", size, "--precision", precision,
             "--device", options.device, "--seconds", options.seconds]
    theirs = torch_encoder.measure(torch_encoder.arguments().parse_args([str(a) for a in asked]), channels_last=True)
    torch.cuda.empty_cache()
    return ours["step_ms_median"], theirs["step_ms_median"], theirs["device_memory_mib_max"]


def terms():
    """The benchmark's name of each measurement, and its implementation in PyTorch."""
    device, rows = options.device, 1024
    torch.backends.cuda.matmul.allow_tf32 = False
    views = torch.randn(rows, 128, device=device, requires_grad=True)
    bank = F.normalize(torch.randn(65536, 128, device=device), dim=1)
    concentration = 0.15 + 0.1 * torch.rand(65536, device=device)
    own = torch.randint(0, 65536, (rows,), device=device)
    keys = F.normalize(torch.randn(rows, 128, device=device), dim=1)
    zeros = torch.zeros(rows, dtype=torch.long, device=device)
    pairs = torch.randn(512, 128, device=device, requires_grad=True)

    def proto_nce():
        return F.cross_entropy(F.normalize(views, dim=1) @ bank.T / concentration, own)

    def queue():
        q = F.normalize(views, dim=1)
        logits = torch.cat([(q * keys).sum(1, keepdim=True), q @ bank.T], 1) / 0.2
        return F.cross_entropy(logits, zeros)

    cases = {
        "ProtoNCE 1024x128, 65536 prototypes": (proto_nce, views),
        "InfoNCE 1024x128, queue 65536": (queue, views),
        "InfoNCE two-sided 512x128": (lambda: torch_encoder.nt_xent(pairs), pairs),
    }
    for name, (loss, leaf) in cases.items():
        def once():
            [gradient] = torch.autograd.grad(loss(), leaf)
            # As in the benchmark, the gradient is copied to the host.
            gradient.cpu()

        for _ in range(5):
            once()
        times, began = [], time.perf_counter()
        while len(times) < 5 or time.perf_counter() - began < options.seconds:
            start = time.perf_counter()
            once()
            times.append((time.perf_counter() - start) * 1e3)
        yield name, statistics.median(times)


def parts(x):
    """Splits numbers as pauc does: the nearest number with 11 significant bits, and the remainder."""
    upper = ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
    return upper, x - upper


def errors(channels, size, batch):
    """Relative errors of filter gradients against f64: in f32, in TF32, and as in pauc from split operands and fp16."""
    torch.manual_seed(0)
    shape = (batch, channels, size, size)
    x = torch.relu(torch.randn(shape, device=options.device))
    dy = torch.randn(shape, device=options.device) * torch.exp(torch.randn(batch, channels, 1, 1, device=options.device)) * 1e-6
    x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))

    def gradient(x, dy):
        return torch.nn.grad.conv2d_weight(x, [channels, channels, 3, 3], dy, padding=1)

    want = gradient(x.double(), dy.double())

    def off(found):
        return ((found.double() - want).norm() / want.norm()).item()

    found = []
    for tf32 in [False, True]:
        torch.backends.cudnn.allow_tf32 = tf32
        found.append(off(gradient(x, dy)))
    (xu, xl), (gu, gl) = parts(x), parts(dy)
    found.append(off(gradient(xu, gl) + gradient(xl, gu) + gradient(xu, gu)))
    # Scales the largest element to between 8 and 16, and divides by about the square root of the number of
    # pixels in the sum.
    up = 2.0 ** (3 - math.floor(math.log2(dy.abs().max().item())))
    root = 2.0 ** -math.ceil(math.log2(batch * size * size) / 2)
    found.append(off(gradient(x.half(), (dy * up * root).half()).double() / up / root))
    return found


def proto_nce_error():
    """The relative error of the gradient of PyTorch's ProtoNCE in f32 against f64."""
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = torch.randn(1024, 128, device=options.device)
    bank = F.normalize(torch.randn(65536, 128, device=options.device), dim=1)
    own = torch.randint(0, 65536, (1024,), device=options.device)
    concentration = 0.15 + 0.1 * torch.rand(65536, device=options.device)

    def gradient(rows, bank, concentration):
        rows = rows.clone().requires_grad_()
        loss = F.cross_entropy(F.normalize(rows, dim=1) @ bank.T / concentration, own)
        return torch.autograd.grad(loss, rows)[0]

    want = gradient(rows.double(), bank.double(), concentration.double())
    return ((gradient(rows, bank, concentration).double() - want).norm() / want.norm()).item()


def bench():
    if options.terms:
        return options.terms
    made = lines("cargo", "bench", "-p", "pauc-losses", "--features", "cuda", "--bench", "terms", "--no-run", "--message-format=json")
    return next(m["executable"] for m in made if m.get("executable") and m["target"]["name"] == "terms")


print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}\n")
if "steps" in options.only:
    print("| training step | precision | pauc, ms | PyTorch, ms | ratio |\n|---|---|---|---|---|", flush=True)
    for net, stem, batch, size, precision in STEPS:
        ours, theirs, _ = step(net, stem, batch, size, precision)
        name = f"{net.replace('resnet', 'ResNet-')}, {batch} × {size} px"
        print(f"| {name} | {precision} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f}× |", flush=True)
if "terms" in options.only:
    print("\n| term, forward and backward | pauc, ms | PyTorch, ms | ratio |\n|---|---|---|---|", flush=True)
    ours = {m["what"]: m["ms_median"] for m in lines(bench(), options.device)}
    for name, theirs in terms():
        print(f"| {name} | {ours[name]:.2f} | {theirs:.2f} | {theirs / ours[name]:.2f}× |", flush=True)
if "clusters" in options.only:
    print("\n| k-means, 20 iterations | initialization | seconds | inertia |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "rows.npy"
        rows = torch.randn(1_280_000, 128, device=options.device)
        numpy.save(file, F.normalize(rows, dim=1).cpu().numpy())
        for init in ["Random", "KMeansPlusPlus"]:
            with_ = f"KMeans(k: [25000], iterations: 20, init: {init})"
            [found] = lines(options.pauc, "cluster", file, "--with", with_, "--device", options.device, "--json")
            print(f"| 1.28 M × 128, k 25 000 | {init} | {found['seconds']:.1f} | {found['levels'][0]['objective']:.0f} |", flush=True)
if "errors" in options.only:
    print("\n| gradient of a 3×3 filter, relative error against f64 | f32 | TF32 | split operands | fp16 |\n|---|---|---|---|---|", flush=True)
    for channels, size, batch in [(64, 32, 64), (256, 8, 256)]:
        print(f"| {channels} channels, {batch} × {size} px |", *(f"{e:.1e} |" for e in errors(channels, size, batch)), flush=True)
    print(f"\nPyTorch's ProtoNCE in f32, relative error of the gradient: {proto_nce_error():.1e}", flush=True)
