"""pauc's encoders as PyTorch modules. Importing this module imports torch.

Parameters have the names that `pauc-cli export` writes: torchvision's and timm's.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

Fields = Mapping[str, Any]


class ImageInput(NamedTuple):
    """The images that a network was trained for.

    Attributes:
        height: Rows.
        width: Columns.
        channels: 1 for gray, 3 for RGB.
        mean: The mean of each channel, for values between 0 and 1.
        deviation: The standard deviation of each channel.
    """

    height: int
    width: int
    channels: int
    mean: Sequence[float]
    deviation: Sequence[float]


class Encoder(nn.Module):
    """An encoder from images to features, with the normalization of its run.

    Calling it maps images, shape (B, C, H, W), to features, shape (B, `feature_dim`). Images are RGB or gray
    as in training: floating-point values between 0 and 1, or `torch.uint8` between 0 and 255.

    Attributes:
        input: The images that the network was trained for.
        feature_dim: The number of features.
    """

    _mean: Tensor
    _deviation: Tensor

    def __init__(self, input: ImageInput, feature_dim: int) -> None:
        super().__init__()
        self.input = input
        self.feature_dim = feature_dim
        for name, values in (("mean", input.mean), ("deviation", input.deviation)):
            buffer = torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)
            # Not a part of the weights, which keep the names of the exported file.
            self.register_buffer(f"_{name}", buffer, persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Returns (images − mean) / deviation.

        Raises:
            ValueError: If the images do not have the shape (B, C, H, W) with the network's channels.
        """
        if images.ndim != 4 or images.shape[1] != self.input.channels:
            expected = f"(batch, {self.input.channels}, height, width)"
            raise ValueError(f"expected images of shape {expected}, got {tuple(images.shape)}")
        if images.dtype == torch.uint8:
            images = images.to(self._mean.dtype) / 255
        return (images - self._mean) / self._deviation

    def features(self, images: Tensor) -> Tensor:
        """Maps normalized images to features."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Maps images to features."""
        return self.features(self.normalize(images))

    def _check_size(self, images: Tensor) -> None:
        """Refuses images of another size than that of the training."""
        if tuple(images.shape[2:]) != (self.input.height, self.input.width):
            size = f"{self.input.height}×{self.input.width}"
            raise ValueError(f"this network takes images of {size}, got {images.shape[2]}×{images.shape[3]}")


class Wrapped(Encoder):
    """A module of the user's, behind the normalization of a run."""

    def __init__(self, input: ImageInput, network: nn.Module) -> None:
        super().__init__(input, 0)
        self.network = network

    def features(self, images: Tensor) -> Tensor:
        found: Tensor = self.network(images)
        return found


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class _Block(nn.Module):
    """Convolutions with batch normalization, and a shortcut around them.

    `path` has the outputs, kernel and stride of each convolution.
    """

    def __init__(self, inputs: int, path: Sequence[Tuple[int, int, int]]) -> None:
        super().__init__()
        self.length = len(path)
        width, total_stride = inputs, 1
        for i, (outputs, kernel, stride) in enumerate(path, 1):
            self.add_module(f"conv{i}", _conv(width, outputs, kernel, stride))
            self.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
            width, total_stride = outputs, total_stride * stride
        self.downsample: nn.Module = nn.Identity()
        if width != inputs or total_stride != 1:
            self.downsample = nn.Sequential(_conv(inputs, width, 1, total_stride), nn.BatchNorm2d(width))
        self.outputs = width

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.length + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.length:
                y = functional.relu(y)
        return functional.relu(y + self.downsample(x))


