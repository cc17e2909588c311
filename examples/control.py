"""Edges of one picture leading others, with the example checkpoint and its ControlNet: docs/images/control.webp.

make control                                                  # build/control.png
.venv/bin/python examples/control.py docs/images/control.webp
"""

import sys
from pathlib import Path
from typing import Any

from tasks import strip

import latentrt

BUNDLE = Path("build/bundles/shapes-control")
SETTINGS: dict[str, Any] = {"steps": 30, "guidance": 4.0, "sampler": "dpmpp-2m", "seed": 5}
PHOTO = "a green heart on a white background"
PROMPTS = ("a red heart on a black background", "a cyan heart on a navy background", "")


def main() -> None:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "build/control.png")
    with latentrt.load(BUNDLE) as pipe:
        photo = pipe.generate(PHOTO, **SETTINGS).images[0]
        edges = latentrt.canny(photo)
        made = {
            prompt: pipe.generate(
                prompt, **{**SETTINGS, "seed": 11}, control=[latentrt.Control("edges", edges)]
            ).images[0]
            for prompt in PROMPTS
        }
    panels = [(PHOTO, photo), ("its edges", edges)]
    panels += [(prompt if prompt else "the edges without a prompt", image) for prompt, image in made.items()]
    strip(panels).save(output, optimize=True)
    print(output)


if __name__ == "__main__":
    main()
