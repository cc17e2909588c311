"""What OpenVINO keeps of weights, and a second start that reads neither the graph nor its weights."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from onnx import TensorProto
from widened_graph import FEED, WIDE, widened_graph

import latentrt
from latentrt.arrays import Array
from latentrt.backends import openvino
from latentrt.backends.openvino_blob import BLOB
from latentrt.engine import EngineOptions
from latentrt.graph import GraphFile


@pytest.fixture(params=[TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["fp16", "bf16"])
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> GraphFile:
    return widened_graph(tmp_path, request.param)


@pytest.fixture
def in_bf16() -> None:
    if "BF16" not in openvino.capabilities():
        pytest.skip("this CPU has no bf16 arithmetic")


def ran(graph: GraphFile, cache: Path | None = None) -> tuple[Array, set[str]]:
    """What it gives, and the types of the large constants that the compiled graph holds."""
    with openvino.OpenVinoEngine(graph, options=EngineOptions(cache_dir=cache)) as engine:
        found = np.array(engine.run(FEED)["y"])
        (compiled,) = engine._requests.values()
        nodes = compiled.request.get_compiled_model().get_runtime_model().get_ops()
        large = {
            str(node.get_output_element_type(0))
            for node in nodes
            if not node.inputs()
            and np.prod(node.get_output_shape(0)) >= WIDE**2
            and "x" not in node.get_friendly_name()
        }
        return found, large


def test_no_float32_copy_of_weights_of_16_bit_is_kept_beside_the_packed_ones(graph: GraphFile, monkeypatch):
    found, kept = ran(graph)
    assert not any("float32" in kind or "f32" in kind for kind in kept), kept
    monkeypatch.setattr(openvino, "mark_widening", lambda model: None)
    unmarked, folded = ran(graph)
    assert any("float32" in kind or "f32" in kind for kind in folded)
    np.testing.assert_allclose(found, unmarked, rtol=0, atol=1e-5 * np.abs(unmarked).max())


def test_a_second_start_reads_the_compiled_graph_alone(graph: GraphFile, tmp_path: Path, monkeypatch):
    first, _ = ran(graph, tmp_path / "cache")
    monkeypatch.setattr(openvino, "_read", lambda graph: pytest.fail("the graph was read"))
    second, _ = ran(graph, tmp_path / "cache")
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("kind", "smaller"), [(TensorProto.FLOAT, 0.6), (TensorProto.FLOAT16, 1.01)])
def test_in_bf16_weights_are_rounded_beforehand(
    kind: int, smaller: float, in_bf16: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By as much as OpenVINO rounds them; what is compiled is smaller where they were float32."""
    graph = widened_graph(tmp_path, kind, scale=0.9)
    found, kept = [], []
    for name in ("rounded", "as they are"):
        options = EngineOptions(cache_dir=tmp_path / name, compute="bf16")
        with openvino.OpenVinoEngine(graph, options=options) as engine:
            found.append(np.array(engine.run(FEED)["y"]))
        (blob,) = (tmp_path / name).rglob(BLOB)
        kept.append(blob.stat().st_size)
        monkeypatch.setattr(openvino, "round_to_bf16", lambda model: None)
    rounded, as_they_are = found
    # The same values are multiplied; of an output that is read from the product itself, one way rounds, one may not.
    assert np.abs(rounded - as_they_are).max() <= 2**-8 * np.abs(as_they_are).max()
    assert kept[0] < smaller * kept[1]


def test_what_cannot_be_read_back_is_compiled_again(in_bf16: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openvino, "compiled_from", lambda *_: (None, None))
    options = EngineOptions(cache_dir=tmp_path / "cache", compute="bf16")
    with openvino.OpenVinoEngine(widened_graph(tmp_path), options=options) as engine:
        assert np.isfinite(engine.run(FEED)["y"]).all()


def test_rounded_weights_draw_as_near_to_float32_in_bf16(
    shapes_bundle: Path, in_bf16: None, monkeypatch: pytest.MonkeyPatch
):
    """To the bit what they draw as they are, on an AMD EPYC with AVX-512 and bf16; kernels may sum in another order."""

    def latent(compute: Literal["fp32", "bf16"]) -> Array:
        with latentrt.load(shapes_bundle, backend="openvino", compute=compute) as pipe:
            return pipe.generate("a red circle", seed=3, steps=3, size=(64, 96), output="latent").latents

    exact, rounded = latent("fp32"), latent("bf16")
    monkeypatch.setattr(openvino, "round_to_bf16", lambda model: None)
    monkeypatch.setattr(openvino, "cache_of", lambda *_: None)  # where the rounded one lies
    off, off_before = (np.abs(each - exact).max() for each in (rounded, latent("bf16")))
    assert 0 < off <= 1.5 * off_before


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_damaged_compiled_graph_is_compiled_anew(damage: str, graph: GraphFile, tmp_path: Path, caplog):
    first, _ = ran(graph, tmp_path / "cache")
    (blob,) = (tmp_path / "cache").rglob(BLOB)
    whole = blob.read_bytes()
    blob.unlink()
    blob.write_bytes({"cut": whole[: len(whole) // 2], "other": b"<xml/>\nno graph", "empty": b""}[damage])
    second, _ = ran(graph, tmp_path / "cache")
    assert "compiling anew" in caplog.text
    np.testing.assert_array_equal(first, second)
    assert blob.stat().st_size > len(whole) // 2  # and it is there again


def test_what_a_killed_process_left_is_not_read(graph: GraphFile, tmp_path: Path):
    first, _ = ran(graph, tmp_path / "cache")
    (blob,) = (tmp_path / "cache").rglob(BLOB)
    left = blob.parent / "part-killed"
    left.mkdir()
    blob.rename(left / "17.blob")
    second, _ = ran(graph, tmp_path / "cache")
    np.testing.assert_array_equal(first, second)
    assert blob.is_file()
