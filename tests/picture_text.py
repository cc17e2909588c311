"""What a PNG says of how it was made, read by Pillow alone."""

from pathlib import Path

from PIL import Image


def read_parameters(path: Path) -> str | None:
    """The text of the chunk `parameters`."""
    with Image.open(path, formats=["PNG"]) as image:
        image.load()  # the chunk may come after the pixels
        return image.info.get("parameters")
