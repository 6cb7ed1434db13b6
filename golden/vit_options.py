"""Features and gradients of small vision transformers of timm, with the parts of DINOv2 and other image sizes.

Images of shape (3, H, W, 3) have value i = sin(0.21 i). Parameter n has the values 0.5 sin(0.5 n + 0.37 i), plus one
for LayerNorm weights. The loss is the sum of features times cos(0.9 i).
"""

import torch
from timm.layers import SwiGLUPacked
from timm.models import VisionTransformer
from torch import nn

from common import U
from vit import sums

PATH = "pauc-models/tests/golden/vit_options.json"

BATCH, HEIGHT, WIDTH, CHANNELS, PATCH = 3, 8, 12, 3, 4
DIM, HEADS, DEPTH = 8, 2, 2

# Two layers, forward and backward, of 8 sums each of at most 48 products. A gradient is a sum over 3 * 14 tokens, with
# cancellation up to that factor.
TOLERANCE = 2 * 2 * 8 * 48 * 42 * U
FLOOR = 0.0

SCALED = dict(init_values=1e-5)
GATED = dict(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=4.0)
MEAN = dict(class_token=False, global_pool="avg")

# The fields of a recipe, the arguments of timm, and the size of the images.
CASES = [
    ("layer_scale: 1e-5", SCALED, (8, 12)),
    (
        "layer_scale: 1e-5, registers: 2, prefix_positions: false",
        dict(SCALED, reg_tokens=2, no_embed_class=True),
        (8, 12),
    ),
    ("registers: 2", dict(reg_tokens=2), (8, 12)),
    ("prefix_positions: false", dict(no_embed_class=True), (8, 12)),
    ("mlp: SwiGlu", GATED, (8, 12)),
    ("mlp: SwiGlu, registers: 1, pool: Mean", dict(GATED, **MEAN, reg_tokens=1), (8, 12)),
    ("pool: Class", {}, (16, 8)),
    ("registers: 2, prefix_positions: false", dict(reg_tokens=2, no_embed_class=True), (4, 20)),
    ("pool: Mean", MEAN, (12, 16)),
]


def set_by_formula(net):
    """Sets all parameters by their formulas."""
    with torch.no_grad():
        for n, (name, p) in enumerate(net.named_parameters()):
            i = torch.arange(p.numel(), dtype=torch.float64)
            base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            p.copy_((base + 0.5 * torch.sin(0.5 * n + 0.37 * i)).reshape(p.shape))


def case(fields, arguments, size):
    """A network for images of 8x12 pixels, and its features for images of `size`."""
    made = dict(mlp_ratio=2.0, global_pool="token")
    made.update(arguments)
    net = VisionTransformer(
        img_size=(HEIGHT, WIDTH),
        patch_size=PATCH,
        num_classes=0,
        embed_dim=DIM,
        depth=DEPTH,
        num_heads=HEADS,
        dynamic_img_size=True,
        **made,
    ).double()
    set_by_formula(net)
    n = torch.arange(BATCH * size[0] * size[1] * CHANNELS, dtype=torch.float64)
    images = torch.sin(0.21 * n).reshape(BATCH, *size, CHANNELS).permute(0, 3, 1, 2)
    features = net(images).flatten()
    (features * torch.cos(0.9 * torch.arange(len(features), dtype=torch.float64))).sum().backward()
    return dict(
        fields=fields,
        size=list(size),
        features=features,
        gradients=[dict(name=name, shape=v.shape, sums=sums(v.grad)) for name, v in net.named_parameters()],
    )


def make():
    """All options, and three other sizes."""
    return dict(
        source="timm 1.0.31 on PyTorch 2.15 in float64, with positions resampled in float32: VisionTransformer for "
        "images of 8x12. Images (3, H, W, 3) with value i = sin(0.21 i); parameter n has 0.5 sin(0.5 n + 0.37 i), plus 1 "
        "for LayerNorm weights; loss = sum features * cos(0.9 i). sums = [sum g, sum g cos(0.11 i), g0, g1, g2]",
        cases=[case(*c) for c in CASES],
    )
