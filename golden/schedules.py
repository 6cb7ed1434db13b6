"""The cosine schedules of a learning rate with warm-up and of a momentum."""

import math

from common import U

PATH = "pauc-models/tests/golden/schedules.json"

# A fraction of the steps, an angle, its cosine, and a few operations that convert it to a rate.
TOLERANCE = 10 * U
FLOOR = 1.0


def cosine(step, last, start, end):
    """Half a cosine from `start` at step 0 to `end` at the last step."""
    return end - (end - start) * (1 + math.cos(math.pi * step / last)) / 2


def make():
    """Twenty steps of each schedule."""
    warmup, steps = 5, 20
    rising = [(n + 1) / warmup for n in range(warmup)]
    falling = [cosine(n, steps - warmup - 1, 1.0, 0.001) for n in range(steps - warmup)]
    return dict(
        cosine_warmup=dict(
            source="lightly CosineWarmupScheduler warmup 5 of 20, base lr 1", lr=rising + falling
        ),
        ema_cosine=dict(
            source="lightly cosine_schedule(step, 20, 0.99, 1.0)",
            m=[cosine(n, steps - 1, 0.99, 1.0) for n in range(steps)],
        ),
    )
