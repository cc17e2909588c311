"""`latentrt check` of an int8 bundle: by the gates of quantised bundles, against its float parent and against torch."""

from dataclasses import replace
from pathlib import Path

import pytest

from latentrt.bundle import STEP_CONTROL, Bundle
from latentrt.errors import RequestError
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.parity import check
from latentrt.export.parity.check import run_check
from latentrt.export.parity.measurement import Measurements
from latentrt.export.parity.reference import BundleReference
from latentrt.export.parity.torch.reference import TorchReference

PROMPTS = ("a red circle on a white background", "a blue star on a black background")


@pytest.fixture(scope="module")
def checked(calibrated, shapes_bundle: Path, shapes_checkpoint: Path) -> list[Measurements]:
    """Against the float bundle, then against the checkpoint."""
    sides = [BundleReference(Bundle.open(shapes_bundle)), TorchReference(Checkpoint.open(shapes_checkpoint))]
    return [run_check(calibrated.bundle, side, backends=("onnxruntime",), prompts=PROMPTS) for side in sides]


def test_what_is_int8_has_its_own_gates_and_what_is_float_those_of_float(checked):
    for measurements in checked:
        assert [row for row in measurements.rows if not row.passed] == []
        limits = {row.subject: {other.limit for other in measurements.rows if other.subject == row.subject}
                  for row in measurements.rows}  # fmt: skip
        assert limits == {
            "component text_encoder": {1e-4},
            "component decoder": {1e-3},
            "component encoder": {1e-4},
            "component step": {25.0, None},
            "images": {None},
        }


def test_bundle_and_torch_measure_the_same(checked):
    """Float32 in ONNX Runtime is torch's to 1e-6, far below what rounding to int8 does; but a value on the edge of two
    steps of int8 falls to either, and the rest of the trajectory with it. 0.16 dB measured with AMX."""
    ours, torch = ([row.value for row in measurements.rows if row.unit == "dB SQNR"] for measurements in checked)
    assert len(ours) == 2
    assert torch == pytest.approx(ours, abs=0.5)


def test_a_quantised_bundle_is_no_reference(calibrated):
    with pytest.raises(RequestError, match=r"step of .* is int8.*fp32 or fp16"):
        BundleReference(calibrated.bundle)


@pytest.mark.families
def test_the_step_with_residuals_is_judged_along_a_run_with_the_control(
    controlled_int8: Path, controlled_bundle: Path, brief, monkeypatch: pytest.MonkeyPatch
):
    """Against the float bundle, which knows one of the two ControlNets."""
    side = BundleReference(Bundle.open(controlled_bundle))
    side.components = ("step", STEP_CONTROL, "controlnet-random")
    evaluation = replace(brief.evaluation, size=(64, 64), prompts=PROMPTS[:1], backends=("onnxruntime",))
    monkeypatch.setattr(check, "evaluation_of", lambda *_, **__: evaluation)
    rows = check.run_check(Bundle.open(controlled_int8), side, backends=("onnxruntime",)).rows
    assert [row for row in rows if not row.passed] == []
    found = {row.case: row for row in rows if row.subject == f"component {STEP_CONTROL}" and row.limit is not None}
    assert found.keys() == {f"network, {branch} branch, control random" for branch in ("negative", "prompt")}
    assert all(row.limit == 25.0 and 25 < row.value < 60 and len(row.series) == 5 for row in found.values())
    assert {row.limit for row in rows if row.subject == "component controlnet-random"} == {1e-4}
    assert len([row for row in rows if row.subject == "images" and "control random, median of" in row.case]) == 1
