"""Loads exported encoders in the programs that they are for, and compares features and weights with pauc's own.

    python tests/python/interop.py target/debug/pauc-cli [--torch]

Needs the packages in requirements.txt; with `--torch`, those in requirements-torch.txt too. The encoders come from real
runs on photographs of Fashion-MNIST, which are part of the repository. The Python on the page docs/src/interop.md runs
as well.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The largest difference between features, as a fraction of the largest feature.
TOLERANCE = 1e-5

# Name, encoder, whether images are RGB, whether timm has the encoder.
ENCODERS = [
    ("resnet18", "ResNet18()", True, True),
    ("resnet50", "ResNet50()", True, True),
    ("wide_resnet50", "WideResNet50()", True, True),
    ("convnext", "ConvNeXt(size: Atto, patch: 1, layer_scale: 0.5)", True, True),
    (
        "convnext_custom",
        "ConvNeXt(size: Custom(depths: [1, 1, 2, 1], widths: [16, 24, 32, 40]), patch: 3, layer_scale: 1)",
        False,
        True,
    ),
    ("wide_resnet", "WideResNet(depth: 10, widen: 1)", False, False),
    ("vit", "VisionTransformer(size: Tiny, patch: 7, depth: 2)", True, True),
    ("vit_mean", "VisionTransformer(size: Custom(width: 48, heads: 3), patch: 4, depth: 2, pool: Mean)", False, True),
    (
        "vit_registers",
        "VisionTransformer(size: Custom(width: 48, heads: 3), patch: 7, depth: 2, layer_scale: 0.1, registers: 4, "
        "prefix_positions: false)",
        True,
        True,
    ),
    ("vit_gated", "VisionTransformer(size: Custom(width: 48, heads: 3), patch: 7, depth: 2, mlp: SwiGlu)", False, True),
    ("resnet20", "ResNet20()", False, False),
    ("conv_net", "ConvNet(channels: [8, 16, 16], grid: 3)", False, False),
    ("mlp", "MlpEncoder(dims: [32, 16])", True, False),
]

# Models of timm that runs start from, the encoder, and how many times the photographs are enlarged. DINOv2's positions are
# resized from 37x37 to 8x8.
MODELS = [
    ("vit_tiny_patch16_224", "VisionTransformer(patch: 16)", 8),
    ("vit_small_patch14_dinov2", "VisionTransformer(size: Small, patch: 14, layer_scale: 1e-5)", 4),
    (
        "vit_small_patch14_reg4_dinov2",
        "VisionTransformer(size: Small, patch: 14, layer_scale: 1e-5, registers: 4, prefix_positions: false)",
        4,
    ),
    ("convnext_atto", "ConvNeXt(size: Atto)", 3),
    ("convnext_tiny", "ConvNeXt(size: Tiny)", 3),
    ("wide_resnet50_2", "WideResNet50()", 2),
]
# Features of models of timm agree within this fraction of the largest.
MODEL_TOLERANCE = 1e-4

RECIPE = """Recipe(
    name: "{name}",
    data: Npy(images: "{data}.npy"),
    views: [(count: 2, ops: [RandomResizedCrop(size: 28)])],
    encoder: {encoder},
    projector: Mlp(dims: [16, 8], batch_norm: true, last_batch_norm: true),
    objective: [(term: InfoNce(temperature: 0.2))],
    train: (epochs: 1, batch: 16),
)
"""


class Pauc:
    """The program, run in a folder."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder

    def __call__(self, *arguments):
        done = subprocess.run([self.program, *map(str, arguments)], cwd=self.folder, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def run(self, name, recipe, *changes):
        """Trains, and returns the folder of the run."""
        file = self.folder / f"{name}.ron"
        file.write_text(recipe)
        self("run", file, "--out", f"runs-{name}", *[part for change in changes for part in ("--set", change)])
        return next((self.folder / f"runs-{name}").glob("*/seed0"))


def photographs():
    """The first 96 images of the repository's part of Fashion-MNIST, (96, 28, 28)."""
    content = gzip.open(ROOT / "pauc-data/data/fashion-mini.idx.gz").read()
    return np.frombuffer(content, np.uint8, 96 * 28 * 28, 16).reshape(96, 28, 28)


def write_data(folder):
    """Writes 32 gray images, and 32 RGB images with a photograph in each channel. Returns both, channels first."""
    gray = photographs()[:32, None]
    rgb = photographs().reshape(32, 3, 28, 28)
    np.save(folder / "gray.npy", gray[:, 0])
    np.save(folder / "rgb.npy", np.ascontiguousarray(rgb.transpose(0, 2, 3, 1)))
    return {name: images.astype(np.float32) / 255 for name, images in [("gray", gray), ("rgb", rgb)]}


def assert_close(got, want, what, tolerance=TOLERANCE):
    assert got.shape == want.shape, f"{what}: {got.shape}, expected {want.shape}"
    off = float(np.abs(got - want).max() / np.abs(want).max())
    print(f"  {what}: off by {off:.1e} of the largest value")
    assert off <= tolerance, f"{what}: more than {tolerance}"


def check_onnx(pauc, name, run, images, embedded):
    """Checks an ONNX file by ONNX's checker, and its outputs for known images and for other sizes."""
    file = pauc.folder / f"{name}.onnx"
    pauc("export", run, "--out", file, "--projector")
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    features, embeddings = session.run(["features", "embeddings"], {"images": images})
    assert_close(features, embedded["features"], "features by ONNX Runtime")
    assert_close(embeddings, embedded["embeddings"], "embeddings by ONNX Runtime")
    assert_close(session.run(["features"], {"images": images[:1]})[0], embedded["features"][:1], "one image")
    if session.get_inputs()[0].shape[2] == "height":
        larger = np.pad(images[:2], ((0, 0), (0, 0), (0, 13), (0, 4)))
        assert session.run(["features"], {"images": larger})[0].shape == features[:2].shape
    unit = pauc.folder / f"{name}-unit.onnx"
    pauc("export", run, "--out", unit, "--normalize")
    session = onnxruntime.InferenceSession(unit, providers=["CPUExecutionProvider"])
    rows = session.run(None, {"images": images})[0]
    assert_close(np.linalg.norm(rows, axis=1), np.ones(len(rows), np.float32), "lengths of normalized features")


def check_folder(pauc, name, run):
    """Checks what a folder for timm says, without timm."""
    pauc("export", run, "--format", "timm", "--out", name)
    config = json.loads((pauc.folder / name / "config.json").read_text())
    weights = load_file(pauc.folder / name / "model.safetensors")
    exported = pauc.folder / f"{name}.safetensors"
    pauc("export", run, "--out", exported)
    same = load_file(exported)
    assert weights.keys() == same.keys() and all(np.array_equal(weights[k], same[k]) for k in same)
    assert config["num_features"] == pauc_features(weights), config
    assert (pauc.folder / name / "README.md").read_text().startswith("---\nlibrary_name: timm\n")


def pauc_features(weights):
    """The width of the features, by the last normalization."""
    last = [name for name in ("norm.weight", "fc_norm.weight", "head.norm.weight") if name in weights]
    return len(weights[last[0]]) if last else max(len(v) for k, v in weights.items() if k.endswith("running_mean"))


def check_torch(pauc, name, images, embedded):
    """Loads a folder in timm and transformers, strictly, and compares weights and features."""
    import timm
    import torch
    from transformers import AutoModel

    folder = pauc.folder / name
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    weights = load_file(folder / "model.safetensors")
    state = {key: value.numpy() for key, value in net.state_dict().items()}
    assert state.keys() == weights.keys(), state.keys() ^ weights.keys()
    assert all(np.array_equal(state[key], weights[key]) for key in weights)
    config = timm.data.resolve_model_data_config(net)
    mean, deviation = (torch.tensor(config[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    pixels = (torch.from_numpy(images) - mean) / deviation
    with torch.inference_mode():
        features = net(pixels)
        assert_close(features.numpy(), embedded["features"], "features by timm")
        other = AutoModel.from_pretrained(folder).eval()
        assert torch.equal(other(pixel_values=pixels).pooler_output, features), "transformers and timm differ"
    fine_tuned = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)
    assert fine_tuned(pixels[:2]).shape == (2, 7)


def check_start(pauc):
    """Starts runs from a folder in half precision, on larger gray images: as timm adapts the weights."""
    import torch
    from safetensors.torch import load_file as load, save_file
    from timm.layers import resample_abs_pos_embed
    from timm.models import adapt_input_conv

    original = load(pauc.folder / "vit" / "model.safetensors")
    for kind, dtype in [("F16", torch.float16), ("BF16", torch.bfloat16)]:
        folder = pauc.folder / f"vit-{kind}"
        folder.mkdir()
        half = {name: tensor.to(dtype) for name, tensor in original.items()}
        save_file({**half, "head.weight": half["norm.weight"].reshape(1, -1).clone()}, folder / "model.safetensors")
        (folder / "config.json").write_bytes((pauc.folder / "vit" / "config.json").read_bytes())
        recipe = RECIPE.format(name=kind, data="gray", encoder=dict((e[0], e[1]) for e in ENCODERS)["vit"])
        changes = ["views[0].ops=[Resize(size: 42), RandomResizedCrop(size: 42)]", "optimizer=Sgd(lr: 1e-30)"]
        run = pauc.run(kind, recipe, f'encoder_weights=(path: "{folder}")', *changes)
        out = pauc.folder / f"{kind}.safetensors"
        pauc("export", run, "--out", out)
        started = load(out)
        half = {name: tensor.float() for name, tensor in half.items()}
        half["pos_embed"] = resample_abs_pos_embed(half["pos_embed"], (6, 6), num_prefix_tokens=1)
        stem = "patch_embed.proj.weight"
        half[stem] = adapt_input_conv(1, half[stem])
        assert started.keys() == half.keys()
        for name, tensor in half.items():
            # Adapted tensors are sums of at most 25 products in F32, of numbers below 0.1. The others moved by 1e-30.
            off = 1e-7 if name in ("pos_embed", stem) else 1e-25
            torch.testing.assert_close(started[name], tensor, rtol=0, atol=off, msg=lambda m, n=name: f"{n}: {m}")
        print(f"  a start from {kind}: {len(half)} tensors as timm adapts them")


def check_models(pauc):
    """Starts from models of timm with random weights: features are timm's, and an export loads there again."""
    import timm
    import torch
    from safetensors.torch import load_file as load_tensors, save_file

    for name, encoder, times in MODELS:
        print(name)
        torch.manual_seed(0)
        # With a classifier, which a start leaves out.
        net = timm.create_model(name, **({"dynamic_img_size": True} if "vit" in name else {})).eval()
        with torch.no_grad():
            # With its initial value, LayerScale would hide the blocks.
            for scale in (p for key, p in net.named_parameters() if key.endswith(".gamma")):
                scale.normal_(std=0.5)
        folder = pauc.folder / f"{name}-start"
        folder.mkdir()
        save_file(net.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"architecture": name}))
        images = np.kron(photographs()[:12].reshape(4, 3, 28, 28), np.ones((times, times), np.uint8))
        np.save(pauc.folder / f"{name}.npy", np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
        side = 28 * times
        changes = [
            f'encoder_weights=(path: "{folder}")',
            f"views[0].ops=[RandomResizedCrop(size: {side})]",
            "train.batch=2",
            "optimizer=Sgd(lr: 1e-30)",
        ]
        run = pauc.run(name, RECIPE.format(name=name, data=name, encoder=encoder), *changes)
        pauc("embed", run, "--split", "train", "--out", f"{name}-rows.safetensors")
        rows = load_file(pauc.folder / f"{name}-rows.safetensors")
        pauc("export", run, "--format", "timm", "--out", name)
        pixels = images.astype(np.float32) / 255
        preprocessing = json.loads((pauc.folder / name / "config.json").read_text())["pretrained_cfg"]
        net.reset_classifier(0)
        # The steps have moved the running statistics.
        started = load_tensors(pauc.folder / name / "model.safetensors")
        net.load_state_dict({key: v for key, v in started.items() if ".running_" in key}, strict=False)
        mean, deviation = (np.float32(preprocessing[key]).reshape(1, -1, 1, 1) for key in ("mean", "std"))
        with torch.inference_mode():
            features = net(torch.from_numpy((pixels - mean) / deviation)).numpy()
        assert_close(rows["features"], features, "features of its weights", MODEL_TOLERANCE)
        assert json.loads((pauc.folder / name / "config.json").read_text())["architecture"] == name
        check_torch(pauc, name, pixels, rows)


def check_torchvision(pauc):
    """The weights of ResNet-18 load into torchvision's, strictly."""
    import torchvision
    from safetensors.torch import load_file as load

    net = torchvision.models.resnet18()
    del net.fc
    net.load_state_dict(load(pauc.folder / "resnet18.safetensors"), strict=True)
    print("  torchvision loads the weights of resnet18")


def run_page(pauc, with_torch):
    """Runs the Python on the page about exports, in a folder with the files that it names."""
    (pauc.folder / "encoder.onnx").write_bytes((pauc.folder / "resnet18.onnx").read_bytes())
    (pauc.folder / "my-resnet18").symlink_to(pauc.folder / "resnet18")
    page = (ROOT / "docs/src/interop.md").read_text()
    blocks = [block.split("```")[0] for block in page.split("```python\n")[1:]]
    assert len(blocks) >= 3
    ran = 0
    with contextlib.chdir(pauc.folder):
        for block in blocks:
            if "torch" in block and not with_torch:
                continue
            if "weights.pth" in block:
                import torch

                torch.save({"a": torch.ones(2)}, "weights.pth")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block, "docs/src/interop.md", "exec"), {})
            ran += 1
    print(f"{ran} of {len(blocks)} examples on the page run")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("--torch", action="store_true", help="also load in timm, transformers and torchvision")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        pauc = Pauc(arguments.program.resolve(), pathlib.Path(folder))
        data = write_data(pauc.folder)
        for name, encoder, is_rgb, in_timm in ENCODERS:
            print(name)
            kind = "rgb" if is_rgb else "gray"
            run = pauc.run(name, RECIPE.format(name=name, data=kind, encoder=encoder))
            pauc("embed", run, "--split", "train", "--out", f"{name}-rows.safetensors")
            embedded = load_file(pauc.folder / f"{name}-rows.safetensors")
            check_onnx(pauc, name, run, data[kind], embedded)
            if in_timm:
                check_folder(pauc, name, run)
                if arguments.torch:
                    check_torch(pauc, name, data[kind], embedded)
        if arguments.torch:
            check_start(pauc)
            check_models(pauc)
            check_torchvision(pauc)
        else:
            print("SKIPPED: timm, transformers and torchvision; `--torch` loads the encoders there, too")
        run_page(pauc, arguments.torch)
    print(f"{len(ENCODERS)} encoders agree")


if __name__ == "__main__":
    main()
