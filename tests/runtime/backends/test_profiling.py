"""What nodes take, and the arithmetic of graphs that was counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.gpu.flops import graph_flops
from latentrt import backends
from latentrt.backends.profiling.node_times import NodeTime, ProfiledRun, Work, attention, joined, matmul
from latentrt.bench import peak as peak_module
from latentrt.bench.peak import LAYERS, Peak, PeakSizes, measure_peaks, product_graph
from latentrt.bench.profile import peak_precisions, summed, with_peaks
from latentrt.errors import RequestError
from latentrt.graph import GraphFile, TensorSpec

NAMES = ("onnxruntime", "openvino")
RNG = np.random.default_rng(0)


def weights(name: str, *shape: int) -> onnx.TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> GraphFile:
    """Every kind of product, one behind the other. Channels are multiples of 16, which no layout has to fill up."""
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "pairs"], ["b"], name="grouped", group=16),
        helper.make_node("ConvTranspose", ["b", "wider"], ["c"], name="wider", strides=[2, 2]),
        helper.make_node("Reshape", ["c", "rows"], ["d"], name="rows"),
        helper.make_node("MatMul", ["d", "matrix"], ["e"], name="matmul"),
        helper.make_node("Attention", ["e", "e", "e"], ["f"], name="attention", q_num_heads=3, kv_num_heads=3),
        helper.make_node("ReduceMean", ["f", "axis"], ["g"], name="mean", keepdims=0),
        helper.make_node("Gemm", ["g", "turned", "bias"], ["y"], name="gemm", transB=1),
    ]
    constants = [
        weights("kernel", 32, 16, 3, 3),
        weights("pairs", 32, 2, 1, 1),
        weights("wider", 32, 16, 2, 2),
        weights("matrix", 64, 48),
        weights("turned", 24, 48),
        weights("bias", 24),
        numpy_helper.from_array(np.array([2, -1, 64]), "rows"),
        numpy_helper.from_array(np.array([1]), "axis"),
    ]
    body = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 16, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 24])],
        constants,
    )
    path = tmp_path_factory.mktemp("products") / "products.onnx"
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return GraphFile(
        "products",
        path=path,
        inputs={"x": TensorSpec("float32", (2, 16, 8, 8))},
        outputs={"y": TensorSpec("float32", (2, 24))},
    )


CONVOLUTIONS = 2 * (2 * 32 * 8 * 8) * (16 * 9) + 2 * (2 * 32 * 8 * 8) * 2
TRANSPOSED = 2 * (2 * 32 * 8 * 8) * (16 * 4)
MATMULS = 2 * (2 * 64 * 48) * 64 + 2 * 2 * (64 * 64 * 48) * 2 + 2 * (2 * 24) * 48
"""Counted by hand: 3x3 and grouped; rows [2, 64, 64], attention of 64 over 64, and a Gemm."""


@pytest.mark.parametrize("backend", NAMES)
def test_the_arithmetic_of_a_known_graph_is_exact(backend: str, products: GraphFile):
    feed = {"x": np.ones((2, 16, 8, 8), np.float32)}
    (engine,) = backends.open_engines([products], backend=backend, threads=1, profile=True).values()
    with engine:
        for _ in range(3):
            engine.run(feed)
        runs = engine.profiled_runs()
    assert len(runs) == 3
    for run in runs:
        found = {"convolution": 0, "matmul": 0}
        for work in (node.work for node in run.nodes if node.work is not None):
            found[work.product] += work.flops
        # of a transposed one ONNX Runtime does not tell the kernel's shape
        assert found == {"convolution": CONVOLUTIONS + (TRANSPOSED if backend == "openvino" else 0), "matmul": MATMULS}
        assert {node.precision for node in run.nodes if node.work is not None} == {"fp32"}
        assert sum(node.ms for node in run.nodes) > 0
        assert run.ms > 0


def test_an_engine_that_was_not_asked_to_notes_nothing(products: GraphFile):
    for backend in NAMES:
        with (
            backends.open_engine(products, backend=backend, threads=1) as engine,
            pytest.raises(RequestError, match="profile"),
        ):
            engine.profiled_runs()


@pytest.mark.parametrize(("backend", "device"), [("tensorrt-rtx", None), ("tensorrt", None), ("onnxruntime", "cuda")])
def test_a_backend_that_says_nothing_of_nodes_is_refused(backend, device, products: GraphFile, monkeypatch):
    monkeypatch.setattr(backends.Backend, "installed", lambda row: True)
    monkeypatch.setattr(backends, "check_versions", lambda *_, **__: None)
    with pytest.raises(RequestError, match=r"nothing of what single nodes take.*openvino on the CPU"):
        backends.open_engines([products], backend=backend, device=device, profile=True)


def test_products_of_every_form_are_counted_by_the_left_one():
    assert matmul((5, 7), (5, 3)) == Work("matmul", 2 * 5 * 3 * 7)
    assert matmul((7, 5), (5, 3)).flops == 2 * 5 * 3 * 7  # transposed
    assert matmul((7,), (3,)).flops == 2 * 3 * 7
    assert matmul((4, 5, 7), (4, 5)).flops == 2 * 4 * 5 * 7  # by a vector
    assert matmul((5, 7), (4, 5, 3)).flops == 2 * 4 * 5 * 3 * 7  # repeated
    heads = attention((2, 8, 10, 4), (2, 8, 6, 4), (2, 8, 10, 5))
    assert heads.flops == attention((2, 10, 32), (2, 6, 32), (2, 10, 40)).flops == 2 * 2 * 8 * 10 * 6 * (4 + 5)
    assert joined([]) is None
    assert joined([Work("matmul", 3), Work("convolution", 4)]) == Work("convolution", 7)


def node(kind: str, ms: float, flops: int = 0, name: str = "", precision: str = "fp32") -> NodeTime:
    work = Work("matmul", flops) if flops else None
    return NodeTime(name=name or kind, type=kind, precision=precision, ms=ms, work=work)


def test_runs_are_summed_by_type():
    runs = [
        ProfiledRun((node("MatMul", 4.0, 8_000_000), node("MatMul", 2.0, 4_000_000, "second"), node("Add", 2.0)), 10.0),
        ProfiledRun((node("MatMul", 6.0, 8_000_000), node("MatMul", 4.0, 4_000_000, "second"), node("Add", 2.0)), 20.0),
    ]
    found = summed(runs, component="step", backend="x")
    assert (found["run_ms"], found["nodes_ms"], found["runs"]) == (15.0, 10.0, 2)
    products, rest = found["types"]
    assert (products["type"], products["nodes"], products["ms"], products["share"]) == ("MatMul", 2, 8.0, 0.8)
    assert products["gflop"] == pytest.approx(0.012)
    assert products["gflops"] == pytest.approx(1.5)
    assert (rest["type"], rest["gflops"], rest["share"]) == ("Add", None, 0.2)
    assert [row["name"] for row in found["longest"]] == ["MatMul", "second", "Add"]
    assert peak_precisions([found]) == ["fp32"]
    known = with_peaks(found, {("matmul", "fp32"): Peak("matmul", "fp32", 3.0, "x")})
    assert [row["share_of_peak"] for row in known["types"]] == [pytest.approx(0.5), None]
    assert known["peak_ms"] == pytest.approx(4.0)
    assert with_peaks(found, {})["peak_ms"] is None


SMALL = PeakSizes(side=32, batch=1, channels=16, pixels=8)


@pytest.mark.parametrize("product", ["matmul", "convolution"])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_graph_of_a_peak_is_what_it_says(product, rounded, tmp_path: Path):
    model = onnx.load_from_string(product_graph(product, rounded=rounded, sizes=SMALL, rng=np.random.default_rng(0)))
    onnx.checker.check_model(model, full_check=True)
    kinds = [each.op_type for each in model.graph.node]
    assert kinds.count("MatMul" if product == "matmul" else "Conv") == LAYERS
    assert kinds.count("QuantizeLinear") == (LAYERS if rounded else 0)
    path = tmp_path / "peak.onnx"
    onnx.save(model, path)
    assert graph_flops(path, {}) == SMALL.flops(product)


def test_peaks_are_the_best_of_the_installed_backends(monkeypatch):
    monkeypatch.setattr(peak_module, "ENOUGH_S", 0.0)
    peaks = measure_peaks(["fp32", "int8", "fp16"], threads=1, sizes=SMALL)
    assert set(peaks) == {(product, kind) for product in ("matmul", "convolution") for kind in ("fp32", "int8")}
    assert all(found.gflops > 0 and found.backend in NAMES for found in peaks.values())


def test_a_file_of_events_is_read_run_by_run(tmp_path: Path):
    def kernel(name: str, kind: str, given: list, made: list) -> dict:
        args = {"op_name": kind, "input_type_shape": given, "output_type_shape": made}
        return {"name": f"{name}_kernel_time", "dur": 1500, "args": args}

    rounded = [{"uint8": [1, 4, 8, 8]}, {"float": []}, {"uint8": []}, {"int8": [6, 4, 3, 3]}, {"float": [6]}]
    packed = [{"uint8": [2, 5, 7]}, {"float": []}]
    events = [
        {"name": "session_initialization", "dur": 9},
        kernel("c", "QLinearConv", rounded, [{"uint8": [1, 6, 8, 8]}]),
        {"name": "model_run", "dur": 4000},
        kernel("m", "MatMulIntegerToFloat", packed, [{"float": [2, 5, 3]}]),
        kernel("s", "Shape", [{"float": [2]}], [{"int64": [1]}]),
        {"name": "model_run", "dur": 5000},
    ]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(events))
    from latentrt.backends.profiling.onnxruntime import read_profile

    first, second = read_profile(path)
    assert (first.ms, second.ms) == (4.0, 5.0)
    (rounded_one,) = first.nodes
    assert (rounded_one.name, rounded_one.ms, rounded_one.precision) == ("c", 1.5, "int8")
    assert rounded_one.work == Work("convolution", 2 * (6 * 8 * 8) * (4 * 9))
    assert [each.work for each in second.nodes] == [Work("matmul", 2 * 2 * 5 * 3 * 7), None]
