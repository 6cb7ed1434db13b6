"""Writes encoders.json: features, gradients and running statistics of residual networks, by PyTorch and torchvision in float64.

Weights and images are noise by formula, so that the test can make them again: u(n, l) = frac(sin(12.9898 n + 78.233 l) 43758.5453) - 1/2.
(Smooth formulas make channels nearly constant, and batch normalisation then amplifies rounding beyond use.)
Convolutions: u(n, l) sqrt(24 / fan_in) with l the position among the learnable parameters; gamma: 1 + 0.2 u; beta: 0.2 u; images: 2 u(n, 1000),
n row-major over (batch, channels, height, width). Loss: sum of features times u(n, 2000).
"""
import json, math, sys, torch, torch.nn as nn
from torchvision.models.resnet import BasicBlock, Bottleneck

def u(count, l):
    v = torch.sin(12.9898 * torch.arange(count, dtype=torch.float64) + 78.233 * l) * 43758.5453
    return v - torch.floor(v) - 0.5

class Net(nn.Module):
    def __init__(self, channels, stem, width, block, stages):
        super().__init__()
        small = stem == "Small"
        self.conv1 = nn.Conv2d(channels, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1, self.pool = nn.BatchNorm2d(width), nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        i = width
        for s, count in enumerate(stages):
            o, blocks = width << s, []
            for n in range(count):
                stride = 2 if s and n == 0 else 1
                shape = stride > 1 or i != o * block.expansion
                down = nn.Sequential(nn.Conv2d(i, o * block.expansion, 1, stride, bias=False), nn.BatchNorm2d(o * block.expansion)) if shape else None
                blocks.append(block(i, o, stride, down)); i = o * block.expansion
            setattr(self, f"layer{s + 1}", nn.Sequential(*blocks))
        self.stages = len(stages)
    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        for s in range(self.stages): x = getattr(self, f"layer{s + 1}")(x)
        return x.mean((2, 3))

class Plain(nn.Module):
    def __init__(self, channels, widths):
        super().__init__()
        for n, o in enumerate(widths):
            setattr(self, f"conv{n + 1}", nn.Conv2d(channels, o, 3, 2 if n else 1, 1, bias=False)); setattr(self, f"bn{n + 1}", nn.BatchNorm2d(o)); channels = o
        self.n = len(widths)
    def forward(self, x):
        for n in range(self.n): x = torch.relu(getattr(self, f"bn{n + 1}")(getattr(self, f"conv{n + 1}")(x)))
        return x.mean((2, 3))

def probe(v):
    v = v.detach().flatten()
    return dict(l2=v.norm().item(), cos=(v * torch.cos(torch.arange(v.numel(), dtype=torch.float64))).sum().item(), first=v[:4].tolist())

def case(recipe, net, shape):
    net = net.double(); p = list(net.named_parameters())
    for l, (name, v) in enumerate(p):
        n = u(v.numel(), l)
        n = n * math.sqrt(24 / v[0].numel()) if v.dim() == 4 else (0.2 * n + 1 if name.endswith("weight") else 0.2 * n)
        v.data.copy_(n.reshape(v.shape))
    x = (2 * u(math.prod(shape), 1000)).reshape(shape)
    eval_features = net.eval()(x)
    features = net.train()(x)
    (features * u(features.numel(), 2000).reshape(features.shape)).sum().backward()
    stats = {n: b for n, b in net.named_buffers() if "running" in n}
    last = [n for n in stats][-2:]
    return dict(recipe=recipe, images=list(shape), parameters={n: list(v.shape) for n, v in p}, eval=probe(eval_features), train=probe(features),
                gradients={n: probe(v.grad) for n, v in p}, statistics={n: probe(stats[n]) for n in ["bn1.running_mean", "bn1.running_var"] + last})

cases = [
    case("ConvNet(channels: [20, 40, 64])", Plain(1, [20, 40, 64]), (3, 1, 15, 18)),
    case("ResNet18(stem: Small, width: 16)", Net(1, "Small", 16, BasicBlock, [2, 2, 2, 2]), (6, 1, 28, 28)),
    case("ResNet18(stem: Small)", Net(3, "Small", 64, BasicBlock, [2, 2, 2, 2]), (4, 3, 32, 32)),
    case("ResNet18(width: 32)", Net(3, "ImageNet", 32, BasicBlock, [2, 2, 2, 2]), (4, 3, 72, 60)),
    case("ResNet34(stem: Small, width: 16)", Net(3, "Small", 16, BasicBlock, [3, 4, 6, 3]), (4, 3, 32, 32)),
    case("ResNet50(stem: Small, width: 16)", Net(3, "Small", 16, Bottleneck, [3, 4, 6, 3]), (4, 3, 32, 32)),
    case("ResNet50(width: 16)", Net(3, "ImageNet", 16, Bottleneck, [3, 4, 6, 3]), (4, 3, 96, 96)),
    case("ResNet101(stem: Small, width: 16)", Net(3, "Small", 16, Bottleneck, [3, 4, 23, 3]), (4, 3, 32, 32)),
    case("ResNet20()", Net(3, "Small", 16, BasicBlock, [3, 3, 3]), (4, 3, 32, 32)),
]
text = json.dumps(dict(source=f"encoders.py with torch {torch.__version__}", cases=cases))
open(sys.argv[1] if len(sys.argv) > 1 else "encoders.json", "w").write(text.replace('{"recipe"', '\n{"recipe"'))
