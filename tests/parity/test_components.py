"""Each graph against its torch module. The export has compared them through ONNX Runtime already and written it
to the manifest; the same gates hold for every other backend."""

import json
from pathlib import Path

import numpy as np
import pytest
from parity.cases import COMPONENTS

from latentrt.backends import open_engine
from latentrt.bundle import Bundle
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.graphs.components import component_specs
from latentrt.export.parity.components import (
    OFF_BY_ONE_LIMIT,
    RELATIVE_LIMIT,
    SIZES,
    compare,
    component_feeds,
    difference,
    reference_runs,
    step_feed,
)


def test_the_export_compared_every_component_and_wrote_it_down(shapes_bundle: Path):
    rows = json.loads((shapes_bundle / "bundle.json").read_text())["parity"]
    assert {row["component"] for row in rows} == set(COMPONENTS)
    assert all(row["passed"] and row["worst"] <= row["limit"] for row in rows)
    assert {row["limit"] for row in rows} == {RELATIVE_LIMIT, OFF_BY_ONE_LIMIT}
    step_cases = [row["case"] for row in rows if row["component"] == "step"]
    assert len(step_cases) == 2 * len(SIZES)
    assert {case.split(" ")[0] for case in step_cases} == {"bare", "guided"}


@pytest.mark.parametrize("component", COMPONENTS)
def test_openvino_equals_torch(component: str, shapes_bundle: Path, shapes_checkpoint: Path):
    checkpoint = Checkpoint.open(shapes_checkpoint)
    (spec,) = [s for s in component_specs(checkpoint, read_family(checkpoint)) if s.name == component]
    cases = component_feeds(spec.inputs)[:-2] if component == "step" else component_feeds(spec.inputs)[:3]
    runs = reference_runs(spec.reference(), spec.inputs, cases=cases)
    graph = Bundle.open(shapes_bundle).component(component).graph
    results = compare(component, graph, runs, backend="openvino")
    assert [result.case for result in results if not result.passed] == []


@pytest.mark.parametrize("name", ["state", "noise", "known", "mask", "timestep", "scalings", "transition", "context",
                                  "guidance", "rescale"])  # fmt: skip
def test_every_input_of_the_step_matters(name: str, shapes_bundle: Path, shapes_checkpoint: Path):
    """Perturbing any input moves the output by far more than the parity gate allows."""
    checkpoint = Checkpoint.open(shapes_checkpoint)
    (spec,) = [s for s in component_specs(checkpoint, read_family(checkpoint)) if s.name == "step"]
    bundle = Bundle.open(shapes_bundle)
    feed = step_feed(spec.inputs, (64, 64), 1, guided=True)
    with open_engine(bundle.component("step").graph, backend="onnxruntime") as engine:
        before = engine.run(feed)["next_state"]
        change = np.random.default_rng(9).standard_normal(feed[name].shape, np.float32)
        feed[name] = feed[name] * 0.5 if name == "timestep" else feed[name] + np.float32(0.3) * change
        after = engine.run(feed)["next_state"]
    worst, limit = difference(after, before)
    assert worst >= 10 * limit


@pytest.mark.parametrize(
    ("found", "expected", "passes"),
    [
        (np.float32([0, 1]), np.float32([0, 1 + 0.9e-4]), True),
        (np.float32([0, 1]), np.float32([0, 1 + 1.2e-4]), False),
        (np.float32([0, 100]), np.float32([0, 100.005]), True),
        (np.float32([np.nan]), np.float32([0]), False),
        (np.float32([[0]]), np.float32([0]), False),
        (np.float64([0]), np.float32([0]), False),
        (np.uint8([0] * 1999 + [1]), np.uint8([0] * 2000), True),
        (np.uint8([0] * 990 + [1] * 10), np.uint8([0] * 1000), False),
        (np.uint8([0] * 1999 + [2]), np.uint8([0] * 2000), False),
    ],
)
def test_a_difference_is_judged_by_value_shape_and_dtype(found, expected, passes: bool):
    worst, limit = difference(found, expected)
    assert (worst <= limit) is passes
