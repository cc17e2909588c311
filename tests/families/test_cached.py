"""Step caching of every kind of denoiser, beside diffusers' own pipeline with features kept by hooks on its modules."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from families.chain import BEGIN, STEPS, Chain, chain_name, expected, found, in_fp16, make_chain
from families.rows import ROWS, Row
from step_caching import cached

from latentrt import Pipeline
from latentrt.backends import open_engines
from latentrt.bundle import Component
from latentrt.errors import RequestError
from latentrt.export.bundles.step_cache import describe_features
from latentrt.export.cli.build import sizes
from latentrt.export.engines.build import build_engines
from latentrt.export.engines.ranges import Ranges
from latentrt.export.engines.variants import variant
from latentrt.export.passes.features import add_features, shallow
from latentrt.graph import TensorSpec

TOLERANCE = 1e-3  # of the largest value of the final latent
EFFECT = 0.01  # by which caching must change it
EFFECT_OF_ONE = 1e-3  # the same where a single call is shallow, as in the refiner's half of a run
INTERVAL = 2
MADE = ("tiny-sd15", "tiny-sd15-inpaint", "tiny-lcm", "tiny-sd21", "tiny-sdxl", "tiny-sdxl-refiner")
MADE += ("tiny-sd3", "tiny-sd35")


def rows() -> Iterator[Any]:
    for row in (next(row for row in ROWS if row.architecture == name) for name in MADE):
        quick = row.architecture == "tiny-sd3"
        yield pytest.param(row, id=str(row), marks=[] if quick else [pytest.mark.families])


@pytest.fixture(scope="module", params=rows())
def chain(request: pytest.FixtureRequest, once, export_once) -> Chain:
    row: Row = request.param
    return once(chain_name(row), lambda folder: make_chain(row, folder, export_once))


def with_cache(step: Component, folder: Path, *, layers: int = 1) -> dict[str, Component]:
    """The step with features, and its shallow graph."""
    folder.mkdir(exist_ok=True)
    for weights in step.graph.weights:
        (folder / weights.name).write_bytes(weights.read_bytes())
    model = ir.load(step.graph.path)
    add_features(model, layers=layers)
    features = tuple(describe_features(model)["dims"])
    ir.save(model, folder / "step.onnx")
    shallow(model := ir.load(folder / "step.onnx"))
    ir.save(model, folder / "step-shallow.onnx")
    weights = tuple(folder / each.name for each in step.graph.weights)
    spec = {"features": TensorSpec("float32", tuple(dim if isinstance(dim, int) else None for dim in features))}
    dims = {**step.dims, "features": features}
    taken = {name: {**step.graph.inputs, **spec}[name] for name in (str(value.name) for value in model.graph.inputs)}
    deep = replace(
        step.graph, path=folder / "step.onnx", outputs={**step.graph.outputs, **spec}, weights=weights, digest="deep"
    )
    small = replace(
        step.graph,
        component="step-shallow",
        path=folder / "step-shallow.onnx",
        inputs=taken,
        weights=weights,
        digest="shallow",
    )
    return {
        "step": replace(step, graph=deep, dims=dims),
        "step-shallow": replace(step, name="step-shallow", graph=small, dims=dims),
    }


def pipeline(chain: Chain, graphs: dict[str, Component], backend: str = "onnxruntime") -> Pipeline:
    parts = {**chain.graphs, **graphs}
    return Pipeline(chain.bundle(parts), open_engines([part.graph for part in parts.values()], backend=backend))


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_cached_run_equals_that_of_diffusers(chain: Chain, backend: str, tmp_path: Path):
    row, guidance = chain.row, chain.row.guidance
    calls = round(STEPS * (1 - BEGIN)) if row.start == "latent" else STEPS

    def hooked(pipe: Any) -> Any:
        network = getattr(pipe, "unet", None)
        deep = range(0, calls, INTERVAL)
        return cached(pipe.transformer if network is None else network, layers=1, deep=deep)

    with pipeline(chain, with_cache(chain.graphs["step"], tmp_path / "b"), backend) as pipe:
        ours, plain = (
            found(pipe, replace(row, ours={**row.ours, "cache": cache}), guidance) for cache in (INTERVAL, None)
        )
    effect = distance(ours, plain)
    assert effect >= (EFFECT if calls == STEPS else EFFECT_OF_ONE)
    assert distance(ours, expected(chain, guidance, within=hooked)) <= min(TOLERANCE, effect / 10)


def test_layers_are_those_of_the_network(chain: Chain):
    for layers in (0, 100):
        with pytest.raises(RequestError, match=f"shallow calls of {layers} layers; expected 1 to"):
            add_features(ir.load(chain.graphs["step"].graph.path), layers=layers)


@pytest.mark.families
@pytest.mark.skipif(
    not variant("tensorrt-rtx").installed(), reason="TensorRT for RTX has wheels for x86-64 Linux and Windows"
)
def test_both_graphs_in_fp16_become_engines(chain: Chain, tmp_path: Path):
    half = in_fp16(with_cache(chain.graphs["step"], tmp_path / "b")["step"], tmp_path)
    parts = with_cache(half, tmp_path / "half")
    bundle = chain.bundle(parts)
    ranges = Ranges.of(bundle.family, size=sizes("96x128"))
    engines = build_engines(bundle, backend="tensorrt-rtx", folder=tmp_path, ranges=ranges, gpus=["sm89"])
    records = {engine.record.component: engine.record for engine in engines}
    assert records["step"].io["features"] == records["step-shallow"].io["features"] == "float32"
    assert records["step-shallow"].io.keys() == {*parts["step-shallow"].graph.inputs, "next_state", "denoised"}
    assert records["step-shallow"].weights_bytes < 0.7 * records["step"].weights_bytes
