"""`latentrt check` of a network that sees a photo and a mask: whole images begin with these."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from parity.cases import PROMPTS

import latentrt
from latentrt.bundle import Bundle
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.convert.precision import convert_bundle
from latentrt.export.parity import check
from latentrt.export.parity.cases import Case, CaseTable
from latentrt.export.parity.measurement import Measurement
from latentrt.export.parity.metrics import worst_psnr_db
from latentrt.export.parity.pictures import mask
from latentrt.export.parity.reference import BundleReference, Reference
from latentrt.export.parity.torch.reference import TorchReference

pytestmark = pytest.mark.families

SMALL = {"size": (64, 64), "steps": 4, "prompts": PROMPTS}


@pytest.fixture(scope="module")
def halved(inpainting_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In fp16; its range check runs the float32 graphs."""
    source, target = Bundle.open(inpainting_bundle), tmp_path_factory.mktemp("half") / "tiny"
    return convert_bundle(source, target, precision=dict.fromkeys(source.components, "fp16")).root


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch):
    """Rows of whole images, of few small ones."""
    monkeypatch.setattr(CaseTable, "every", lambda _, samplers: [Case(name, **SMALL) for name in samplers])
    monkeypatch.setattr(CaseTable, "seeds", lambda *_: [Case("dpmpp-2m", **SMALL)])
    monkeypatch.setattr(check, "alone_and_together", lambda *_: 0)

    def rows(bundle: Path, reference: Reference, **options: object) -> Sequence[Measurement]:
        reference.components = ()
        found = check.run_check(Bundle.open(bundle), reference, backends=("onnxruntime",), **options).rows
        return [row for row in found if row.subject == "images"]

    return rows


def test_in_float32_they_equal_those_of_the_inpainting_pipeline(images, inpainting_bundle, inpainting_checkpoint):
    reference = TorchReference(Checkpoint.open(inpainting_checkpoint))
    found = images(inpainting_bundle, reference, samplers=("ddim", "euler-a"))
    assert [row.case for row in found] == [
        f"{name} 64x64, batch 3, guidance 7.5, inpainting" for name in ("ddim", "euler-a")
    ]
    assert all(row.passed for row in found)


def test_in_fp16_they_are_near_either_reference(images, halved, inpainting_bundle, inpainting_checkpoint):
    sides = (BundleReference(Bundle.open(inpainting_bundle)), TorchReference(Checkpoint.open(inpainting_checkpoint)))
    values = []
    for reference in sides:
        median, *_ = images(halved, reference)
        assert median.case == "dpmpp-2m 64x64, batch 3, guidance 7.5, inpainting, median of 3 seeds"
        assert median.limit == 35.0
        assert 35 < median.value < 100
        values.append(median.value)
    assert values[0] == pytest.approx(values[1], abs=0.5)  # 0.013 dB measured: references differ by 1e-6


def test_the_photo_and_the_mask_make_another_image(inpainting_bundle: Path):
    case = Case("ddim", painted=True, **SMALL)
    turned = replace(case.request.start, mask=mask(case.size)[:, ::-1])
    with latentrt.load(inpainting_bundle, backend="onnxruntime") as pipe:
        found, other, text = (
            pipe.run(request).images
            for request in (case.request, replace(case.request, start=turned), replace(case, painted=False).request)
        )
    assert worst_psnr_db(found, text) < 40
    assert worst_psnr_db(found, other) < 40
