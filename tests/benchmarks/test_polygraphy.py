"""Polygraphy beside our own comparison: what it sees in files and says of graphs. TensorRT's side needs a GPU."""

import shutil
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from standin.engines import build

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu import opinion
from benchmarks.gpu.opinion import LIMITS, open_opinion
from benchmarks.gpu.worker import ask_apart
from benchmarks.inspect_engines import inspected, look
from latentrt.bundle import Bundle
from latentrt.errors import EnvironmentLacks
from latentrt.export.engines.rewrite import rewrite_graphs


def job(bundle: Path, reference: Path, component: str, backend: str = "onnxruntime") -> dict:
    return {
        "bundle": str(bundle),
        "reference": str(reference),
        "backend": backend,
        "device": "cpu",
        "components": [component],
    }


def test_a_graph_against_itself_differs_in_nothing(shapes_bundle: Path, tmp_path: Path):
    """In a process of its own, as the check on a GPU has it."""
    options = job(shapes_bundle, shapes_bundle, "text_encoder")
    rows = ask_apart("benchmarks.gpu.opinion:open_opinion", options, log=tmp_path / "log", timeout_s=300)
    assert {row["case"].split(",")[0] for row in rows} == {"hidden", "pooled"}
    assert all(row["value"] == 0.0 and row["limit"] == LIMITS["fp32"] and row["passed"] for row in rows)


def test_fp16_is_compared_with_the_float32_graph_and_told(shapes_fp16: Path, shapes_bundle: Path):
    with open_opinion(job(shapes_fp16, shapes_bundle, "text_encoder")) as answer:
        rows = answer({})
    assert all(0 < row["value"] < 0.1 and row["limit"] is None for row in rows)


def test_a_graph_that_computes_something_else_fails(shapes_bundle: Path, tmp_path: Path):
    other = Path(shutil.copytree(shapes_bundle, tmp_path / "other"))
    path = other / "decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.name.endswith(".bias"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
    path.write_bytes(model.SerializeToString())
    bundle = Bundle.open(shapes_bundle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bundle, "open", lambda root, **_: bundle if Path(root) == shapes_bundle else moved(bundle, other))
        with open_opinion(job(other, shapes_bundle, "decoder")) as answer:
            (row,) = answer({})
    assert not row["passed"]


def moved(bundle: Bundle, root: Path) -> Bundle:
    """The bundle with its decoder's graph elsewhere; its manifest would refuse what was changed."""
    from dataclasses import replace

    part = bundle.component("decoder")
    graph = replace(part.graph, path=root / "decoder.onnx")
    return replace(bundle, root=root, components={**bundle.components, "decoder": replace(part, graph=graph)})


def test_without_an_engine_of_that_size_it_says_so(shapes_bundle: Path):
    with open_opinion(job(shapes_bundle, shapes_bundle, "decoder", "tensorrt-rtx")) as answer:  # noqa: SIM117
        with pytest.raises(EnvironmentLacks, match="no engine of decoder"):
            answer({})


def test_every_graph_is_looked_at_and_plans_are_left_to_a_gpu(shapes_bundle: Path, tmp_path: Path):
    root = Path(shutil.copytree(shapes_bundle, tmp_path / "shapes"))
    bundle = Bundle.open(root)
    rewrite_graphs(bundle, folder=root / "engines", components=["text_encoder"])
    build(bundle, root / "engines", variant="tensorrt-rtx", components=("step",))
    found = {each.name: each for each in inspected(bundle)}
    assert {*bundle.components, "text_encoder-onnxruntime-cuda"} < found.keys()
    (plan,) = [each for each in found.values() if each.plan]
    assert plan.rtx
    for name in ("text_encoder", "text_encoder-onnxruntime-cuda"):
        said = look(found[name], tmp_path)
        assert said is not None
        assert "3 graph inputs, 2 graph outputs" in said
        assert "ONNX Opset: 23" in (tmp_path / f"{name}.txt").read_text()


def test_a_session_that_is_not_on_the_gpu_gives_no_opinion(shapes_bundle: Path):
    """It would compare the CPU with itself, and pass."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there may be a GPU")
    with pytest.raises(EnvironmentLacks):
        opinion._runner(Bundle.open(shapes_bundle).component("decoder"), "onnxruntime", "cuda")
