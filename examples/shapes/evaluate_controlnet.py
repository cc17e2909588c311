"""How closely pictures follow the edges that a ControlNet is shown, with it and without.

.venv/bin/python examples/shapes/evaluate_controlnet.py build/bundles/shapes-control
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scenes import draw_scenes, render

import latentrt

SEED = 97
REACH = 5  # width in pixels of the window in which edges count as met: 2 px to each side


def followed(made: NDArray[np.uint8], given: NDArray[np.uint8]) -> float:
    """Share of the given edges that the picture has, and of its own that were given, the harmonic mean (F1)."""
    found, asked = latentrt.canny(made)[..., 0], given[..., 0]
    if not found.any() or not asked.any():
        return 0.0
    recall, precision = _near(found)[asked > 0].mean(), _near(asked)[found > 0].mean()
    return float(2 * recall * precision / max(recall + precision, 1e-9))


def _near(edges: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.asarray(Image.fromarray(edges).filter(ImageFilter.MaxFilter(REACH))) > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--control", default="edges", metavar="NAME")
    options = parser.parse_args()
    rng = np.random.default_rng(SEED)
    scenes = draw_scenes(options.scenes, rng, evaluator=True)
    given = [latentrt.canny(render(scene, rng)) for scene in scenes]
    request = latentrt.Request("", steps=20, sampler="dpmpp-2m", guidance=4.0)
    rows: dict[str, list[float]] = {"caption alone": [], "caption and edges": [], "edges alone, guess": []}
    with latentrt.load(options.bundle) as pipe:
        for seed, (scene, edges) in enumerate(zip(scenes, given, strict=True)):
            for row, prompt, controls in (
                ("caption alone", scene.caption, []),
                ("caption and edges", scene.caption, [latentrt.Control(options.control, edges)]),
                ("edges alone, guess", "", [latentrt.Control(options.control, edges, guess=True)]),
            ):
                made = pipe.generate(replace(request, prompt=prompt, seed=seed, control=controls))
                rows[row].append(followed(made.images[0], edges))
    for row, values in rows.items():
        print(f"{row:<20} F1 {np.mean(values):.3f}")


if __name__ == "__main__":
    main()
