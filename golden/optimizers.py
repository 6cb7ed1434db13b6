"""Five steps of each optimizer on a loss that couples two parameters: PyTorch's, and LARS by hand."""

import torch

from common import U, wave

PATH = "pauc-models/tests/golden/optimizers.json"

# At most 40 operations per step and number, including norms of 12 numbers. The error of a step reaches the
# next four through gradients; lr times curvature amplifies it by at most 2 per step: 31 times the first.
TOLERANCE = 31 * 40 * U
FLOOR = 1.0


class Lars(torch.optim.Optimizer):
    """Momentum, with a learning rate per tensor in groups with decay: lr trust |w| / (|g| + decay |w| + 1e-8)."""

    def __init__(self, groups, lr, momentum, trust):
        super().__init__(groups, dict(lr=lr, momentum=momentum, trust=trust, weight_decay=0.0))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            decay = group["weight_decay"]
            for w in group["params"]:
                d = w.grad.clone()
                if decay:
                    size = w.norm()
                    ratio = group["trust"] * size / (w.grad.norm() + decay * size + 1e-8)
                    d = ratio * (d + decay * w)
                state = self.state[w]
                state["velocity"] = group["momentum"] * state.get("velocity", 0.0) + d
                w -= group["lr"] * state["velocity"]


def trajectory(source, optimizer):
    """Gradients and parameters of five steps. `optimizer` makes an optimizer for a weight and a bias."""
    w0, b0, target = wave(3, 4, 0.1), wave(1, 4, 0.4)[0], wave(3, 4, 1.2)
    w, b, goal = (
        torch.tensor(w0, requires_grad=True),
        torch.tensor(b0, requires_grad=True),
        torch.tensor(target),
    )
    o = optimizer(w, b)
    steps = []
    for n in range(5):
        o.zero_grad()
        ((w + b - goal).square().sum() * (1 + 0.1 * n)).backward()
        gradients = dict(grad_w=w.grad.clone(), grad_b=b.grad.clone())
        o.step()
        steps.append(dict(**gradients, w=w.detach().clone(), b=b.detach().clone()))
    return dict(
        source=source,
        w0=w0,
        b0=b0,
        target=target,
        loss="sum((w + b - target)^2) * (1 + 0.1 step)",
        steps=steps,
    )


def make():
    """All optimizers."""
    sgd, adamw = torch.optim.SGD, torch.optim.AdamW
    return dict(
        sgd_momentum_wd=trajectory(
            "torch SGD lr .05 momentum .9 wd 1e-2", lambda w, b: sgd([w, b], 0.05, 0.9, weight_decay=1e-2)
        ),
        sgd_nesterov=trajectory("torch SGD nesterov", lambda w, b: sgd([w, b], 0.05, 0.9, nesterov=True)),
        adamw=trajectory(
            "torch AdamW lr 1e-2 betas (.9,.95) wd 5e-2 eps 1e-8",
            lambda w, b: adamw([w, b], 1e-2, (0.9, 0.95), 1e-8, 5e-2),
        ),
        lars=trajectory(
            "lightly 1.6.0 LARS lr .5 momentum .9 trust 1e-3; wd 1e-2 on w; b: wd 0, which means no "
            "trust-ratio scaling there",
            lambda w, b: Lars([dict(params=[w], weight_decay=1e-2), dict(params=[b])], 0.5, 0.9, 1e-3),
        ),
    )
