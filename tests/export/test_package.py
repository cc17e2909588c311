"""From a checkpoint to a finished bundle: what is written, what an interruption leaves, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from latentrt import Bundle, BundleError, GateError
from latentrt.export import package
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.graphs import preview
from latentrt.export.graphs.onnx_from_torch import OPSET, export_graph
from latentrt.export.package import export_bundle

GRAPHS = ("text_encoder", "step", "decoder", "encoder")


def export_only(names: tuple[str, ...], export_once: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the other graphs of a checkpoint."""
    monkeypatch.setattr(package, "export_graph", export_once)
    monkeypatch.setattr(preview, "SAMPLES", 1)
    every = package.component_specs
    monkeypatch.setattr(
        package, "component_specs", lambda *given: tuple(spec for spec in every(*given) if spec.name in names)
    )


@pytest.fixture
def only_vae(export_once: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    export_only(("decoder", "encoder"), export_once, monkeypatch)


def test_a_bundle_holds_all_that_the_runtime_needs(shapes_bundle: Path):
    bundle = Bundle.open(shapes_bundle)
    assert tuple(bundle.components) == GRAPHS
    bundle.verify()
    listed = set(bundle.manifest["files"]) | {"bundle.json"}
    present = {str(p.relative_to(shapes_bundle)) for p in shapes_bundle.rglob("*") if p.is_file()}
    assert {name for name in present if not name.startswith("engines/")} == listed
    assert not list(shapes_bundle.parent.glob("*.part"))


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_are_opset_23_with_external_weights_and_no_trace_of_the_machine(name: str, shapes_bundle: Path):
    path = shapes_bundle / f"{name}.onnx"
    model = onnx.load(path, load_external_data=False)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET}
    big = [t for t in model.graph.initializer if np.prod(t.dims) > 64]
    assert big
    assert all(t.data_location == onnx.TensorProto.EXTERNAL for t in big)
    assert str(Path.home()).encode() not in path.read_bytes()
    assert b"site-packages" not in path.read_bytes()
    assert all(node.op_type != "BatchNormalization" for node in model.graph.node)


@pytest.mark.parametrize("name", GRAPHS)
def test_every_weight_is_traced_to_the_checkpoint(name: str, shapes_bundle: Path, shapes_checkpoint: Path):
    """The map from initializers to checkpoint keys is right by value, transposition included."""
    bundle = Bundle.open(shapes_bundle)
    row = bundle.manifest["components"][name]
    keys = json.loads((shapes_bundle / row["keys"]).read_text())
    weights = load_file(next((shapes_checkpoint / row["checkpoint_part"]).glob("*.safetensors")))
    model = onnx.load(shapes_bundle / row["graph"])
    matrices = 0
    for tensor in model.graph.initializer:
        if tensor.name not in keys:
            assert np.prod(tensor.dims) <= 77 * 77, f"{tensor.name} is large and unmapped"
            continue
        key = keys[tensor.name]["key"]
        expected = weights[key if key in weights else f"text_model.{key}"].astype(np.float32)
        expected = expected.T if keys[tensor.name]["transposed"] else expected
        assert np.array_equal(onnx.numpy_helper.to_array(tensor), expected), tensor.name
        matrices += expected.ndim >= 2
    assert matrices > 5


@pytest.mark.families
def test_an_interrupted_export_continues_with_what_is_missing(
    shapes_checkpoint: Path, tmp_path: Path, only_vae, monkeypatch
):
    checkpoint, output = Checkpoint.open(shapes_checkpoint), tmp_path / "bundle"
    events: list[package.ExportProgress] = []

    def stop_at_encoder(event: package.ExportProgress) -> None:
        if event.component == "encoder":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, output, check=False, progress=stop_at_encoder)
    assert not output.exists()
    assert not (tmp_path / "bundle.part" / "bundle.json").exists()

    decoder = (tmp_path / "bundle.part" / "decoder.onnx").stat().st_mtime_ns
    bundle = export_bundle(checkpoint, output, check=False, progress=events.append)
    assert [(e.component, e.resumed) for e in events if e.seconds is not None] == [
        ("decoder", True),
        ("encoder", False),
    ]
    assert (output / "decoder.onnx").stat().st_mtime_ns == decoder
    bundle.verify()


