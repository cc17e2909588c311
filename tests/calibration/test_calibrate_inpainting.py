"""A network that sees a photo and a mask, in int8: counted and judged with a text alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from latentrt.bundle import Bundle
from latentrt.calibration.package import calibrate_bundle
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.parity.check import run_check
from latentrt.export.parity.torch.reference import TorchReference


@pytest.mark.families
def test_it_is_calibrated_and_checked(inpainting_bundle: Path, inpainting_checkpoint: Path, brief, tmp_path: Path):
    small = {"prompts": ("a red circle",), "steps": 2}
    done = calibrate_bundle(
        Bundle.open(inpainting_bundle),
        tmp_path / "int8",
        policy=replace(brief.policy, alpha=None),
        settings=replace(brief.settings, sizes=((64, 64),), **small),
        evaluation=replace(brief.evaluation, size=(64, 64), backends=("onnxruntime",), **small),
    )
    judged = [row for row in done.rows if row.limit is not None]
    assert len(judged) == 2 and all(row.passed for row in judged)
    reference = TorchReference(Checkpoint.open(inpainting_checkpoint))
    reference.components = ()
    again = run_check(done.bundle, reference, backends=("onnxruntime",), prompts=small["prompts"]).rows
    ours, torch = ([row.value for row in rows if row.unit == "dB SQNR"] for rows in (judged, again))
    assert len(torch) == 2
    # Of two calls on 64 cells, a value that rounds the other way is a tenth of a dB.
    assert all(abs(a - b) < 0.5 for a, b in zip(ours, torch, strict=True))
