"""How often the checkpoint draws what held-out prompts say, sampled by diffusers and judged by the checker.

Prints one JSON object with the share of pictures right in each attribute and in all of them.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from checker import Pixels, Verdict, check
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from scenes import Scene, draw_scenes

HERE = Path(__file__).resolve().parent
SEED = 7


def evaluator_prompts(count: int, *, pairs: bool) -> list[str]:
    """Captions with a (colour, shape, background) that training never showed; all single or all pairs."""
    scenes: list[Scene] = draw_scenes(count, np.random.default_rng((SEED, pairs)), evaluator=True, pairs=float(pairs))
    return [scene.caption for scene in scenes]


def sample(pipeline: StableDiffusionPipeline, prompts: list[str], *, steps: int, guidance: float, batch: int) -> Pixels:
    """Pictures, uint8 [N, 128, 128, 3]; prompt i starts from `torch.Generator().manual_seed(i)`."""
    images: list[Pixels] = []
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        seeds = range(first, first + len(part))
        output = pipeline(
            part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        )
        images.append((output.images * 255).round().astype(np.uint8))
    return np.concatenate(images)


def summary(verdicts: list[Verdict]) -> dict[str, float]:
    rows = [asdict(verdict) | {"right": verdict.right} for verdict in verdicts]
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}


def save_grid(images: Pixels, path: Path, *, columns: int = 20) -> None:
    rows = -(-len(images) // columns)
    cells = np.zeros((rows * columns, *images.shape[1:]), dtype=np.uint8)
    cells[: len(images)] = images
    height, width = images.shape[1:3]
    sheet = cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    Image.fromarray(sheet.reshape(rows * height, columns * width, 3)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint")
    parser.add_argument("--count", type=int, default=200, help="prompts of each kind")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--pictures", type=Path, help="folder for a sheet of each kind's pictures")
    options = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(options.checkpoint).to(torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    report: dict[str, object] = {"sampler": "ddim", "steps": options.steps, "guidance": options.guidance}
    for kind in ("single", "pair"):
        prompts = evaluator_prompts(options.count, pairs=kind == "pair")
        started = time.monotonic()
        images = sample(pipeline, prompts, steps=options.steps, guidance=options.guidance, batch=options.batch)
        verdicts = [check(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        report[kind] = summary(verdicts) | {"prompts": len(prompts), "seconds": round(time.monotonic() - started, 1)}
        if options.pictures is not None:
            options.pictures.mkdir(parents=True, exist_ok=True)
            save_grid(images, options.pictures / f"{kind}.png")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
