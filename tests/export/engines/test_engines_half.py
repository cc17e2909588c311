"""Every component in fp16 and bf16, really compiled for the architectures of RTX GPUs."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from latentrt import Bundle, RequestError
from latentrt.backends.tensorrt.records import built_engines
from latentrt.export.cli.build import sizes
from latentrt.export.engines.build import build_engines
from latentrt.export.engines.ranges import Ranges, profile
from latentrt.export.engines.variants import variant

pytestmark = pytest.mark.skipif(
    not variant("tensorrt-rtx").installed(), reason="TensorRT for RTX has wheels for x86-64 Linux and Windows"
)

RTX = ("sm80", "sm86", "sm89", "sm120", "sm121")
TURING = ("sm75",)
FORMATS = {"fp16": "float16", "bf16": "bfloat16"}
GPUS = {"fp16": [RTX, TURING], "bf16": [RTX]}
GRAPHS = ("text_encoder", "step", "decoder", "encoder")


def cases() -> Iterator[Any]:
    """The step, which takes longest, is compiled for Turing by `make test-full`."""
    for precision, engines in GPUS.items():
        for gpus, component in product(engines, GRAPHS):
            marks = [pytest.mark.full] if (gpus, component) == (TURING, "step") else []
            yield pytest.param(precision, gpus, component, id=f"{component} in {precision} for {gpus[0]}", marks=marks)


@pytest.fixture(scope="module")
def bundles(shapes_fp16: Path, shapes_bf16: Path) -> dict[str, Bundle]:
    return {"fp16": Bundle.open(shapes_fp16), "bf16": Bundle.open(shapes_bf16)}


def ranges(bundle: Bundle) -> Ranges:
    return Ranges.of(bundle.family, size=sizes("64x64"))


@pytest.mark.families
@pytest.mark.parametrize(("precision", "gpus", "component"), cases())
def test_an_engine_of_each_component_is_as_the_graph_states(precision, gpus, component, bundles, tmp_path: Path):
    bundle = bundles[precision]
    build_engines(
        bundle, backend="tensorrt-rtx", folder=tmp_path, ranges=ranges(bundle), gpus=gpus, components=[component]
    )
    (engine,) = built_engines(tmp_path, "tensorrt-rtx")
    record, part = engine.record, bundle.component(component)
    assert (record.component, record.gpus) == (component, gpus)
    assert engine.plan.stat().st_size == record.plan_bytes
    assert record.precision == precision
    assert record.graph == part.graph.digest
    assert record.profile == profile(part, ranges(bundle).lengths(bundle.family))
    specs = {**part.graph.inputs, **part.graph.outputs}
    assert record.io == {tensor: spec.dtype for tensor, spec in specs.items()}
    own, other = FORMATS[precision], (set(FORMATS.values()) - {FORMATS[precision]}).pop()
    assert record.types[own] > 3 * record.types["float32"]  # the network; the rest is algebra and what a table keeps
    assert other not in record.types
    assert set(record.products) <= {own}
    bits = 2 * part.parameters
    assert bits < record.weights_bytes < 1.1 * bits  # and what stays float32
    assert record.plan_bytes > record.weights_bytes
    assert record.activation_bytes > 0


def test_turing_has_fp16_and_no_bf16(bundles, tmp_path: Path):
    bundle = bundles["bf16"]
    with pytest.raises(RequestError, match=r"sm75 has no bf16 \(sm80.*text_encoder, step, decoder"):
        build_engines(bundle, backend="tensorrt-rtx", folder=tmp_path, ranges=ranges(bundle), gpus=["sm75", "sm89"])
    assert not list(tmp_path.rglob("*"))
