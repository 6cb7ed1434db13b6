"""Features and gradients of a small vision transformer, with PyTorch's encoder layers.

Images of shape (3, 8, 12, 3) have value i = sin(0.21 i). Parameter n has the values 0.5 sin(0.5 n + 0.37 i),
plus one for LayerNorm weights. The loss is the sum of features times cos(0.9 i).
"""

import math

import torch
from torch import nn
from torch.nn.functional import conv2d, layer_norm

from common import U

PATH = "pauc-models/tests/golden/vit.json"

BATCH, HEIGHT, WIDTH, CHANNELS, PATCH = 3, 8, 12, 3, 4
DIM, HEADS, DEPTH, HIDDEN, EPSILON = 8, 2, 2, 16, 1e-6

# Two layers, forward and backward, of 8 sums each of at most 48 products. A gradient is a sum over 3 * 7
# tokens, with cancellation up to that factor.
TOLERANCE = 2 * 2 * 8 * 48 * 21 * U
FLOOR = 0.0

# Our names (timm's) for parameters that have other names in PyTorch's layer.
LAYER = {
    "norm1": "norm1",
    "attn.qkv": "self_attn.in_proj",
    "attn.proj": "self_attn.out_proj",
    "norm2": "norm2",
    "mlp.fc1": "linear1",
    "mlp.fc2": "linear2",
}


def shapes(pool):
    """The shapes of the parameters, in the order of their formulas."""
    made = {"cls_token": (1, 1, DIM)} if pool == "Class" else {}
    tokens = HEIGHT // PATCH * (WIDTH // PATCH) + (pool == "Class")
    made["pos_embed"] = (1, tokens, DIM)
    made["patch_embed.proj.weight"], made["patch_embed.proj.bias"] = (DIM, CHANNELS, PATCH, PATCH), (DIM,)
    widths = {
        "attn.qkv": (3 * DIM, DIM),
        "attn.proj": (DIM, DIM),
        "mlp.fc1": (HIDDEN, DIM),
        "mlp.fc2": (DIM, HIDDEN),
    }
    for b in range(DEPTH):
        for part in LAYER:
            weight = widths.get(part, (DIM,))
            made[f"blocks.{b}.{part}.weight"], made[f"blocks.{b}.{part}.bias"] = weight, weight[:1]
    last = last_norm(pool)
    made[f"{last}.weight"], made[f"{last}.bias"] = (DIM,), (DIM,)
    return made


def last_norm(pool):
    """The name of the last normalization, which depends on the pooling."""
    return "norm" if pool == "Class" else "fc_norm"


def parameters(pool):
    """All parameters by their formulas."""
    made = {}
    for n, (name, shape) in enumerate(shapes(pool).items()):
        i = torch.arange(math.prod(shape), dtype=torch.float64)
        base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        made[name] = (base + 0.5 * torch.sin(0.5 * n + 0.37 * i)).reshape(shape).requires_grad_()
    return made


def block(x, p, b):
    """One of PyTorch's layers, with our parameters."""
    layer = nn.TransformerEncoderLayer(
        DIM,
        HEADS,
        HIDDEN,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=EPSILON,
        batch_first=True,
        norm_first=True,
        dtype=torch.float64,
    )
    named = {}
    for ours, theirs in LAYER.items():
        separator = "_" if theirs.endswith("in_proj") else "."
        for kind in ("weight", "bias"):
            named[theirs + separator + kind] = p[f"blocks.{b}.{ours}.{kind}"]
    return torch.func.functional_call(layer, named, x)


def sums(gradient):
    """The stored summary of a gradient: its sum, a weighted sum, and the first three elements."""
    g = gradient.flatten()
    i = torch.arange(len(g), dtype=torch.float64)
    return torch.stack([g.sum(), (g * torch.cos(0.11 * i)).sum(), *g[:3]])


def case(pool):
    """A network whose feature is the class token, or the mean of all tokens."""
    p = parameters(pool)
    n = torch.arange(BATCH * HEIGHT * WIDTH * CHANNELS, dtype=torch.float64)
    images = torch.sin(0.21 * n).reshape(BATCH, HEIGHT, WIDTH, CHANNELS).permute(0, 3, 1, 2)
    x = (
        conv2d(images, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], PATCH)
        .flatten(2)
        .transpose(1, 2)
    )
    if pool == "Class":
        x = torch.cat([p["cls_token"].expand(BATCH, 1, DIM), x], 1)
    x = x + p["pos_embed"]
    for b in range(DEPTH):
        x = block(x, p, b)
    pooled = x[:, 0] if pool == "Class" else x.mean(1)
    last = last_norm(pool)
    features = layer_norm(pooled, (DIM,), p[f"{last}.weight"], p[f"{last}.bias"], EPSILON).flatten()
    (features * torch.cos(0.9 * torch.arange(len(features), dtype=torch.float64))).sum().backward()
    return dict(
        pool=pool,
        features=features,
        gradients=[dict(name=name, shape=v.shape, sums=sums(v.grad)) for name, v in p.items()],
    )


def make():
    """Both kinds of pooling."""
    return dict(
        source="PyTorch 2.15 in float64: conv2d, nn.TransformerEncoderLayer(norm_first, gelu, eps 1e-6), "
        "layer_norm. Images (3, 8, 12, 3) with value i = sin(0.21 i); parameter n has 0.5 sin(0.5 n + "
        "0.37 i), plus 1 for LayerNorm weights; loss = sum features * cos(0.9 i). sums = [sum g, "
        "sum g cos(0.11 i), g0, g1, g2]",
        cases=[case("Class"), case("Mean")],
    )
