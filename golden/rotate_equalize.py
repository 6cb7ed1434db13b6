"""Rotation and histogram equalization, with Pillow."""

from PIL import Image, ImageOps

from images import case, picture

PATH = "pauc-data/tests/golden/rotate_equalize.json"

# Only integers, and angles that are literals.
TOLERANCE = FLOOR = 0.0


def make():
    """Various angles with both filters; equalization of color images, gray images and few levels."""
    image = picture()
    filters = dict(nearest=Image.Resampling.NEAREST, bilinear=Image.Resampling.BILINEAR)
    return dict(
        source="Pillow 13.0.0: image.rotate(angle, resample) and ImageOps.equalize of the input of "
        "augmentations.json; grey is its convert('L'), dark its point(v // 16)",
        cases=[
            *[
                case(f"rotate/{name}", dict(angle=angle), image.rotate(angle, resample))
                for angle in (17.3, -45, 90, 180, 271.5)
                for name, resample in filters.items()
            ],
            case("equalize", {}, ImageOps.equalize(image)),
            case("equalize/grey", {}, ImageOps.equalize(image.convert("L"))),
            case("equalize/dark", {}, ImageOps.equalize(image.point(lambda v: v // 16))),
        ],
    )
