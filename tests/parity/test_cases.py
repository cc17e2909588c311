"""Runs that `latentrt check` compares, without a network."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latentrt.denoise.batch import make_plan
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.parity.cases import GUIDED, UNGUIDED, CaseTable, alone_and_together
from latentrt.export.synthetic.checkpoints import make_checkpoint


@pytest.mark.parametrize(("architecture", "samplers"), [("tiny-sd15", 3), ("tiny-sd3", 2)])
def test_a_batch_mixes_samplers_that_the_family_has(architecture: str, samplers: int, tmp_path: Path):
    family = read_family(Checkpoint.open(make_checkpoint(architecture, tmp_path / "checkpoint")))
    batches = []

    def run(*requests):
        plan = make_plan(requests, family)
        batches.append(plan.requests)
        return SimpleNamespace(images=np.zeros((len(plan.image_plans), 8, 8, 3), np.uint8))

    pipe = SimpleNamespace(bundle=SimpleNamespace(family=family), run=run)
    assert alone_and_together(pipe, CaseTable(family)) == 0
    together, *alone = batches
    assert len(together) == len(alone) == 3
    assert len({request.sampler for request in together}) == samplers
    assert len({request.prompt for request in together}) == 3


@pytest.mark.parametrize("architecture", ["tiny-sd15", "tiny-sdxl", "tiny-sd3"])
def test_cases_are_of_the_family(architecture: str, tmp_path: Path):
    family = read_family(Checkpoint.open(make_checkpoint(architecture, tmp_path / "checkpoint")))
    family = replace(
        family, defaults=replace(family.defaults, size=(1024, 1024), steps=4, guidance=3.0), size_range_px=(64, 4096)
    )
    full, quick = (CaseTable(family, quick=quick) for quick in (False, True))
    assert {case.size for case in full.every(["one"])} == {(1024, 1024), (512, 768)}
    assert {case.size for case in quick.every(["one"])} == {(512, 768), (768, 512)}
    assert {(case.guidance, len(case.prompts)) for case in full.every(["one"])} == {
        (guidance, images) for guidance in (UNGUIDED, 3.0) for images in (1, 3)
    }
    assert {case.steps for case in full.every(["one"])} == {4}
    (seeds,) = full.seeds(["one", family.noise.default_sampler], [])
    assert (seeds.sampler, seeds.size, len(seeds.prompts)) == (family.noise.default_sampler, (1024, 1024), 16)
    pieces = seeds.pieces
    assert [piece.seed for piece in pieces] == list(range(seeds.seed, seeds.seed + 16))
    assert sum((piece.prompts for piece in pieces), ()) == seeds.prompts
    assert CaseTable(family, ["mine"]).own(images=2).prompts == ("mine", "mine")


def test_a_model_without_guidance_is_tried_with_it_too(tmp_path: Path):
    """Networks that are distilled to need none still run two branches where they are asked to."""
    family = read_family(Checkpoint.open(make_checkpoint("tiny-sd15", tmp_path / "checkpoint")))
    family = replace(family, defaults=replace(family.defaults, guidance=0.0))
    assert {case.guidance for case in CaseTable(family).every(["euler"])} == {UNGUIDED, GUIDED}


@pytest.mark.parametrize("sides", [(64, 64), (512, 512), (1024, 576), (768, 1344)])
@pytest.mark.parametrize("multiple", [8, 16, 64])
def test_the_small_size_is_one_of_the_family(sides: tuple[int, int], multiple: int, tmp_path: Path):
    family = read_family(Checkpoint.open(make_checkpoint("tiny-sd15", tmp_path / "checkpoint")))
    table = CaseTable(replace(family, defaults=replace(family.defaults, size=sides), size_multiple_px=multiple))
    assert all(side % multiple == 0 and family.size_range_px[0] <= side for side in table.small)
    assert all(small <= side for small, side in zip(table.small, sides, strict=True))
