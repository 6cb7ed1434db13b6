"""Writes features for benchmarks of clusterers: a `.npy` file of float32 unit rows with 128 columns.

    python benches/features.py sphere OUT.npy [--rows 1000000]
    python benches/features.py directions OUT.npy [--rows 1000000]
    python benches/features.py fashion OUT.npy [--rows 1000000] --data FOLDER

sphere      uniform on the unit sphere: no structure (a smaller file equals the first rows of a larger one)
directions  20 000 random directions plus noise, standard deviation 0.7 against 1 per coordinate: fine structure only
fashion     embeddings of random views of Fashion-MNIST's training images, from a small convolutional network trained
            on them with InfoNCE for a few hundred steps; FOLDER has train-images-idx3-ubyte.gz. Needs torch.
"""

import argparse
import gzip
import pathlib

import numpy as np

DIM = 128

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("kind", choices=["sphere", "directions", "fashion"])
parser.add_argument("out", type=pathlib.Path)
parser.add_argument("--rows", type=int, default=1_000_000)
parser.add_argument("--data", type=pathlib.Path)
parser.add_argument("--steps", type=int, default=300)
options = parser.parse_args()


def write(parts):
    """Writes rows in parts, since the file may be larger than memory."""
    out = np.lib.format.open_memmap(options.out, "w+", "float32", (options.rows, DIM))
    at = 0
    for part in parts:
        part = part[: options.rows - at].astype("float32")
        out[at : at + len(part)] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
        at += len(part)
        if at == options.rows:
            return


def sphere():
    rng = np.random.default_rng(0)
    while True:
        yield rng.normal(size=(50_000, DIM))


def directions():
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(20_000, DIM)).astype("float32")
    while True:
        noise = rng.normal(size=(50_000, DIM)).astype("float32")
        yield centers[rng.integers(len(centers), size=len(noise))] + 0.7 * noise


def fashion():
    import torch
    import torch.nn.functional as F
    from torch import nn

    torch.manual_seed(0)
    raw = gzip.decompress((options.data / "train-images-idx3-ubyte.gz").read_bytes())
    images = torch.from_numpy(np.frombuffer(raw, "u1", offset=16).reshape(-1, 1, 28, 28).copy()).float() / 255 - 0.3

    def views(x):
        """A random affine crop, flip and contrast of each image."""
        n = len(x)
        scale, flip = torch.empty(n).uniform_(0.55, 1), torch.randint(0, 2, (n,)) * 2.0 - 1
        shift = (torch.rand(n, 2) * 2 - 1) * (1 - scale)[:, None]
        zero = torch.zeros(n)
        rows = torch.stack([scale * flip, zero, shift[:, 0], zero, scale, shift[:, 1]], 1).view(n, 2, 3)
        grid = F.affine_grid(rows, list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False) * torch.empty(n, 1, 1, 1).uniform_(0.6, 1.4)

    def block(a, b):
        return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())

    net = nn.Sequential(block(1, 16), block(16, 32), block(32, 64), nn.Flatten(), nn.Linear(64 * 16, DIM))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    for step in range(options.steps):
        x = images[torch.randint(len(images), (256,))]
        z = F.normalize(net(torch.cat([views(x), views(x)])), dim=1)
        logits = (z @ z.T / 0.2).fill_diagonal_(float("-inf"))
        loss = F.cross_entropy(logits, torch.arange(512).roll(256))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"InfoNCE {loss.item():.3f} after {options.steps} steps")
    net.eval()
    with torch.no_grad():
        while True:
            for x in images.split(5000):
                yield net(views(x)).numpy()


write({"sphere": sphere, "directions": directions, "fashion": fashion}[options.kind]())
