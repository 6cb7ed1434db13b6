"""Features, gradients and running statistics of networks, with PyTorch and torchvision's blocks.

Weights and images are pseudo-random by a formula, so that the tests can recompute them: u(n, l) = frac(sin(12.9898 n
+ 78.233 l) 43758.5453) - 1/2. (Smooth formulas make channels nearly constant, and batch normalization then amplifies
rounding errors too much.) Weights of convolutions and linear layers have u(n, l) sqrt(24 / fan_in), where l is the
position among the learnable parameters; gamma is 1 + 0.2 u; beta is 0.2 u; images are 2 u(n, 1000), n row-major over
(batch, channels, height, width). The loss is the sum of features times u(n, 2000).
"""

import math

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from common import U

PATH = "pauc-models/tests/golden/encoders.json"

# The formula amplifies the last digit of a sine, which differs between processors, by 43758.5. Batch
# normalization amplifies it again: errors of this size in every weight change ResNet-101's values by 10^4
# times as much. (The other networks change less, and the rounding of sums is smaller.) The last factor of ten
# is a safety margin.
TOLERANCE = 1e5 * 43758.5 * U
FLOOR = 0.0


def noise(count, l):
    """u(n, l) for n < count."""
    v = torch.sin(12.9898 * torch.arange(count, dtype=torch.float64) + 78.233 * l) * 43758.5453
    return v - torch.floor(v) - 0.5


