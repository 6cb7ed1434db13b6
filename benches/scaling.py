"""Measures how the time of k-means scales. Prints a table and writes a log-log plot.

    cargo build --release -p pauc-cli && python benches/scaling.py FEATURES.npy OUT.svg [--threads 1]

Fits KMeans with 10 iterations on the first rows of the file (float32, at least 200 000 of 128) for several numbers of rows,
prototypes and dimensions. Each time is the fastest of three runs.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("features", type=pathlib.Path)
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--pauc", type=pathlib.Path, default=HERE.parent / "target" / "release" / "pauc-cli")
options = parser.parse_args()

N, K, D, ITERATIONS = 50_000, 1000, 128, 10
SERIES = {
    "N": [(n, K, D) for n in (12_500, 25_000, 50_000, 100_000, 200_000)],
    "K": [(N, k, D) for k in (250, 500, 1000, 2000, 4000)],
    "D": [(N, K, d) for d in (32, 64, 128)],
}
COLOURS = {"N": "#0b6fa4", "K": "#d1570a", "D": "#0a8f6c"}
features = np.load(options.features, mmap_mode="r")


def seconds(n, k, d):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x.npy"
        np.save(path, np.ascontiguousarray(features[:n, :d]))
        command = [options.pauc, "cluster", path, "--threads", options.threads, "--json", "--with",
                   f"KMeans(k: [{k}], iterations: {ITERATIONS}, init: Random)"]
        runs = [subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True) for _ in range(3)]
        return min(json.loads(run.stdout)["seconds"] for run in runs)


measured = {}
for series in SERIES.values():
    for case in series:
        if case not in measured:
            measured[case] = seconds(*case)
print("| N | K | D | seconds | ps per row, prototype, dimension and pass |\n|---|---|---|---|---|")
for (n, k, d), s in sorted(measured.items()):
    print(f"| {n} | {k} | {d} | {s:.3f} | {s / (n * k * d * (ITERATIONS + 1)) * 1e12:.1f} |")

# Both axes are logarithmic with equal decades: proportional growth has the slope of the gray line.
work = {case: case[0] * case[1] * case[2] * (ITERATIONS + 1) for case in measured}
low_x, high_x = np.log10(min(work.values())) - 0.15, np.log10(max(work.values())) + 0.15
low_y = np.log10(min(measured.values())) - 0.2
decade = 460 / (high_x - low_x)
high_y = np.log10(max(measured.values())) + 0.25
height = decade * (high_y - low_y)
LEFT, TOP = 70, 40


def at(x, y):
    return LEFT + decade * (np.log10(x) - low_x), TOP + height - decade * (np.log10(y) - low_y)


svg = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 {TOP + height + 60:.0f}" font-family="sans-serif" '
       f'font-size="12" fill="#333">', '<rect width="100%" height="100%" fill="white"/>']
for exponent in np.arange(np.ceil(low_x * 2) / 2, high_x, 0.5):
    x, _ = at(10**exponent, 1)
    svg.append(f'<path d="M{x:.1f} {TOP}V{TOP + height:.1f}" stroke="#e4e4e4"/>')
    svg.append(f'<text x="{x:.1f}" y="{TOP + height + 16:.1f}" text-anchor="middle">{10**exponent:.1e}</text>')
for s in (0.03, 0.1, 0.3, 1, 3, 10, 30):
    if low_y < np.log10(s) < high_y:
        _, y = at(1, s)
        svg.append(f'<path d="M{LEFT} {y:.1f}H{LEFT + 460}" stroke="#e4e4e4"/>')
        svg.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{s:g} s</text>')
middle = (N, K, D)
slope = measured[middle] / work[middle]
ends = [max(10**low_x, 10**low_y / slope), min(10**high_x, 10**high_y / slope)]
line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(w, w * slope) for w in ends))
svg.append(f'<polyline points="{line}" fill="none" stroke="#999" stroke-dasharray="5 4"/>')
for i, (name, series) in enumerate(SERIES.items()):
    points = [at(work[case], measured[case]) for case in series]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    svg.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS[name]}" stroke-width="2"/>')
    svg += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{COLOURS[name]}"/>' for x, y in points]
    values = ", ".join(f"{case['NKD'.index(name)]:,}".replace(",", " ") for case in series)
    svg.append(f'<text x="{LEFT + 12}" y="{TOP + 18 + 17 * i}" fill="{COLOURS[name]}">{name}: {values}</text>')
svg.append(f'<text x="{LEFT + 12}" y="{TOP + 18 + 17 * len(SERIES)}" fill="#777">dashed: proportional to N·K·D</text>')
svg.append(f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">k-means, {ITERATIONS} iterations, '
           f'{options.threads} thread{"s" * (options.threads > 1)}: seconds of a fit</text>')
svg.append(f'<text x="{LEFT + 230}" y="{TOP + height + 42:.1f}" text-anchor="middle">N·K·D·(iterations + 1)</text></svg>')
options.out.write_text("\n".join(svg) + "\n")
