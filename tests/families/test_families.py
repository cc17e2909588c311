"""Every family through the chain: each graph against torch, and the final latent against diffusers' own pipeline.

Random weights hide mistakes: beside each comparison stands the proof that every input of the step matters.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families.chain import SIZE, Chain, Latents, chain_name, expected, found, in_fp16, make_chain
from families.rows import ROWS, STEP, Row
from prepared import assert_ready_for, pipeline

from latentrt import Pipeline, Request
from latentrt.arrays import Array
from latentrt.export.cli.build import sizes
from latentrt.export.engines.build import build_engines
from latentrt.export.engines.ranges import Ranges
from latentrt.export.engines.variants import variant
from latentrt.text.prompt_syntax import read

TOLERANCE = 1e-3  # of the largest value of the final latent
BACKENDS = ("onnxruntime", "openvino")


def rows() -> Iterator[Any]:
    for row in ROWS:
        yield pytest.param(row, id=str(row), marks=[] if row.quick else [pytest.mark.families])


@pytest.fixture(scope="module", params=rows())
def chain(request: pytest.FixtureRequest, once, export_once) -> Chain:
    row: Row = request.param
    return once(chain_name(row), lambda folder: make_chain(row, folder, export_once))


@pytest.fixture(scope="module")
def pipe(chain: Chain) -> Iterator[Pipeline]:
    with chain.pipeline() as opened:
        yield opened


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_graph_equals_its_torch_module(chain: Chain, backend: str):
    results = chain.parity(backend)
    assert {result.subject for result in results} == {f"component {name}" for name in chain.graphs}
    assert [r for r in results if not r.passed] == []


@pytest.mark.parametrize("asked", [None, 1.0, 0.0])
def test_the_final_latent_equals_that_of_diffusers(chain: Chain, pipe: Pipeline, asked: float | None):
    guidance = chain.row.guidance if asked is None else asked
    theirs = expected(chain, guidance)
    ours = found(pipe, chain.row, guidance)
    assert ours.shape == theirs.shape
    assert distance(ours, theirs) <= TOLERANCE


def test_every_input_of_the_step_moves_the_final_latent(chain: Chain, pipe: Pipeline):
    before = found(pipe, chain.row, chain.row.guidance)
    moved = {}
    for name in (*STEP, *chain.row.inputs):
        changed = pipe.engines.under({"step": Changed(pipe.engines["step"], name)})
        moved[name] = distance(found(Pipeline(pipe.bundle, changed), chain.row, chain.row.guidance), before)
    assert {name: by for name, by in moved.items() if by < 10 * TOLERANCE} == {}


def test_the_step_takes_the_inputs_that_are_said_to_matter(chain: Chain):
    everywhere = {"state", "noise", "known", "rescale", "scalings", "transition", *STEP}
    assert chain.graphs["step"].graph.inputs.keys() - everywhere <= {*chain.row.inputs, "pooled", "block_gate"}
    assert chain.graphs["step"].graph.inputs.keys() >= {*chain.row.inputs}


@pytest.mark.parametrize("prompt", ["an owl", "an owl, " * 60])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_engines_are_made_ready_for_the_shapes_of_the_run(chain: Chain, prompt: str, guidance: float):
    request = Request(prompt, images=2, size=SIZE, steps=1, guidance=guidance)
    bundle = chain.bundle(chain.graphs)
    chunks = pipeline(bundle).conditioner.chunks([read(prompt)])
    assert (chunks > 1) == (len(prompt) > 75)
    prepared = assert_ready_for(request, bundle, guided=guidance > 1, chunks=chunks)
    assert {"step", "decoder", bundle.text_encoders[0]} <= prepared.keys()


@pytest.mark.families  # compiling takes as long as all else of a row
@pytest.mark.skipif(
    not variant("tensorrt-rtx").installed(), reason="TensorRT for RTX has wheels for x86-64 Linux and Windows"
)
def test_the_step_in_fp16_becomes_an_engine(chain: Chain, tmp_path: Path):
    bundle = chain.bundle({"step": in_fp16(chain.graphs["step"], tmp_path)})
    size = "x".join(map(str, SIZE))
    ranges = Ranges.of(bundle.family, size=sizes(size))
    (engine,) = build_engines(bundle, backend="tensorrt-rtx", folder=tmp_path, ranges=ranges, gpus=["sm89"])
    record = engine.record
    assert record.io.keys() == {*chain.graphs["step"].graph.inputs, *chain.graphs["step"].graph.outputs}
    assert record.types["float16"] > record.types["float32"]
    assert record.products == ("float16",)
    assert record.plan_bytes > record.weights_bytes


def distance(a: Latents, b: Latents) -> float:
    """The largest difference, relative to the largest value of `b`."""
    return float(np.abs(a - b).max() / np.abs(b).max())


class Changed:
    """A step engine that is fed something else for one input, in every call."""

    def __init__(self, engine: Any, name: str) -> None:
        self._engine = engine
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def sweep(self, feed: Mapping[str, Array], *, rows: Mapping[str, Array], carry: Mapping[str, str], **chain) -> Any:
        held = feed if self._name in feed else rows
        changed = {**held, self._name: _changed(self._name, held[self._name])}
        feed, rows = (changed, rows) if held is feed else (feed, changed)
        return self._engine.sweep(feed, rows=rows, carry=carry, **chain)


def _changed(name: str, value: Array) -> Array:
    """By a tenth or so; where a value is a switch, half of them are thrown."""
    other = value.copy()
    match name:
        case "mask":
            other[..., ::2] = 0
        case "block_gate":
            other[:, 1] = 0
        case "timestep" | "time_ids" | "guidance_embed" | "guidance":
            other *= np.float32(0.9)
        case _:
            noise = np.random.default_rng(9).standard_normal(value.shape, np.float32)
            other += np.float32(0.3 * value.std()) * noise
    return other