class ResNet(Encoder):
    """ResNet-18 to ResNet-101, the wide ones, and the CIFAR ResNets, of any width, with either stem."""

    def __init__(
        self, input: ImageInput, width: int, stem: str, bottleneck: bool, stages: Sequence[int], widen: int = 1
    ) -> None:
        inputs, layers = width, []
        for stage, count in enumerate(stages):
            blocks = []
            for n in range(count):
                outputs, stride = width << stage, 2 if stage > 0 and n == 0 else 1
                basic = [(outputs, 3, stride), (outputs, 3, 1)]
                inner = widen * outputs
                path = [(inner, 1, 1), (inner, 3, stride), (4 * outputs, 1, 1)] if bottleneck else basic
                blocks.append(_Block(inputs, path))
                inputs = blocks[-1].outputs
            layers.append(nn.Sequential(*blocks))
        super().__init__(input, inputs)
        self.conv1 = _conv(input.channels, width, *((3, 1) if stem == "Small" else (7, 2)))
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.Identity() if stem == "Small" else nn.MaxPool2d(3, 2, 1)
        for i, layer in enumerate(layers, 1):
            self.add_module(f"layer{i}", layer)
        self.stages = len(layers)

    def features(self, images: Tensor) -> Tensor:
        x = self.maxpool(functional.relu(self.bn1(self.conv1(images))))
        for i in range(1, self.stages + 1):
            x = getattr(self, f"layer{i}")(x)
        features: Tensor = x.mean((2, 3))
        return features


