"""The input image of pixel operations."""

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 37, 45


def picture():
    """Byte n, over rows, columns and channels, is 127.5 + 60 (sin(0.1 + 0.05 n) + sin(0.0007 n))."""
    n = np.arange(HEIGHT * WIDTH * 3)
    bytes_ = np.rint(127.5 + 60 * np.sin(0.1 + 0.05 * n) + 60 * np.sin(0.0007 * n)).astype(np.uint8)
    return Image.fromarray(bytes_.reshape(HEIGHT, WIDTH, 3))


def case(name, config, image):
    """A case: the bytes of the output."""
    out = np.atleast_3d(np.asarray(image))
    return dict(case=name, config=config, shape=out.shape, output=out.flatten())
