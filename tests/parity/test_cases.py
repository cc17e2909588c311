"""Runs that `latentrt check` compares, without a network."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.family import read_family
from latentrt.export.parity.cases import alone_and_together
from latentrt.export.synthetic import make_checkpoint
from latentrt.plan import make_plan


@pytest.mark.parametrize(("architecture", "samplers"), [("tiny-sd15", 3), ("tiny-sd3", 2)])
def test_a_batch_mixes_samplers_that_the_family_has(architecture: str, samplers: int, tmp_path: Path):
    family = read_family(Checkpoint.open(make_checkpoint(architecture, tmp_path / "checkpoint")))
    batches = []

    def run(*requests):
        plan = make_plan(requests, family)
        batches.append(plan.requests)
        return SimpleNamespace(images=np.zeros((len(plan.tracks), 8, 8, 3), np.uint8))

    assert alone_and_together(SimpleNamespace(bundle=SimpleNamespace(family=family), run=run)) == 0
    together, *alone = batches
    assert len(together) == len(alone) == 3
    assert len({request.sampler for request in together}) == samplers
    assert len({request.prompt for request in together}) == 3
