"""A picture of each task, made with the example checkpoint: docs/images/tasks-*.webp.

make bundle && .venv/bin/python examples/tasks.py [FOLDER]
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

import latentrt

BUNDLE = Path("build/bundles/shapes")
SETTINGS: dict[str, Any] = {"steps": 30, "guidance": 4.0, "sampler": "dpmpp-2m", "seed": 7}
PHOTO = "a red circle on a white background"
CAPTION_PX, MARGIN = 18, 8

Pixels = npt.NDArray[np.uint8]
Panel = tuple[str, Pixels]


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    with latentrt.load(BUNDLE) as pipe:
        photo = pipe.generate(PHOTO, **SETTINGS).images[0]
        for name, panels in tasks(pipe, photo).items():
            path = folder / f"tasks-{name}.webp"
            strip(panels).save(path, quality=90, method=6)
            print(path)


def tasks(pipe: latentrt.Pipeline, photo: Pixels) -> dict[str, Sequence[Panel]]:
    """The panels of each picture, by the task's name."""

    def made(prompt: str, **arguments: Any) -> Pixels:
        picture: Pixels = pipe.generate(prompt, **{**SETTINGS, **arguments}).images[0]
        return picture

    star = "a blue star on a white background"
    hole = np.zeros(photo.shape[:2], np.bool_)
    hole[24:112, 16:104] = True
    # A large photo: the small one on a sheet of its own colour, so that only a part of it is worked on.
    large = np.full((256, 384, 3), photo[16, 64], np.uint8)
    large[80:176, 48:144] = photo[16:112, 16:112]
    part = np.zeros(large.shape[:2], np.bool_)
    part[72:184, 232:344] = True
    narrow = photo[:, 20:]
    both = "a blue star left of a red circle on a white background"
    size = pipe.bundle.family.defaults.size
    return {
        "image": [
            ("photo", photo),
            *((f"strength {s:g}", made(star, start=latentrt.Image(photo, s))) for s in (0.4, 0.6, 0.8)),
        ],
        "inpaint": [
            ("photo", photo),
            ("mask", shown(hole)),
            (star, made(star, start=latentrt.Inpaint(photo, hole))),
        ],
        "margin": [
            ("photo, 384x256", large),
            ("mask", shown(part)),
            ("the part made at 128x128", made(star, start=latentrt.Inpaint(large, part, margin=8))),
        ],
        "outpaint": [
            ("photo", narrow),
            (both, made(both, start=latentrt.Outpaint(narrow, left=64))),
        ],
        "upscale": [
            (f"{size[0]}x{size[1]}", photo),
            *(
                (f"twice the size, in {space}s", made(PHOTO, upscale=latentrt.Upscale(2.0, strength=s, space=space)))
                for space, s in (("latent", 0.5), ("pixel", 0.3))
            ),
        ],
    }


def shown(mask: npt.NDArray[np.bool_]) -> Pixels:
    """A mask, white where it paints, uint8 [H, W, 3]."""
    return np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * np.uint8(255)


def strip(panels: Sequence[Panel]) -> Image.Image:
    """Panels in a row, each under its caption."""
    font = ImageFont.load_default(11)
    widths = [max(picture.shape[1], round(font.getlength(caption))) for caption, picture in panels]
    height = max(picture.shape[0] for _, picture in panels)
    sheet = Image.new("RGB", (sum(widths) + MARGIN * (len(panels) + 1), height + CAPTION_PX + 2 * MARGIN), "#ddd")
    draw, x = ImageDraw.Draw(sheet), MARGIN
    for (caption, picture), width in zip(panels, widths, strict=True):
        draw.text((x, MARGIN), caption, "black", font)
        sheet.paste(Image.fromarray(picture), (x, MARGIN + CAPTION_PX))
        x += width + MARGIN
    return sheet


if __name__ == "__main__":
    main()
