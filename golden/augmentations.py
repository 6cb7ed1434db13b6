"""Pixel operations with fixed parameters: torchvision's functional operations on Pillow images."""

import numpy as np
from PIL import ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from images import HEIGHT, WIDTH, case, picture

PATH = "pauc-data/tests/golden/augmentations.json"

# Only integers, and parameters that are literals.
TOLERANCE = FLOOR = 0.0


def resized(interpolation):
    """With one filter: a crop that is shrunk, one that is enlarged, and the center of a shrunk image."""
    image, mode = picture(), InterpolationMode(interpolation)
    small = dict(top=5, left=7, height=21, width=30, size=16)
    large = dict(top=2, left=3, height=9, width=11, size=24)
    short, crop = 28, 24

    def resized_crop(top, left, height, width, size):
        return tv.resized_crop(image, top, left, height, width, [size, size], mode)

    middle = tv.center_crop(tv.resize(image, short, mode), [crop, crop])
    return [
        case(
            f"resized_crop/{interpolation}",
            dict(small, interpolation=interpolation, antialias="PIL"),
            resized_crop(**small),
        ),
        case(
            f"resized_crop_up/{interpolation}",
            dict(large, interpolation=interpolation),
            resized_crop(**large),
        ),
        case(
            f"resize_short_crop/{interpolation}",
            dict(resize_short=short, crop=crop, interpolation=interpolation),
            middle,
        ),
    ]


def make():
    """All cases, and their input image."""
    image = picture()

    def factor(name, operation, value):
        return case(name, dict(factor=value), operation(image, value))

    def pillow_blur(sigma):
        blurred = image.filter(ImageFilter.GaussianBlur(sigma))
        return case(f"gaussian_blur_pil/{sigma}", dict(sigma=sigma, model="PIL box approximation"), blurred)

    return dict(
        input=dict(height=HEIGHT, width=WIDTH, data=np.asarray(image).flatten()),
        cases=[
            *resized("bilinear"),
            *resized("bicubic"),
            case("hflip", {}, tv.hflip(image)),
            factor("brightness", tv.adjust_brightness, 1.3),
            factor("contrast", tv.adjust_contrast, 0.6),
            factor("saturation", tv.adjust_saturation, 1.4),
            factor("hue", tv.adjust_hue, 0.08),
            factor("hue_neg", tv.adjust_hue, -0.1),
            case("grayscale", {}, tv.rgb_to_grayscale(image, 3)),
            case("solarize", dict(threshold=128), tv.solarize(image, 128)),
            *map(pillow_blur, (0.3, 1.0, 2.0)),
            case(
                "gaussian_blur_tv/k5s1.0",
                dict(kernel=5, sigma=1.0, model="torchvision, reflect padding"),
                tv.gaussian_blur(image, [5, 5], [1.0, 1.0]),
            ),
        ],
        source="torchvision 0.29.2 functional on PIL images",
    )