class _PreActivation(nn.Module):
    """A block that normalizes before it convolves."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.changes = inputs != width or stride != 1
        if self.changes:
            self.convShortcut = _conv(inputs, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(x))
        skip = self.convShortcut(y) if self.changes else x
        sum: Tensor = skip + self.conv2(functional.relu(self.bn2(self.conv1(y))))
        return sum


class _Stage(nn.Module):
    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


class WideResNet(Encoder):
    """A wide residual network with pre-activation for small images."""

    def __init__(self, input: ImageInput, depth: int, widen: int) -> None:
        super().__init__(input, 64 * widen)
        self.conv1 = _conv(input.channels, 16, 3)
        inputs = 16
        for stage in range(3):
            width, blocks = 16 * widen << stage, []
            for n in range((depth - 4) // 6):
                blocks.append(_PreActivation(inputs, width, 2 if stage > 0 and n == 0 else 1))
                inputs = width
            self.add_module(f"block{stage + 1}", _Stage(blocks))
        self.bn1 = nn.BatchNorm2d(inputs)

    def features(self, images: Tensor) -> Tensor:
        x = self.conv1(images)
        for stage in range(1, 4):
            x = getattr(self, f"block{stage}")(x)
        features: Tensor = functional.relu(self.bn1(x)).mean((2, 3))
        return features


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _NextBlock(nn.Module):
    """A depthwise convolution, and a perceptron on each pixel."""

    def __init__(self, width: int, convolutions: bool) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))
        self.conv_dw = nn.Conv2d(width, width, 7, 1, 3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width, 4 * width)
        if convolutions:
            # As 1×1 convolutions, the weights have two more axes.
            self.mlp.fc1, self.mlp.fc2 = _Pixelwise(width, 4 * width), _Pixelwise(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        sum: Tensor = x + (self.gamma * y).permute(0, 3, 1, 2)
        return sum


class _Pixelwise(nn.Linear):
    """A linear layer with the weights of a 1×1 convolution."""

    weight: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.weight = nn.Parameter(self.weight.detach()[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight[:, :, 0, 0], self.bias)


class _NextStage(nn.Module):
    def __init__(self, inputs: int, width: int, depth: int, is_first: bool, convolutions: bool) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if not is_first:
            self.downsample = nn.Sequential(_ChannelNorm(inputs, eps=1e-6), nn.Conv2d(inputs, width, 2, 2))
        self.blocks = nn.Sequential(*(_NextBlock(width, convolutions) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(self.downsample(x))
        return y


class _Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)


class ConvNeXt(Encoder):
    """ConvNeXt, with patches of any size."""

    def __init__(
        self, input: ImageInput, depths: Sequence[int], widths: Sequence[int], patch: int, convolutions: bool
    ) -> None:
        super().__init__(input, widths[-1])
        first = nn.Conv2d(input.channels, widths[0], patch, patch)
        self.stem = nn.Sequential(first, _ChannelNorm(widths[0], eps=1e-6))
        shapes = enumerate(zip([widths[0], *widths], widths, depths))
        self.stages = nn.Sequential(*(_NextStage(*shape, i == 0, convolutions) for i, shape in shapes))
        self.head = _Head(widths[-1])

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.head.norm(self.stages(self.stem(images)).mean((2, 3)))
        return features


class ConvNet(Encoder):
    """3×3 convolutions, each after the first at stride 2, and the means of the cells of a grid."""

    def __init__(self, input: ImageInput, channels: Sequence[int], grid: int) -> None:
        super().__init__(input, grid * grid * channels[-1])
        self.layers, self.grid = len(channels), grid
        inputs = input.channels
        for i, outputs in enumerate(channels, 1):
            self.add_module(f"conv{i}", _conv(inputs, outputs, 3, 1 if i == 1 else 2))
            self.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
            inputs = outputs

    def features(self, images: Tensor) -> Tensor:
        x = images
        for i in range(1, self.layers + 1):
            x = functional.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        rows, columns = (_parts(side, self.grid) for side in x.shape[2:])
        means = [x[:, :, a:b, c:d].mean((2, 3)) for a, b in rows for c, d in columns]
        return torch.cat(means, 1)


def _parts(side: int, grid: int) -> List[Tuple[int, int]]:
    """Returns begin and end of each cell: pixel r is in cell ⌊r·grid/side⌋."""
    if side < grid:
        raise ValueError(f"the last map has {side} pixels per side, fewer than the {grid} cells of the grid")
    starts = [-(-i * side // grid) for i in range(grid + 1)]
    return list(zip(starts, starts[1:]))


class Perceptron(Encoder):
    """Linear layers with ReLU on the flattened pixels, which have their channels last."""

    def __init__(self, input: ImageInput, dims: Sequence[int]) -> None:
        super().__init__(input, dims[-1])
        inputs = input.height * input.width * input.channels
        for i, outputs in enumerate(dims):
            self.add_module(str(2 * i), nn.Linear(inputs, outputs))
            inputs = outputs
        self.layers = len(dims)

    def features(self, images: Tensor) -> Tensor:
        self._check_size(images)
        x = images.permute(0, 2, 3, 1).flatten(1)
        for i in range(self.layers):
            x = functional.relu(getattr(self, str(2 * i))(x))
        return x


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return projected


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return y


class _GatedMlp(nn.Module):
    """SwiGLU, with both factors in one matrix."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, -1)
        y: Tensor = self.fc2(functional.silu(gate) * value)
        return y


class _LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, gated: bool, scaled: bool) -> None:
        super().__init__()
        scale: Callable[[], nn.Module] = (lambda: _LayerScale(width)) if scaled else nn.Identity
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, heads)
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = (_GatedMlp if gated else _Mlp)(width, hidden)
        self.ls2 = scale()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        y: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return y


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return tokens


