"""Compares the softmax terms of pauc with their usual form in PyTorch, alternately, forward and backward in fp32.

    cargo bench -p pauc-losses --bench terms --no-run && python benches/compare_terms.py [--rounds 3] [--threads 1 2]

Needs torch in the Python that runs it. Prints a Markdown table: medians over the rounds of each program's median
time, and the memory of each beyond its inputs. Like pauc, PyTorch runs in a new process for each measurement.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--seconds", type=float, default=4)
parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
parser.add_argument("--peer", help=argparse.SUPPRESS)  # the measurement that this process makes with PyTorch
options = parser.parse_args()

# The benchmark's name of each measurement; its implementation in PyTorch is below.
CASES = ["InfoNCE two-sided 512x128", "ProtoNCE 256x128, 65536 prototypes"]


def peer(case):
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(options.threads[0])
    torch.manual_seed(0)
    if case.startswith("InfoNCE"):
        views = torch.randn(512, 128, requires_grad=True)
        other = torch.arange(512).roll(256)

        def loss():
            z = F.normalize(views, dim=1)
            return F.cross_entropy((z @ z.T / 0.2).fill_diagonal_(float("-inf")), other)
    else:
        views = torch.randn(256, 128, requires_grad=True)
        bank = F.normalize(torch.randn(65536, 128), dim=1)
        concentration = 0.15 + 0.1 * torch.rand(65536)
        own = torch.randint(0, 65536, (256,))

        def loss():
            return F.cross_entropy(F.normalize(views, dim=1) @ bank.T / concentration, own)

    def resident():
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

    before = resident()
    for _ in range(3):
        torch.autograd.grad(loss(), views)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times, began = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - began < options.seconds:
        start = time.perf_counter()
        torch.autograd.grad(loss(), views)
        times.append((time.perf_counter() - start) * 1e3)
    print(json.dumps({"ms_median": statistics.median(times), "peak_mib": peak - before}))


def run(command, threads):
    environment = {"RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    out = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    [line] = [json.loads(line) for line in out.stdout.splitlines() if line.startswith("{")]
    return line["ms_median"], line["peak_mib"]


def bench():
    out = subprocess.run(["cargo", "bench", "-p", "pauc-losses", "--bench", "terms", "--no-run", "--message-format=json"],
                         cwd=ROOT, capture_output=True, text=True, check=True).stdout
    made = [json.loads(line) for line in out.splitlines()]
    return next(m["executable"] for m in made if m.get("executable") and m["target"]["name"] == "terms")


if options.peer:
    sys.exit(peer(options.peer))
binary = bench()
print("| term | threads | pauc, ms | PyTorch, ms | ratio | memory beyond inputs, MiB |")
print("|---|---|---|---|---|---|")
for case in CASES:
    for threads in options.threads:
        rounds = []
        for _ in range(options.rounds):
            ours = run([binary, str(threads), case], threads)
            theirs = run([sys.executable, __file__, "--peer", case, "--threads", str(threads),
                          "--seconds", str(options.seconds)], threads)
            rounds.append((ours, theirs))
        ratio = statistics.median(t[0] / o[0] for o, t in rounds)
        ours, theirs = (statistics.median(r[i][0] for r in rounds) for i in (0, 1))
        memory = " / ".join(f"{max(r[i][1] for r in rounds):.0f}" for i in (0, 1))
        print(f"| {case} | {threads} | {ours:.2f} | {theirs:.2f} | {ratio:.1f}× | {memory} |", flush=True)
