"""A JPEG file of 16 x 8 pixels with a dark left half and a bright right half."""

import io

from PIL import Image

PATH = "pauc-data/tests/golden/halves.jpg"


def make():
    """The bytes of the file."""
    image = Image.new("RGB", (16, 8), (20, 30, 40))
    image.paste((220, 210, 200), (8, 0, 16, 8))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
