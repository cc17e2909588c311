"""From the sizes that a user asks for to profiles, and from architectures to engines; no TensorRT is needed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentrt import Bundle, RequestError
from latentrt.bundle import Component
from latentrt.cli.arguments import names
from latentrt.errors import BundleError
from latentrt.export.cli.build import sizes, span
from latentrt.export.engines.ranges import Ranges, SizeSpan, Span, profile
from latentrt.export.engines.targets import Target, asked_targets, default_targets, lacks, refuse_unfit
from latentrt.export.engines.variants import variant
from latentrt.graph import GraphFile, TensorSpec
from latentrt.manifest.axes import axis_lengths

RTX = variant("tensorrt-rtx")


@pytest.fixture(scope="module")
def bundle(shapes_bundle: Path) -> Bundle:
    return Bundle.open(shapes_bundle)


def test_the_defaults_are_the_familys(bundle: Bundle):
    ranges = Ranges.of(bundle.family)
    assert (str(ranges.size), str(ranges.batch), str(ranges.branches), str(ranges.context)) == (
        *("128x128", "1", "1..2", "77..231"),
    )
    shapes = profile(bundle.component("step"), ranges.lengths(bundle.family))
    assert (shapes.min["context"], shapes.opt["context"], shapes.max["context"]) == (
        *((1, 1, 77, 128), (2, 1, 77, 128), (2, 1, 231, 128)),
    )
    assert shapes.min["state"] == shapes.opt["state"] == shapes.max["state"] == (1, 4, 4, 16, 16)


def test_width_and_height_keep_their_order(bundle: Bundle):
    lengths = Ranges.of(bundle.family, size=sizes("96x64..256x192")).lengths(bundle.family)
    assert (lengths["w"], lengths["h"]) == ((12, 16, 32), (8, 16, 24))
    assert (lengths["W"], lengths["H"]) == ((96, 128, 256), (64, 128, 192))


def test_texts_of_all_images_and_branches_go_through_the_text_encoder_at_once(bundle: Bundle):
    ranges = Ranges.of(bundle.family, batch=span("2..4"), branches=span("1..2"), context=span("77..154"))
    shapes = profile(bundle.component("text_encoder"), ranges.lengths(bundle.family))
    assert [bound["ids"] for bound in (shapes.min, shapes.opt, shapes.max)] == [(1, 77), (4, 77), (16, 77)]
    assert [bound["extra_embeddings"][0] for bound in (shapes.min, shapes.opt, shapes.max)] == [1, 1, 77]


@pytest.mark.parametrize(
    ("component", "options"),
    [
        ("text_encoder", {"batch", "branches", "context"}),
        ("step", {"size", "batch", "branches", "context"}),
        ("decoder", {"size", "batch"}),
        ("encoder", {"size", "batch"}),
    ],
)
def test_an_engine_depends_on_the_ranges_that_its_axes_have(component: str, options: set[str], bundle: Bundle):
    assert set(Ranges.of(bundle.family).options(bundle.component(component))) == options


spans = st.integers(1, 6).flatmap(lambda low: st.tuples(st.just(low), st.integers(low, 8)))
pixels = st.integers(8, 32).flatmap(lambda low: st.tuples(st.just(8 * low), st.integers(low, 40).map(lambda n: 8 * n)))


@given(st.data(), pixels, pixels, spans, spans, spans)
def test_every_request_within_the_ranges_is_within_the_profile(bundle, data, width, height, batch, branches, chunks):
    family = bundle.family
    ranges = Ranges.of(
        family,
        size=SizeSpan((width[0], height[0]), (width[1], height[1])),
        batch=Span(*batch),
        branches=Span(*branches),
        context=Span(77 * chunks[0], 77 * chunks[1]),
    )
    lengths = ranges.lengths(family)
    assert all(1 <= low <= usual <= high for low, usual, high in lengths.values())
    pick = {"w": width, "h": height, "b": batch, "k": branches, "c": chunks}
    ends = {name: data.draw(st.sampled_from(pair), label=name) for name, pair in pick.items()}
    request = axis_lengths(
        family, size=(ends["w"], ends["h"]), batch=ends["b"], branches=ends["k"], context=77 * ends["c"]
    )
    for component in bundle.components.values():
        shapes = {
            name: tuple(axis if isinstance(axis, int) else request[axis] for axis in component.dims[name])
            for name in component.graph.inputs
        }
        assert profile(component, lengths).covers(shapes)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"size": "100x64"}, "width is 100 px; expected a multiple of 8 between 64 and 1024"),
        ({"size": "64x2048"}, "height is 2048 px"),
        ({"size": "128x128..64x256"}, r"size \(width\) from 128 to 64"),
        ({"batch": "4..1"}, "batch from 4 to 1"),
        ({"batch": "0"}, "batch from 0 to 0"),
        ({"context": "77..100"}, r"context 77\.\.100; expected multiples of 77"),
        ({"context": "0..77"}, "context from 0 to 77"),
    ],
)
def test_ranges_that_no_engine_can_have_are_refused(asked: dict[str, str], problem: str, bundle: Bundle):
    read = {name: sizes(text) if name == "size" else span(text) for name, text in asked.items()}
    with pytest.raises(RequestError, match=problem):
        Ranges.of(bundle.family, **read)


@pytest.mark.parametrize("text", ["", "1..", "..4", "a", "1..2..3", "-1", "1.5"])
def test_text_that_is_no_range_is_refused(text: str):
    with pytest.raises(RequestError, match=r"a range such as 1\.\.4"):
        span(text)


def test_an_axis_that_nobody_knows_is_refused(bundle: Bundle):
    graph = GraphFile("step", path=Path("step.onnx"), inputs={"x": TensorSpec("float32", (None,))}, outputs={})
    component = Component(name="step", precision="fp32", parameters=0, graph=graph, dims={"x": ("q",)})
    with pytest.raises(BundleError, match="input 'x' of step has an axis 'q'"):
        profile(component, Ranges.of(bundle.family).lengths(bundle.family))


FLOAT32 = {"float32": 5, "int64": 2}
# name: (types of a component's tensors, types of its matrix products, default engines, refused with the reason)
CONTENTS = {
    "fp32 with matrix products": (FLOAT32, ["float32"], ["sm80+"], {"sm75": "float32 matrix products"}),
    "fp32 without": (FLOAT32, [], ["sm80+", "sm75"], {}),
    "fp16": ({**FLOAT32, "float16": 9}, ["float16"], ["sm80+", "sm75"], {}),
    "bf16": ({**FLOAT32, "bfloat16": 9}, ["bfloat16"], ["sm80+"], {"sm75": "bf16"}),
    "int8 and fp16": ({"int8": 3, "float16": 9}, ["float16"], ["sm80+", "sm75"], {}),
    "fp8 and fp16": (
        *({"float8_e4m3fn": 3, "float16": 9}, ["float16"], ["sm89+"]),
        {"sm75": "fp8", "sm80": "fp8", "sm86": "fp8", "sm80+": "fp8"},
    ),
    "fp4": (
        *({"float4_e2m1fn": 3}, [], ["sm120+"]),
        {"sm75": "fp4", "sm80": "fp4", "sm86": "fp4", "sm89": "fp4", "sm80+": "fp4"},
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_the_default_engines_are_those_whose_gpus_have_the_types(name: str):
    types, products, engines, _ = CONTENTS[name]
    assert [str(target) for target in default_targets({"step": lacks(types, products)})] == engines


@pytest.mark.parametrize("gpu", ["sm75", "sm80", "sm80+", "sm86", "sm89", "sm120", "sm121"])
@pytest.mark.parametrize("name", CONTENTS)
def test_types_that_an_architecture_lacks_are_refused_with_the_list(name: str, gpu: str):
    types, products, _, refused = CONTENTS[name]
    targets = asked_targets([gpu], RTX)
    contents = {"step": lacks(types, products), "decoder": lacks(types, products), "encoder": []}
    if gpu not in refused:
        return refuse_unfit(targets, contents, precision="fp16")
    with pytest.raises(RequestError) as raised:
        refuse_unfit(targets, contents, precision="fp16")
    assert f"{gpu} has no {refused[gpu]} (sm" in raised.value.found
    assert raised.value.found.endswith(": see step, decoder")
    return None


def test_one_component_that_turing_lacks_means_no_engine_for_turing():
    assert default_targets({"step": lacks({"bfloat16"}, ()), "decoder": []}) == (Target(("sm80+",)),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sm89", [Target(("sm89",), capabilities=(89,))]),
        ("sm120, sm89,sm89", [Target(("sm89", "sm120"), capabilities=(89, 120))]),
        (
            "sm75,sm80,sm86",
            [Target(("sm80", "sm86"), capabilities=(80, 86)), Target(("sm75",), capabilities=(75,))],
        ),
        ("sm80+", [Target(("sm80+",))]),
        ("sm80+,sm75", [Target(("sm80+",)), Target(("sm75",), capabilities=(75,))]),
    ],
)
def test_gpus_share_an_engine_but_for_turing(text: str, expected: list[Target]):
    assert asked_targets(names(text), RTX) == tuple(expected)


@pytest.mark.parametrize("text", ["sm90", "89", "sm100", "sm89+", "ada", "SM89", ","])
def test_architectures_that_it_does_not_compile_for_are_refused(text: str):
    with pytest.raises(RequestError, match="architecture"):
        asked_targets(names(text), RTX)


def test_other_backends_take_no_engines():
    with pytest.raises(RequestError, match="expected tensorrt-rtx or tensorrt"):
        variant("openvino")
