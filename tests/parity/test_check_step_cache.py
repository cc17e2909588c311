"""`check` compares the graph of shallow calls as well: fed with what a deep call of the same inputs computed, it gives
what the checkpoint's step gives."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from latentrt import Request
from latentrt.bundle import Bundle
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.parity import check
from latentrt.export.parity.components import ComponentRun
from latentrt.export.parity.measurement import Measurements
from latentrt.export.parity.reference import BundleReference
from latentrt.export.parity.torch.reference import TorchReference


@pytest.fixture(autouse=True)
def without_images(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "_every_sampler", lambda *_: Measurements((), None))


def compared(bundle: Path, reference: TorchReference | BundleReference) -> dict[str, list]:
    reference.components = ("step", "step-shallow")
    rows = check.run_check(Bundle.open(bundle), reference, backends=["onnxruntime"]).rows
    return {name: [row for row in rows if row.subject == f"component {name}"] for name in reference.components}


def briefly(reference: TorchReference | BundleReference, monkeypatch: pytest.MonkeyPatch):
    """Of each component the first two runs alone: one size, without guidance and with it."""
    runs = reference.runs

    def two(component: str) -> list[ComponentRun]:
        return runs(component)[:2]

    monkeypatch.setattr("latentrt.export.parity.components.SIZES", ((104, 72, 2),))
    monkeypatch.setattr(reference, "runs", two)
    return reference


@pytest.mark.parametrize("against", ["checkpoint", "bundle"])
def test_the_shallow_graph_is_compared(against: str, cached_bundle: Path, shapes_checkpoint: Path, monkeypatch):
    reference = (
        TorchReference(Checkpoint.open(shapes_checkpoint))
        if against == "checkpoint"
        else BundleReference(Bundle.open(cached_bundle))
    )
    rows = compared(cached_bundle, briefly(reference, monkeypatch))
    assert len(rows["step-shallow"]) == len(rows["step"]) == 2
    assert all(row.passed for found in rows.values() for row in found)


def test_a_shallow_graph_that_computes_something_else_fails(cached_bundle: Path, tmp_path: Path, monkeypatch):
    copy = shutil.copytree(cached_bundle, tmp_path / "copy")
    graph = copy / "step-shallow.onnx"
    model = onnx.load(graph, load_external_data=False)
    last = next(init for init in model.graph.initializer if init.name.endswith("conv_out.bias"))
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) + np.float32(0.1), last.name))
    graph.write_bytes(model.SerializeToString())
    monkeypatch.setattr("latentrt.bundle._compare", lambda *_: None)
    rows = compared(copy, briefly(BundleReference(Bundle.open(cached_bundle)), monkeypatch))
    assert all(row.passed for row in rows["step"])
    assert not any(row.passed for row in rows["step-shallow"])


def test_torch_takes_the_place_of_a_step_that_gives_features(cached_bundle: Path, shapes_checkpoint: Path):
    """As the judgement of a quantised bundle with step caching needs it."""
    with TorchReference(Checkpoint.open(shapes_checkpoint)).pipeline(Bundle.open(cached_bundle)) as pipe:
        assert pipe.run(Request("a red circle", size=(64, 64), steps=1)).images.shape == (1, 64, 64, 3)
