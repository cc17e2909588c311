"""One picture of what every mode makes, with the outlines of the labels drawn."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from latentrt.augment.labels import Label
from latentrt.augment.report import boxes_drawn

SIDE, GAP, HEAD = 112, 6, 16
Column = tuple[str, Sequence[tuple[Path, Sequence[Label]]]]


def sheet(columns: Iterable[Column], names: Sequence[str]) -> Image.Image:
    """A column a mode, with its name above."""
    drawn = [(title, [boxes_drawn(path, labels, names) for path, labels in rows]) for title, rows in columns]
    height = max(len(images) for _, images in drawn)
    step = SIDE + GAP
    canvas = Image.new("RGB", (len(drawn) * step + GAP, HEAD + height * step + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (title, images) in enumerate(drawn):
        draw.text((GAP + column * step, 4), title, fill="black")
        for index, image in enumerate(images):
            canvas.paste(image.resize((SIDE, SIDE)), (GAP + column * step, HEAD + index * step))
    return canvas
