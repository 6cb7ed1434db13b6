"""Encoders of runs as PyTorch modules."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Union

from . import _ron
from ._errors import DataError, RecipeError, missing_package
from ._runs import recipe_of
from ._safetensors import TensorFile

if TYPE_CHECKING:
    import torch

    from ._networks import Encoder, ImageInput


def encoder(
    run: Union["os.PathLike[str]", str],
    *,
    checkpoint: str = "last",
    momentum: bool = False,
    network: Optional["torch.nn.Module"] = None,
) -> "Encoder":
    """Returns a run's encoder as a PyTorch module, in evaluation mode.

    The module maps images to features, normalization included. On the images of the run's evaluation view,
    the features are those of `pauc-cli embed`. Its parameters have the names that `pauc-cli export` writes.

    Args:
        run: A run, its folder, a checkpoint, or a file that `pauc-cli export` wrote.
        checkpoint: The checkpoint of a run: `last`, `best`, or the name of another one, such as
            `step-00001000`.
        momentum: Use the momentum encoder instead of the online encoder. An exported file has only one.
        network: A module for an encoder that is not pauc's own. It takes normalized images, and its
            parameters have the names of the encoder's.

    Raises:
        DataError: If the file is missing, damaged, or does not fit the encoder.
        RecipeError: If this package has no module for the encoder, and `network` is not given.
        MissingPackage: If PyTorch is not installed.
    """
    try:
        from . import _networks
    except ImportError as e:
        raise missing_package("torch", "encoder") from e
    path = Path(run)
    if path.is_dir():
        if not (path / "run.json").is_file() and not (path / "checkpoints").is_dir():
            raise DataError(f"{path}: not a run (no run.json)")
        path = path / "checkpoints" / f"{checkpoint}.safetensors"
    with TensorFile(path) as file:
        shape = _input(file, _networks.ImageInput)
        if network is not None:
            module: "Encoder" = _networks.Wrapped(shape, network)
            _load(network, file, momentum)
        else:
            module = _build(_component(file), shape, path, _networks.BUILDERS)
            _load(module, file, momentum)
    module.eval()
    return module


def _input(file: TensorFile, kind: Any) -> "ImageInput":
    text = file.metadata.get("input")
    if text is None:
        raise DataError(
            f"{file.path}: its metadata has no `input`, the images of the network: it was not written by pauc, "
            "or by an older version; `pauc-cli resume` writes a new checkpoint of an unfinished run"
        )
    try:
        found = json.loads(text)
        shape: "ImageInput" = kind(**found)
        is_sound = len(shape.mean) == len(shape.deviation) == shape.channels
    except (TypeError, ValueError) as e:
        raise DataError(f"{file.path}: metadata `input`: {e}") from e
    if not is_sound:
        raise DataError(f"{file.path}: metadata `input`: one mean and deviation per channel, got {text}")
    return shape


def _component(file: TensorFile) -> _ron.Component:
    """Returns the encoder as the recipe in a checkpoint or an exported file has it."""
    place = f"{file.path}: metadata"
    if "encoder" in file.metadata:
        try:
            found = _ron.loads(file.metadata["encoder"])
        except _ron.RonError as e:
            raise DataError(f"{place} `encoder`: {e}") from e
    else:
        recipe = file.metadata.get("resolved_recipe")
        if recipe is None:
            raise DataError(f"{place}: neither `encoder` nor `resolved_recipe`; is it a file of pauc's?")
        found = recipe_of(recipe, f"{place} `resolved_recipe`").get("encoder")
    if not isinstance(found, _ron.Component):
        raise DataError(f"{place}: `{found}` is not an encoder")
    return found


def _build(component: _ron.Component, shape: "ImageInput", path: Path, builders: Mapping[str, Any]) -> "Encoder":
    build = builders.get(component.name)
    if build is None:
        raise RecipeError(
            f"{path}: this package has no module for the encoder `{component.name}`, only for "
            f"{', '.join(builders)}; pass one as `network`"
        )
    try:
        module: "Encoder" = build(component, shape)
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise DataError(f"{path}: cannot build {component!r}: {e!r}") from e
    return module


def _load(target: "torch.nn.Module", file: TensorFile, momentum: bool) -> None:
    """Loads the encoder's tensors into a module that has exactly these."""
    import torch

    is_checkpoint = any(name.startswith("encoder.") for name in file.names())
    prefix = ("momentum.encoder." if momentum else "encoder.") if is_checkpoint else ""
    if momentum and not is_checkpoint:
        raise DataError(f"{file.path}: not a checkpoint; export the momentum encoder with `--momentum`")
    names = [name for name in file.names() if name.startswith(prefix)]
    if not names:
        raise DataError(f"{file.path}: no tensor starts with `{prefix}`; the run has no momentum encoder")
    tensors: Dict[str, torch.Tensor] = {name[len(prefix) :]: torch.from_numpy(file.read(name)) for name in names}
    wanted = target.state_dict()
    # PyTorch's counters of batches, which checkpoints do not have.
    counters = {name for name in wanted if name.endswith("num_batches_tracked")} - tensors.keys()
    missing, unknown = wanted.keys() - tensors.keys() - counters, tensors.keys() - wanted.keys()
    if missing or unknown:
        raise DataError(
            f"{file.path}: not the weights of this encoder; missing: {_listed(missing)}; unknown: {_listed(unknown)}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            expected, got = list(wanted[name].shape), list(tensor.shape)
            raise DataError(f"{file.path}: tensor `{name}` has the shape {got}, the encoder takes {expected}")
    target.load_state_dict(tensors, strict=False)


def _listed(names: Any) -> str:
    first = sorted(names)[:3]
    return ", ".join(f"`{name}`" for name in first) + (" …" if len(names) > 3 else "") if first else "none"
