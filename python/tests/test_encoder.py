"""Modules against the features that `pauc-cli embed` writes for the same images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

import pauc
from conftest import write_images

torch = pytest.importorskip("torch")


def _images(folder: Path) -> Any:
    """Returns the images of `write_images`, shape (N, C, H, W), as bytes."""
    images = np.load(folder / "images.npy")
    return torch.from_numpy(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2).copy())


def _features(run: pauc.Run, cli: Callable[..., str], *options: Any) -> Any:
    file = run.path / "features.safetensors"
    cli("embed", run.path, "--out", file, *options)
    return pauc.embeddings(file).vectors


CASES = {
    "a small stem and another width": ("ResNet18(stem: Small, width: 6)", 15, 3, 48),
    "an ImageNet stem on gray images": ("ResNet34(stem: ImageNet, width: 4)", 33, 1, 32),
    "bottlenecks": ("ResNet50(stem: Small, width: 4)", 12, 3, 128),
    "bottlenecks with an ImageNet stem": ("ResNet101(stem: ImageNet, width: 2)", 40, 3, 64),
    "stages of depthwise convolutions": (
        "ConvNeXt(size: Custom(depths: [1, 2], widths: [8, 10]), patch: 2)", 13, 3, 10,
    ),
    "perceptrons as convolutions, gray": ("ConvNeXt(size: Atto, patch: 1)", 9, 1, 320),
    "wide bottlenecks": ("WideResNet50(stem: Small, width: 4)", 12, 3, 128),
    "deep wide bottlenecks": ("WideResNet101(stem: ImageNet, width: 2)", 40, 3, 64),
    "a wide CIFAR network": ("WideResNet(depth: 16, widen: 1)", 13, 3, 64),
    "another wide CIFAR network": ("WideResNet(depth: 10, widen: 2)", 12, 1, 128),
    "a CIFAR network": ("ResNet20(width: 5)", 16, 3, 20),
    "another CIFAR network": ("ResNet32(width: 4)", 13, 3, 16),
    "a deep CIFAR network": ("ResNet56(width: 4)", 9, 3, 16),
    "cells of different sizes": ("ConvNet(channels: [4, 6, 5], grid: 2)", 17, 3, 20),
    "one cell, gray": ("ConvNet(channels: [4, 6])", 14, 1, 6),
    "a perceptron": ("MlpEncoder(dims: [16, 9])", 7, 3, 9),
    "a class token": ("VisionTransformer(size: Custom(width: 12, heads: 3), patch: 4, depth: 2)", 12, 3, 12),
    "the mean of the tokens": (
        "VisionTransformer(size: Custom(width: 10, heads: 2), patch: 3, depth: 2, mlp_ratio: 3, pool: Mean)", 9, 1, 10,
    ),
    "registers and scaled layers": (
        "VisionTransformer(size: Custom(width: 12, heads: 3), patch: 4, depth: 2, layer_scale: 0.3, registers: 2, "
        "prefix_positions: false)", 12, 3, 12,
    ),
    "gated perceptrons": (
        "VisionTransformer(size: Custom(width: 10, heads: 2), patch: 3, depth: 2, mlp: SwiGlu, registers: 1, pool: Mean, "
        "drop_path: 0.2)", 9, 1, 10,
    ),
    "a tiny transformer": ("VisionTransformer(patch: 8, depth: 2)", 16, 3, 192),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_embed(case: str, cli: Callable[..., str], tmp_path: Path) -> None:
    encoder, side, channels, width = CASES[case]
    recipe = write_images(tmp_path, side, channels).replace("ConvNet(channels: [4, 6], grid: 2)", encoder)
    run = pauc.run(recipe, set={"probes": [], "baselines": []}, out=tmp_path / "runs", log=None)
    network = pauc.encoder(run)
    assert not network.training and network.feature_dim == width
    with torch.no_grad():
        images = _images(tmp_path)
        found = network(images).numpy()
        assert np.array_equal(network(images.float() / 255).numpy(), found)
    expected = _features(run, cli)
    assert expected.shape == (48, width) and np.abs(expected).max() > 0.1
    # Relative to the largest feature: both sum in single precision, in different orders.
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> pauc.Run:
    """A run with a momentum encoder and two checkpoints."""
    folder = tmp_path_factory.mktemp("kept")
    changes = {
        "momentum_encoder": "Ema(momentum: 0.5)",
        "train.checkpoint_every": "Epochs(1)",
        "train.keep": '(last: 2, best: (metric: "knn/cos/k5/t0.07"))',
    }
    return pauc.run(write_images(folder, 15, 3), set=changes, out=folder / "runs", log=None)


def test_every_checkpoint_and_export_can_be_loaded(kept: pauc.Run, cli: Callable[..., str]) -> None:
    images = _images(kept.path.parent.parent.parent)
    checkpoints = kept.path / "checkpoints"
    steps = sorted(checkpoints.glob("step-*.safetensors"))
    assert len(steps) == 2

    def of(source: Any, **options: Any) -> Any:
        with torch.no_grad():
            return pauc.encoder(source, **options)(images).numpy()

    last, first, momentum = of(kept), of(kept, checkpoint=steps[0].stem), of(kept, momentum=True)
    assert np.array_equal(last, of(checkpoints / "last.safetensors"))
    assert np.array_equal(last, of(kept, checkpoint=steps[1].stem))
    assert not np.array_equal(last, first) and not np.array_equal(last, momentum)
    best = of(kept, checkpoint="best")
    assert np.array_equal(best, first) or np.array_equal(best, last)
    for found, options in (
        (first, ["--checkpoint", steps[0]]),
        (momentum, ["--momentum"]),
    ):
        assert np.abs(found - _features(kept, cli, *options)).max() <= 1e-5
    for found, options in ((last, []), (momentum, ["--momentum"])):
        file = kept.path / "exported.safetensors"
        cli("export", kept.path, "--out", file, *options)
        assert np.array_equal(of(file), found)


def test_parameters_have_the_names_of_the_exported_file(kept: pauc.Run, cli: Callable[..., str]) -> None:
    file = kept.path / "exported.safetensors"
    cli("export", kept.path, "--out", file)
    with pauc._safetensors.TensorFile(file) as exported:
        tensors = {name: torch.from_numpy(exported.read(name)) for name in exported.names()}
    network = pauc.encoder(kept)
    assert set(network.state_dict()) == set(tensors)
    network.load_state_dict(tensors, strict=True)


def test_a_module_of_ones_own_gets_weights_and_normalization(kept: pauc.Run) -> None:
    images = _images(kept.path.parent.parent.parent)
    from pauc import _networks

    original = pauc.encoder(kept)
    mine = _networks.ConvNet(original.input, [4, 6], 2)

    module: Any = torch.nn.Module

    class Mine(module):
        def __init__(self) -> None:
            super().__init__()
            for name, module in mine.named_children():
                self.add_module(name, module)

        def forward(self, x: Any) -> Any:
            return mine.features(x)

    with torch.no_grad():
        assert torch.equal(pauc.encoder(kept, network=Mine())(images), original(images))


def test_gradients_reach_the_images_and_the_weights(kept: pauc.Run) -> None:
    images = (_images(kept.path.parent.parent.parent)[:4].float() / 255).requires_grad_()
    network = pauc.encoder(kept).train()
    network(images).square().sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0
    assert all(p.grad is not None for p in network.parameters())


def test_images_of_a_wrong_shape_are_refused(kept: pauc.Run) -> None:
    network = pauc.encoder(kept)
    for shape in ((15, 15, 3), (2, 15, 15, 3), (2, 1, 15, 15)):
        with pytest.raises(ValueError, match=r"expected images of shape \(batch, 3, height, width\)"):
            network(torch.zeros(shape))


def _copy(kept: pauc.Run, to: Path, change: Callable[[Any], None]) -> Path:
    """Copies the last checkpoint with a changed header of the same length."""
    content = (kept.path / "checkpoints" / "last.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    to.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return to


def test_files_that_do_not_fit_are_refused_by_name(kept: pauc.Run, tmp_path: Path) -> None:
    def metadata(**changes: Any) -> Callable[[Any], None]:
        return lambda header: header["__metadata__"].update(changes)

    def drop(name: str) -> Callable[[Any], None]:
        return lambda header: header.pop(name)

    recipe = '(encoder: ConvNet(channels: [4, 7], grid: 2, convolution: Auto))'
    cases = [
        (lambda header: header["__metadata__"].pop("input"), "no `input`"),
        (metadata(input='{"height": 1}'), "metadata `input`"),
        (metadata(input='{"height":15,"width":15,"channels":3,"mean":[0],"deviation":[1]}'), "one mean and deviation"),
        (metadata(resolved_recipe="(encoder"), "not a recipe: line 1"),
        (metadata(resolved_recipe="(encoder: Mine())"), "`Mine`.*pass one as `network`"),
        (metadata(resolved_recipe="(encoder: ResNet18())"), "cannot build"),
        (metadata(resolved_recipe=recipe), r"`bn2\.bias` has the shape \[6\]|has the shape"),
        (drop("encoder.conv2.weight"), "missing: `conv2.weight`; unknown: none"),
    ]
    for i, (change, message) in enumerate(cases):
        path = _copy(kept, tmp_path / f"{i}.safetensors", change)
        with pytest.raises(pauc.PaucError, match=message) as caught:
            pauc.encoder(path)
        assert f"{i}.safetensors" in str(caught.value)


def test_missing_files_are_named(kept: pauc.Run, trained: pauc.Run, tmp_path: Path) -> None:
    with pytest.raises(pauc.DataError, match="best2.safetensors"):
        pauc.encoder(kept, checkpoint="best2")
    with pytest.raises(pauc.DataError, match="no momentum encoder"):
        pauc.encoder(trained, momentum=True)
    shutil.copytree(trained.path, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "last.safetensors").unlink()
    with pytest.raises(pauc.DataError, match="last.safetensors"):
        pauc.encoder(tmp_path / "run")
