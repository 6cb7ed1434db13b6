"""torchvision's residual networks with smooth weights: names, features, and the statistics of the first layer."""

import math

import torch
import torchvision
from torch import nn

from common import U

PATH = "pauc-models/tests/golden/torchvision.json"

# Without batch statistics, no layer amplifies errors. The longest chain is that of ResNet-50: 53 sums of up
# to 512 * 9 products. Running means result from cancellation of products of size one.
TOLERANCE = 53 * 512 * 9 * U
FLOOR = 1.0


def fill(network):
    """Number n of tensor l: sin(0.37 n + 0.11 l) sqrt(2 / fan_in); scales 1 + 0.1 sin n, biases 0.1 cos n."""
    for l, (name, v) in enumerate(network.named_parameters()):
        n = torch.arange(v.numel(), dtype=torch.float64)
        if v.dim() == 4:
            made = torch.sin(0.37 * n + 0.11 * l) * math.sqrt(2 / v[0].numel())
        else:
            made = 1 + 0.1 * torch.sin(n) if name.endswith("weight") else 0.1 * torch.cos(n)
        v.data.copy_(made.reshape(v.shape))


@torch.no_grad()
def case(name, stem):
    """A network with torchvision's stem, or with the stem for small images."""
    network = getattr(torchvision.models, name)(weights=None)
    network.fc = nn.Identity()
    side = 64
    if stem == "cifar":
        network.conv1, network.maxpool, side = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity(), 32
    network = network.double()
    fill(network)
    n = torch.arange(4 * 3 * side * side, dtype=torch.float64)
    images = torch.sin(0.1 + 0.013 * n).reshape(4, 3, side, side)
    features = network.eval()(images)
    # Only the statistics of the first layer are stored; they depend only on its convolution.
    network.bn1.train()(network.conv1(images))
    return dict(
        case=f"{name}/{stem}",
        source="torchvision 0.29.2, maxpool removed and 3x3/1 stem for cifar; double",
        image=dict(formula=f"sin(0.1 + 0.013 n), n row-major over (4,3,{side},{side})"),
        weights="weights by formula: conv/fc w[n] = sin(0.37 n + 0.11 l) * sqrt(2 / fan_in); bn weight 1 + "
        "0.1 sin(n), bias 0.1 cos(n); mean 0, var 1. l = index in state_dict order of learnable tensors.",
        parameters=sum(v.numel() for v in network.parameters()),
        parameter_names=[key for key, _ in network.named_parameters()],
        features_eval=dict(
            shape=features.shape, first_row_first8=features[0, :8], mean=features.mean(), l2=features.norm()
        ),
        bn1_running_mean_first4=network.bn1.running_mean[:4],
        bn1_running_var_first4=network.bn1.running_var[:4],
    )


def make():
    """All networks that the tests build."""
    return [
        case("resnet18", "cifar"),
        case("resnet18", "imagenet"),
        case("resnet34", "cifar"),
        case("resnet50", "cifar"),
        case("resnet50", "imagenet"),
    ]
