"""`latentrt check` of bundles with ControlNets: their graphs, the step that takes their residuals, and whole images."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.cases import shapes_case

import latentrt
from latentrt.bundle import STEP_CONTROL, Bundle
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.controlnets.controlnet import ControlNet
from latentrt.export.graphs.components import component_specs
from latentrt.export.parity import check, components
from latentrt.export.parity.cases import CaseTable
from latentrt.export.parity.components import compare, step_feed
from latentrt.export.parity.measurement import Measurement
from latentrt.export.parity.metrics import worst_psnr_db
from latentrt.export.parity.pictures import control_picture
from latentrt.export.parity.reference import BundleReference, Reference
from latentrt.export.parity.torch.reference import TorchReference
from latentrt.export.synthetic.checkpoints import make_checkpoint

PARTS = ("controlnet-random", STEP_CONTROL)
Rows = Callable[..., Sequence[Measurement]]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Rows:
    """The check's rows on what controls need, with small images."""
    own, seeds = CaseTable.own, CaseTable.seeds
    monkeypatch.setattr(components, "SIZES", components.SIZES[:2])
    monkeypatch.setattr(CaseTable, "own", lambda *given, **named: replace(own(*given, **named), steps=4))
    monkeypatch.setattr(CaseTable, "every", lambda *_: [])
    monkeypatch.setattr(
        CaseTable,
        "seeds",
        lambda *given: [replace(case, size=(64, 64), prompts=case.prompts[:4]) for case in seeds(*given)],
    )
    monkeypatch.setattr(check, "alone_and_together", lambda *_: 0)
    monkeypatch.setattr(check, "_reduced_precision", lambda bundle: [])

    def made(bundle: Path, reference: Reference, **options: object) -> Sequence[Measurement]:
        reference.components = tuple(name for name in reference.components if name in PARTS)
        return check.run_check(Bundle.open(bundle), reference, **{"backends": ("onnxruntime",), **options}).rows

    return made


def torch_side(checkpoint: Path, bundle: Path, net: Path) -> TorchReference:
    nets = [ControlNet.open("random", net)]
    return TorchReference(Checkpoint.open(checkpoint), controlled=Bundle.open(bundle), controlnets=nets)


def failed(rows: Sequence[Measurement]) -> set[str]:
    return {row.subject for row in rows if not row.passed}


@pytest.mark.families
def test_graphs_and_an_image_with_a_control_equal_those_of_torch(
    rows: Rows, controlled_bundle: Path, shapes_checkpoint: Path, random_controlnet: Path
):
    reference = torch_side(shapes_checkpoint, controlled_bundle, random_controlnet)
    found = rows(controlled_bundle, reference, backends=("openvino",), samplers=("euler", "ddim"))
    assert failed(found) == set()
    assert {row.subject for row in found if row.limit is not None} == {
        *(f"component {name}" for name in PARTS),
        "images",
        "batches",
    }
    (case,) = [row.case for row in found if row.subject == "images"]
    assert case == "ddim 128x128, batch 1, guidance 7.5, control random"


def test_the_image_with_a_control_is_another_one(controlled_bundle: Path):
    with latentrt.load(controlled_bundle, backend="onnxruntime") as pipe:
        plain, led = (pipe.run(shapes_case("ddim", steps=4, control=name).request).images for name in (None, "random"))
    assert worst_psnr_db(plain, led) < 30
    assert 0.02 < (control_picture((128, 128)) > 0).mean() < 0.2


def test_weights_of_another_controlnet_fail_and_the_step_does_not(
    rows: Rows, controlled_bundle: Path, shapes_checkpoint: Path, random_controlnet: Path, tmp_path: Path
):
    net = ControlNet.open("random", random_controlnet).load()
    with torch.no_grad():
        net.controlnet_mid_block.weight *= 1.02
    net.save_pretrained(tmp_path / "other")
    reference = torch_side(shapes_checkpoint, controlled_bundle, tmp_path / "other")
    assert failed(rows(controlled_bundle, reference, samplers=())) == {"component controlnet-random"}


@pytest.mark.families
def test_in_16_bit_they_are_judged_by_the_gates_of_16_bit(rows: Rows, controlled_fp16: Path, controlled_bundle: Path):
    found = rows(controlled_fp16, BundleReference(Bundle.open(controlled_bundle)))
    assert failed(found) == set()
    for name in PARTS:
        mine = [row for row in found if row.subject == f"component {name}"]
        assert {row.limit for row in mine} == ({45.0} if name != STEP_CONTROL else {45.0, None})
        assert all(45 < row.value < 120 for row in mine if row.limit is not None)
    (led,) = [row for row in found if "control random, median of" in row.case]
    assert led.limit == 35.0
    assert 35 < led.value < 100


def test_a_residual_that_goes_astray_is_seen(controlled_bundle: Path):
    """Any of them, however little of the whole it is."""
    bundle = Bundle.open(controlled_bundle)
    run, *_ = BundleReference(bundle).runs(STEP_CONTROL)
    residuals = [name for name in run.feed if name.startswith("residual_")]
    assert len(residuals) == 7
    without = [replace(run, feed={**run.feed, name: np.zeros_like(run.feed[name])}) for name in residuals]
    results = compare(STEP_CONTROL, bundle.component(STEP_CONTROL).graph, [*without, run])
    assert [result.passed for result in results] == [False] * 7 + [True]


@pytest.mark.parametrize("architecture", ["tiny-sdxl", "tiny-lcm"])
def test_without_residuals_the_torch_side_is_the_step(architecture: str, tmp_path: Path):
    """Families with inputs of their own, which diffusers' forward pass takes by other names."""
    checkpoint = Checkpoint.open(make_checkpoint(architecture, tmp_path / "checkpoint"))
    (spec,) = [spec for spec in component_specs(checkpoint, read_family(checkpoint)) if spec.name == "step"]
    network = spec.load()
    step, reference = spec.wrap(network), spec.refer(network)
    feed = {name: torch.from_numpy(value) for name, value in step_feed(spec.inputs, (64, 64), 1, guided=True).items()}
    taken: list[torch.Tensor] = []
    for block in (*network.down_blocks, network.mid_block):
        block.register_forward_hook(lambda _, __, out: taken.extend(out[1] if isinstance(out, tuple) else [out]))
    network.conv_in.register_forward_hook(lambda _, __, out: taken.append(out))
    with torch.no_grad():
        plain, _ = step(**feed)
        zeros = {f"residual_{n}": torch.zeros_like(value).unflatten(0, (2, 1)) for n, value in enumerate(taken)}
        found, _ = reference(**feed, **zeros)
        moved, _ = reference(**feed, **{name: value + 0.1 for name, value in zeros.items()})
    assert torch.allclose(found, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))
    assert not torch.allclose(moved, plain, rtol=0, atol=1e-3 * float(plain.abs().max()))