class Residual(nn.Module):
    """A residual network of any width and number of stages, with torchvision's names."""

    def __init__(self, channels, stem, width, block, stages):
        super().__init__()
        kernel, stride, padding = (3, 1, 1) if stem == "Small" else (7, 2, 3)
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if stem == "Small" else nn.MaxPool2d(3, 2, 1)
        self.stages = []
        before = width
        for s, count in enumerate(stages):
            inner, blocks = width << s, []
            outer = inner * block.expansion
            for n in range(count):
                stride = 2 if s > 0 and n == 0 else 1
                shortcut = None
                if stride > 1 or before != outer:
                    shortcut = nn.Sequential(
                        nn.Conv2d(before, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
                    )
                blocks.append(block(before, inner, stride, shortcut))
                before = outer
            self.stages.append(f"layer{s + 1}")
            setattr(self, self.stages[-1], nn.Sequential(*blocks))

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return x.mean((2, 3))


class WideBottleneck(Bottleneck):
    """A bottleneck with twice the width inside."""

    def __init__(self, before, inner, stride, shortcut):
        super().__init__(before, inner, stride, shortcut, base_width=128)


class PreActivation(nn.Module):
    """A block of the wide residual networks for CIFAR."""

    def __init__(self, before, width, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.convShortcut = None
        if before != width or stride > 1:
            self.convShortcut = nn.Conv2d(before, width, 1, stride, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)

    def forward(self, x):
        y = torch.relu(self.bn1(x))
        skip = x if self.convShortcut is None else self.convShortcut(y)
        return skip + self.conv2(torch.relu(self.bn2(self.conv1(y))))


class Stage(nn.Module):
    """The blocks of a stage, with the names of common implementations."""

    def __init__(self, blocks):
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class Wide(nn.Module):
    """A wide residual network for CIFAR."""

    def __init__(self, channels, depth, widen):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        before = 16
        for s in range(3):
            width, blocks = 16 * widen << s, []
            for n in range((depth - 4) // 6):
                blocks.append(PreActivation(before, width, 2 if s > 0 and n == 0 else 1))
                before = width
            setattr(self, f"block{s + 1}", Stage(blocks))
        self.bn1 = nn.BatchNorm2d(before)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return torch.relu(self.bn1(x)).mean((2, 3))


class Plain(nn.Module):
    """A chain of convolutions, all but the first with stride two."""

    def __init__(self, channels, widths):
        super().__init__()
        self.depth = len(widths)
        for n, width in enumerate(widths, 1):
            setattr(self, f"conv{n}", nn.Conv2d(channels, width, 3, 1 if n == 1 else 2, 1, bias=False))
            setattr(self, f"bn{n}", nn.BatchNorm2d(width))
            channels = width

    def forward(self, x):
        for n in range(1, self.depth + 1):
            x = torch.relu(getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(x)))
        return x.mean((2, 3))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Perceptron(nn.Module):
    """Two linear layers with GELU on the last axis."""

    def __init__(self, width):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class NextBlock(nn.Module):
    """A block of ConvNeXt."""

    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))
        self.conv_dw = nn.Conv2d(width, width, 7, 1, 3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Perceptron(width)

    def forward(self, x):
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        return x + (self.gamma * y).permute(0, 3, 1, 2)


class NextStage(nn.Module):
    """A stage of ConvNeXt."""

    def __init__(self, before, width, depth, is_first):
        super().__init__()
        self.downsample = nn.Identity()
        if not is_first:
            self.downsample = nn.Sequential(ChannelNorm(before, eps=1e-6), nn.Conv2d(before, width, 2, 2))
        self.blocks = nn.Sequential(*(NextBlock(width) for _ in range(depth)))

    def forward(self, x):
        return self.blocks(self.downsample(x))


class Next(nn.Module):
    """ConvNeXt with timm's names."""

    def __init__(self, channels, patch, depths, widths):
        super().__init__()
        norm = ChannelNorm(widths[0], eps=1e-6)
        self.stem = nn.Sequential(nn.Conv2d(channels, widths[0], patch, patch), norm)
        shapes = zip([widths[0], *widths], widths, depths)
        self.stages = nn.Sequential(*(NextStage(*shape, i == 0) for i, shape in enumerate(shapes)))
        self.head = nn.Module()
        self.head.norm = nn.LayerNorm(widths[-1], eps=1e-6)

    def forward(self, x):
        return self.head.norm(self.stages(self.stem(x)).mean((2, 3)))


def probe(v):
    """The stored summary of a tensor: its length, a weighted sum of its elements, and the first four."""
    v = v.detach().flatten()
    return dict(
        l2=v.norm(), cos=(v * torch.cos(torch.arange(v.numel(), dtype=torch.float64))).sum(), first=v[:4]
    )


def fill(network):
    """Weights by formula."""
    for l, (name, v) in enumerate(network.named_parameters()):
        n = noise(v.numel(), l)
        if v.dim() > 1:
            n = n * math.sqrt(24 / v[0].numel())
        else:
            n = 0.2 * n + 1 if name.endswith("weight") else 0.2 * n
        v.data.copy_(n.reshape(v.shape))


def case(recipe, network, shape):
    """A forward pass in each mode, and a backward pass in training mode."""
    network = network.double()
    fill(network)
    images = (2 * noise(math.prod(shape), 1000)).reshape(shape)
    with torch.no_grad():
        in_eval = network.eval()(images)
    features = network.train()(images)
    (features * noise(features.numel(), 2000).reshape(features.shape)).sum().backward()
    parameters = dict(network.named_parameters())
    statistics = {name: v for name, v in network.named_buffers() if "running" in name}
    first = list(statistics)[:2]
    ends = [*first, *list(statistics)[-2:]]
    return dict(
        recipe=recipe,
        images=shape,
        parameters={name: v.shape for name, v in parameters.items()},
        eval=probe(in_eval),
        train=probe(features),
        gradients={name: probe(v.grad) for name, v in parameters.items()},
        statistics={name: probe(statistics[name]) for name in ends},
    )


def make():
    """All encoder recipes that the tests compare."""
    basic, bottleneck = BasicBlock, Bottleneck
    small, large = "Small", "ImageNet"
    deep = [3, 4, 6, 3]
    return dict(
        source="golden/encoders.py with torch 2.15.0",
        cases=[
            case("ConvNet(channels: [20, 40, 64])", Plain(1, [20, 40, 64]), (3, 1, 15, 18)),
            case("ResNet18(stem: Small, width: 16)", Residual(1, small, 16, basic, [2] * 4), (6, 1, 28, 28)),
            case("ResNet18(stem: Small)", Residual(3, small, 64, basic, [2] * 4), (4, 3, 32, 32)),
            case("ResNet18(width: 32)", Residual(3, large, 32, basic, [2] * 4), (4, 3, 72, 60)),
            case("ResNet34(stem: Small, width: 16)", Residual(3, small, 16, basic, deep), (4, 3, 32, 32)),
            case(
                "ResNet50(stem: Small, width: 16)", Residual(3, small, 16, bottleneck, deep), (4, 3, 32, 32)
            ),
            case("ResNet50(width: 16)", Residual(3, large, 16, bottleneck, deep), (4, 3, 96, 96)),
            case(
                "ResNet101(stem: Small, width: 16)",
                Residual(3, small, 16, bottleneck, [3, 4, 23, 3]),
                (4, 3, 32, 32),
            ),
            case(
                "WideResNet50(stem: Small, width: 8)",
                Residual(3, small, 8, WideBottleneck, deep),
                (4, 3, 32, 32),
            ),
            case("WideResNet(depth: 16, widen: 2)", Wide(3, 16, 2), (4, 3, 32, 32)),
            case("WideResNet(depth: 10, widen: 1)", Wide(1, 10, 1), (5, 1, 19, 14)),
            case(
                "ConvNeXt(size: Custom(depths: [1, 2, 1], widths: [10, 24, 33]), patch: 2)",
                Next(3, 2, [1, 2, 1], [10, 24, 33]),
                (3, 3, 29, 22),
            ),
            case(
                "ConvNeXt(size: Custom(depths: [2], widths: [17]), patch: 1)", Next(1, 1, [2], [17]), (2, 1, 9, 6)
            ),
            case("ResNet20()", Residual(3, small, 16, basic, [3] * 3), (4, 3, 32, 32)),
        ],
    )
