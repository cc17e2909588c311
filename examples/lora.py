"""Pictures with the example LoRA at several scales: docs/images/lora.webp.

make bundle && .venv/bin/python examples/lora.py [FILE]
"""

import sys

import numpy as np
from tasks import BUNDLE, SETTINGS, strip

import latentrt

LORA = "examples/shapes/lora/outlined.safetensors"
PROMPTS = ("a red square on a white background", "a cyan heart on a black background")
SCALES = (-0.5, 0.0, 0.5, 1.0)


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else "docs/images/lora.webp"
    panels = []
    with latentrt.load(BUNDLE) as pipe:
        for scale in SCALES:
            pipe.set_lora([(LORA, scale)])
            column = [pipe.generate(prompt, **SETTINGS).images[0] for prompt in PROMPTS]
            panels.append((f"scale {scale:g}" if scale else "without", np.concatenate(column)))
    strip(panels).save(path, quality=72, method=6)
    print(path)


if __name__ == "__main__":
    main()
