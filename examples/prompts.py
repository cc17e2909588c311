"""What prompts may hold, and guidance: docs/images/prompts.webp, embedding.webp and guidance.webp.

make bundle && .venv/bin/python examples/prompts.py [FOLDER]
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tasks import BUNDLE, SETTINGS, Panel, strip
from tokenizers import Tokenizer

import latentrt

TEXT_ENCODER = Path("examples/shapes/checkpoint/text_encoder/model.safetensors")
SEED = 11
WHITE = " on a white background"
PAIR, PAIR_SEED = "a cyan ring above a purple square on a black background", 16

WRITTEN = (
    ("a blue star left of a red circle", f"a blue star left of a red circle{WHITE}"),
    ("a (blue:1.6) star left of a red circle", f"a (blue:1.6) star left of a red circle{WHITE}"),
    ("a blue star left of a (red:1.6) circle", f"a blue star left of a (red:1.6) circle{WHITE}"),
    ("a red circle :0.5 AND a blue circle :0.5", f"a red circle{WHITE} :0.5 AND a blue circle{WHITE} :0.5"),
    ("a red circle BREAK a blue star", "a red circle BREAK a blue star"),
)
EMBEDDED = (
    "a red circle on a white background",
    "a blue circle on a white background",
    "a <red-blue> circle on a white background",
    "a <red-blue> star on a black background",
)
GUIDED = (
    ("guidance 1", {"guidance": 1.0}),
    ("guidance 4", {"guidance": 4.0}),
    ("guidance 14", {"guidance": 14.0}),
    ("guidance 14, from 0.2 to 0.8", {"guidance": latentrt.Guidance(14.0, interval=(0.2, 0.8))}),
)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    with latentrt.load(BUNDLE) as pipe, tempfile.TemporaryDirectory() as scratch:
        pipe.add_embedding("red-blue", between("red", "blue", Path(scratch) / "red-blue.safetensors"))

        def panel(caption: str, prompt: str, **settings: object) -> Panel:
            return caption, pipe.generate(prompt, **{**SETTINGS, "seed": SEED, **settings}).images[0]

        write(folder / "prompts.webp", [panel(*each) for each in WRITTEN])
        write(folder / "embedding.webp", [panel(prompt.replace(WHITE, ""), prompt) for prompt in EMBEDDED])
        guided = [panel(caption, PAIR, seed=PAIR_SEED, **settings) for caption, settings in GUIDED]
        write(folder / "guidance.webp", guided)


def between(one: str, other: str, path: Path) -> Path:
    """Writes a file of textual inversion that lies half way between two words of the vocabulary, in the layout of
    stable-diffusion-webui. A trained one is such a vector, too."""
    vectors = load_file(TEXT_ENCODER)["embeddings.token_embedding.weight"]
    tokenizer = Tokenizer.from_file(str(BUNDLE / "tokenizer" / "tokenizer.json"))
    first, second = (tokenizer.encode(word, add_special_tokens=False).ids for word in (one, other))
    save_file({"emb_params": (vectors[first] + vectors[second]).astype(np.float32) / 2}, path)
    return path


def write(path: Path, panels: Sequence[Panel]) -> None:
    strip(panels).save(path, quality=90, method=6)
    print(path)


if __name__ == "__main__":
    main()