@pytest.mark.families
def test_a_changed_checkpoint_is_not_continued(shapes_checkpoint: Path, tmp_path: Path, only_vae):
    output = tmp_path / "bundle"
    changed = shutil.copytree(shapes_checkpoint, tmp_path / "changed")
    first = export_bundle(Checkpoint.open(changed), output, check=False)
    output.rename(tmp_path / "bundle.part")
    (tmp_path / "bundle.part" / "bundle.json").unlink()
    for name in ("decoder", "encoder"):
        record = {"source": {}, "files": {}, "row": first.manifest["components"][name], "parity": [], "preview": None}
        (tmp_path / "bundle.part" / f"{name}.done.json").write_text(json.dumps(record))
    events: list[package.ExportProgress] = []
    export_bundle(Checkpoint.open(changed), output, check=False, progress=events.append)
    assert not any(event.resumed for event in events)


@pytest.mark.families
def test_the_same_checkpoint_gives_the_same_bytes(shapes_checkpoint: Path, tmp_path: Path, export_once, monkeypatch):
    export_only(("decoder",), export_once, monkeypatch)
    one = export_bundle(Checkpoint.open(shapes_checkpoint), tmp_path / "one", check=False)
    monkeypatch.setattr(package, "export_graph", export_graph)  # traced anew
    two = export_bundle(Checkpoint.open(shapes_checkpoint), tmp_path / "two", check=False)
    assert one.manifest["files"] == two.manifest["files"]


def test_a_component_that_differs_from_torch_is_rejected(
    shapes_checkpoint: Path, tmp_path: Path, only_vae, monkeypatch
):
    measured = package.compare

    def worse(*arguments):
        return [replace(result, value=1.0) for result in measured(*arguments)]

    monkeypatch.setattr(package, "compare", worse)
    with pytest.raises(GateError, match=r"differs from torch by 1\.00e\+00"):
        export_bundle(Checkpoint.open(shapes_checkpoint), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert (tmp_path / "bundle.rejected" / "bundle.json").exists()


@pytest.mark.families
def test_a_step_for_step_caching_is_compared_with_torch(
    shapes_checkpoint: Path, tmp_path: Path, export_once, monkeypatch
):
    export_only(("text_encoder", "step", "decoder"), export_once, monkeypatch)
    bundle = export_bundle(Checkpoint.open(shapes_checkpoint), tmp_path / "bundle", shallow_layers=1)
    compared = [row["passed"] for row in bundle.manifest["parity"] if row["component"] == "step"]
    assert compared
    assert all(compared)
    assert "features" in bundle.component("step").graph.outputs
    assert bundle.component("step-shallow").graph.weights == bundle.component("step").graph.weights


def test_an_existing_bundle_is_kept_unless_told(shapes_checkpoint: Path, tmp_path: Path, only_vae):
    output = tmp_path / "bundle"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="is no bundle"):
        export_bundle(Checkpoint.open(shapes_checkpoint), output, overwrite=True)
    assert (output / "notes.txt").read_text() == "mine"
    shutil.rmtree(output)
    export_bundle(Checkpoint.open(shapes_checkpoint), output, check=False)
    with pytest.raises(BundleError, match="already"):
        export_bundle(Checkpoint.open(shapes_checkpoint), output, check=False)
    export_bundle(Checkpoint.open(shapes_checkpoint), output, check=False, overwrite=True).verify()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle"]


def test_the_preview_resembles_the_decoded_picture(shapes_bundle: Path):
    """The linear map's colours correlate with the decoder's on a real latent."""
    import latentrt

    with latentrt.load(shapes_bundle, backend="onnxruntime") as pipe:
        request = latentrt.Request("a red circle on a white background", seed=7, size=(128, 128))
        for step in pipe.steps(request):
            preview, latent = step.preview(), step.latent()
        image = pipe.decode(latent)[0]
    small = image.reshape(16, 8, 16, 8, 3).mean(axis=(1, 3))
    assert preview.shape == (1, 16, 16, 3)
    assert np.corrcoef(preview[0].ravel(), small.ravel())[0, 1] > 0.7
