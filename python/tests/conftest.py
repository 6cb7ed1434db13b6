"""Runs that several tests read. The tests use the installed package, never the source folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest

import pauc

RECIPE = """Recipe(
    name: "tiny",
    data: Npy(images: "IMAGES", labels: "LABELS", test_images: "IMAGES", test_labels: "LABELS"),
    views: [(count: 2, ops: [RandomResizedCrop(size: SIDE, scale: (0.5, 1.0)), HorizontalFlip(p: 0.5)])],
    encoder: ConvNet(channels: [4, 6], grid: 2),
    projector: Mlp(dims: [8]),
    objective: [(term: InfoNce(temperature: 0.2))],
    optimizer: Sgd(lr: 0.05),
    train: (epochs: 2, batch: 16, log_every: 1, seed: 3),
    probes: [Knn(k: 5, every: Epochs(1))],
    baselines: [RawPixels],
)
"""


def write_images(folder: Path, side: int, channels: int, count: int = 48) -> str:
    """Writes noise with a stripe that depends on the class, and returns a recipe for it."""
    rng = np.random.default_rng(5)
    labels = np.arange(count) % 3
    images = rng.integers(0, 200, (count, side, side, channels), dtype=np.uint8)
    for image, label in zip(images, labels):
        image[label :: 3] += np.uint8(55)
    np.save(folder / "images.npy", images[..., 0] if channels == 1 else images)
    np.save(folder / "labels.npy", labels.astype(np.int64))
    recipe = RECIPE.replace("IMAGES", str(folder / "images.npy")).replace("LABELS", str(folder / "labels.npy"))
    return recipe.replace("SIDE", str(side))


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a recipe that trains in a moment."""
    return write_images(tmp_path_factory.mktemp("images"), 15, 3)


@pytest.fixture(scope="session")
def trained(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> pauc.Run:
    """A finished run."""
    return pauc.run(recipe, out=tmp_path_factory.mktemp("trained"), log=None)


@pytest.fixture
def cli() -> Callable[..., str]:
    """Runs `pauc-cli` and returns its output."""
    import subprocess

    def call(*arguments: Any, **options: Dict[str, Any]) -> str:
        done = subprocess.run([pauc.binary(), *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call