class VisionTransformer(Encoder):
    """A vision transformer with pre-norm blocks, from the fields of the recipe. Dropped paths are left out."""

    def __init__(self, input: ImageInput, fields: Fields) -> None:
        size, patch = fields["size"], fields["patch"]
        width, heads = _SIZES[size] if isinstance(size, str) else (size["width"], size["heads"])
        super().__init__(input, width)
        # Recipes leave out the newer fields while they have their defaults.
        self.takes_class_token = fields["pool"] == "Class"
        self.registers: int = fields.get("registers", 0)
        self.positions_of_prefix: bool = fields.get("prefix_positions", True)
        gated = fields.get("mlp", "Gelu") == "SwiGlu"
        hidden = width * fields["mlp_ratio"]
        if gated:
            hidden = (hidden * 2 // 3 + 7) // 8 * 8
        tokens = (input.height // patch) * (input.width // patch)
        if self.positions_of_prefix:
            tokens += self.takes_class_token + self.registers
        if self.takes_class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if self.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, self.registers, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.patch_embed = _PatchEmbed(input.channels, width, patch)
        scaled = fields.get("layer_scale") is not None
        blocks = (_TransformerBlock(width, heads, hidden, gated, scaled) for _ in range(fields["depth"]))
        self.blocks = nn.Sequential(*blocks)
        norm = nn.LayerNorm(width, eps=1e-6)
        if self.takes_class_token:
            self.norm = norm
        else:
            self.fc_norm = norm

    def features(self, images: Tensor) -> Tensor:
        self._check_size(images)
        x = self.patch_embed(images)
        if not self.positions_of_prefix:
            x = x + self.pos_embed
        prefix = [self.cls_token] if self.takes_class_token else []
        prefix += [self.reg_token] if self.registers else []
        x = torch.cat([*(tokens.expand(len(x), -1, -1) for tokens in prefix), x], 1)
        if self.positions_of_prefix:
            x = x + self.pos_embed
        x = self.blocks(x)
        if self.takes_class_token:
            features: Tensor = self.norm(x[:, 0])
        else:
            features = self.fc_norm(x[:, self.registers :].mean(1))
        return features


def _resnet(bottleneck: bool, stages: Sequence[int], widen: int = 1) -> Callable[[Fields, ImageInput], Encoder]:
    return lambda f, input: ResNet(input, f["width"], f.get("stem", "Small"), bottleneck, stages, widen)


_SIZES = {"Tiny": (192, 3), "Small": (384, 6), "Base": (768, 12), "Large": (1024, 16), "Giant": (1536, 24)}


_NEXT = {
    "Atto": ([2, 2, 6, 2], 40),
    "Femto": ([2, 2, 6, 2], 48),
    "Pico": ([2, 2, 6, 2], 64),
    "Nano": ([2, 2, 8, 2], 80),
    "Tiny": ([3, 3, 9, 3], 96),
    "Small": ([3, 3, 27, 3], 96),
    "Base": ([3, 3, 27, 3], 128),
}


def _conv_next(fields: Fields, input: ImageInput) -> Encoder:
    size = fields["size"]
    if not isinstance(size, str):
        return ConvNeXt(input, size["depths"], size["widths"], fields["patch"], False)
    depths, width = _NEXT[size]
    widths = [width << stage for stage in range(4)]
    return ConvNeXt(input, depths, widths, fields["patch"], size in ("Atto", "Femto", "Pico", "Nano"))


# By the name of the component, from its fields in a resolved recipe.
BUILDERS: Dict[str, Callable[[Fields, ImageInput], Encoder]] = {
    "ConvNet": lambda f, input: ConvNet(input, f["channels"], f["grid"]),
    "ConvNeXt": _conv_next,
    "MlpEncoder": lambda f, input: Perceptron(input, f["dims"]),
    "ResNet18": _resnet(False, [2, 2, 2, 2]),
    "ResNet20": _resnet(False, [3, 3, 3]),
    "ResNet32": _resnet(False, [5, 5, 5]),
    "ResNet34": _resnet(False, [3, 4, 6, 3]),
    "ResNet50": _resnet(True, [3, 4, 6, 3]),
    "ResNet56": _resnet(False, [9, 9, 9]),
    "ResNet101": _resnet(True, [3, 4, 23, 3]),
    "VisionTransformer": lambda f, input: VisionTransformer(input, f),
    "WideResNet": lambda f, input: WideResNet(input, f["depth"], f["widen"]),
    "WideResNet50": _resnet(True, [3, 4, 6, 3], 2),
    "WideResNet101": _resnet(True, [3, 4, 23, 3], 2),
}
