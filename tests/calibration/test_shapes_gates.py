"""The example in int8 at the size of the published gates: 64 seeds, and the checker on 200 prompts x 4 seeds."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import latentrt
from latentrt.bundle import Bundle
from latentrt.calibration.judge import judge

SHAPES = Path(__file__).parents[2] / "examples" / "shapes"
SEEDS = 64
CAPTIONS, SEEDS_EACH = 200, 4
MEDIAN_LIMIT_DB = 38.3  # what the default policy measures (docs/calibration.md) minus 1 dB
ACCURACY_LOSS_LIMIT = 0.02

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def captions() -> list[str]:
    sys.path.append(str(SHAPES))
    from scenes import draw_scenes

    scenes = draw_scenes(CAPTIONS, np.random.default_rng((7, False)), held_out=True, pairs=0.0)
    return [scene.caption for scene in scenes]


def test_the_median_image_of_64_seeds(calibrated, shapes_bundle, brief, captions):
    exam = replace(brief.exam, prompts=tuple(captions[:SEEDS]), steps=20, min_psnr=MEDIAN_LIMIT_DB)
    rows = judge(calibrated.bundle, Bundle.open(shapes_bundle), exam, status=print)
    assert [row for row in rows if not row.passed] == []


def test_pictures_show_what_their_prompts_say_as_often_as_floats(calibrated, shapes_bundle, captions):
    from checker import score

    def accuracy(root: Path) -> float:
        shares = []
        with latentrt.load(root, backend="openvino") as pipe:
            for number, caption in enumerate(captions):
                images = pipe.generate(caption, seed=1000 * number, images=SEEDS_EACH, steps=20, guidance=7.5).images
                shares.append(score(images, [caption] * SEEDS_EACH))
        return float(np.mean(shares))

    assert accuracy(calibrated.bundle.root) >= accuracy(shapes_bundle) - ACCURACY_LOSS_LIMIT
