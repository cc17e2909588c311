"""A small dataset, and a sheet of its pictures: docs/images/bulk.webp.

make bundle && .venv/bin/python examples/bulk.py [FILE]
"""

import json
import sys
from pathlib import Path

from PIL import Image
from tasks import BUNDLE, MARGIN

from latentrt.cli import main as latentrt

PROMPTS, FOLDER = Path("examples/shapes/prompts.txt"), Path("build/dataset-sheet")
COUNT, COLUMNS, SIDE_PX = 24, 8, 64


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else "docs/images/bulk.webp"
    FOLDER.mkdir(parents=True, exist_ok=True)
    prompts = FOLDER / "prompts.txt"
    prompts.write_text("".join(PROMPTS.read_text(encoding="utf-8").splitlines(keepends=True)[:COUNT]))
    asked = ["--steps", "20", "--guidance", "4", "--seed", "7", "--batch", "8"]
    images = FOLDER / "images"
    if code := latentrt(["generate", str(BUNDLE), "--prompts", str(prompts), *asked, "-o", str(images)]):
        sys.exit(code)
    rows = [json.loads(line) for line in (images / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    sheet([images / row["file_name"] for row in rows]).save(path, quality=90, method=6)
    print(path)


def sheet(paths: list[Path]) -> Image.Image:
    """The pictures side by side, row by row, reduced."""
    step = SIDE_PX + MARGIN
    made = Image.new("RGB", (COLUMNS * step + MARGIN, -(-len(paths) // COLUMNS) * step + MARGIN), "#ddd")
    for number, path in enumerate(paths):
        row, column = divmod(number, COLUMNS)
        with Image.open(path) as image:
            small = image.resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
        made.paste(small, (MARGIN + column * step, MARGIN + row * step))
    return made


if __name__ == "__main__":
    main()
