"""Bundles in fp16 and bf16 against float32: components against torch, whole images against the float32 bundle.

A CPU computes float16 through float32, so that torch in half precision, which rounds after every operator, is
judged by the same gates.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.cases import HALF_GATES, PROMPTS, HalfGate, shapes_case

import latentrt
from latentrt.bundle import Bundle
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.graphs.components import ComponentSpec, component_specs
from latentrt.export.parity import half
from latentrt.export.parity.components import ComponentRun, reference_runs, step_feed, text_feed, vae_feed
from latentrt.export.parity.half import COMPONENT_LIMITS_DB, MEDIAN_LIMITS_DB, component_ratios
from latentrt.export.parity.metrics import median_psnr_db, signal_to_noise_db

SIZES = ((64, 64, 1), (104, 72, 2))  # width, height, batch
IMAGES = shapes_case("dpmpp-2m", size=(64, 64), steps=8, prompts=(PROMPTS * 6)[:16], seed=100)


@pytest.fixture(scope="module")
def specs(shapes_checkpoint: Path) -> dict[str, ComponentSpec]:
    checkpoint = Checkpoint.open(shapes_checkpoint)
    return {spec.name: spec for spec in component_specs(checkpoint, read_family(checkpoint))}


@pytest.fixture(scope="module")
def reference(specs: dict[str, ComponentSpec]) -> Callable[[str], list[ComponentRun]]:
    def runs(name: str) -> list[ComponentRun]:
        spec = specs[name]
        if name == "text_encoder":
            feeds = [text_feed(spec.inputs, 2, skip) for skip in (0, 1)]
        elif name == "step":
            feeds = [step_feed(spec.inputs, (h, w), batch, guided=False) for w, h, batch in SIZES]
        else:
            feeds = [vae_feed(spec.inputs, (h, w), batch) for w, h, batch in SIZES]
        cases = [(f"case {i}", feed) for i, feed in enumerate(feeds)]
        return reference_runs(spec.build(), spec.inputs, cases=cases)

    return cache(runs)


@pytest.fixture(scope="module")
def bundles(shapes_bundle: Path, shapes_fp16: Path, shapes_bf16: Path) -> dict[str, Bundle]:
    return {
        name: Bundle.open(root)
        for name, root in (("fp32", shapes_bundle), ("fp16", shapes_fp16), ("bf16", shapes_bf16))
    }


@pytest.mark.parametrize("gate", HALF_GATES, ids=str)
def test_a_component_in_16_bit_is_near_torch(gate: HalfGate, bundles: dict[str, Bundle], reference):
    graph = bundles[gate.precision].component(gate.component).graph
    try:
        ratios = list(
            component_ratios(
                graph,
                reference(gate.component),
                backend=gate.backend,
                compute=gate.compute,
            )
        )
    except latentrt.EnvironmentLacks as error:
        pytest.skip(f"this processor has no bfloat16: {error}")
    assert len(ratios) == 2
    for row in ratios:
        assert row.limit == COMPONENT_LIMITS_DB[gate.precision]
        assert row.passed, row


@pytest.mark.parametrize("kind", COMPONENT_LIMITS_DB)
def test_torch_in_half_precision_passes_the_gate_of_the_bare_network(kind: str, specs, reference):
    """The honest oracle, in the types of the converted graph: network in 16 bit, timestep in float32."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[kind]
    network = specs["step"].build().network.to(dtype)
    for run in reference("step"):
        sample, context = (torch.from_numpy(run.feed[name][index]).to(dtype) for name, index in
                           (("state", (slice(None), 0)), ("context", 0)))  # fmt: skip
        with torch.no_grad():
            found = network(sample, torch.from_numpy(run.feed["timestep"]), context).float().numpy()
        assert signal_to_noise_db(found, run.outputs["denoised"]) >= COMPONENT_LIMITS_DB[kind]


@pytest.fixture(scope="module")
def images(bundles: dict[str, Bundle]) -> np.ndarray:
    """Sixteen seeds in float32, which are equal to diffusers' by the gates of `test_images`."""
    with latentrt.load(bundles["fp32"].root, backend="onnxruntime") as pipe:
        return pipe.run(IMAGES.request).images


def test_images_in_fp16_are_near_those_in_float32(bundles: dict[str, Bundle], images: np.ndarray):
    with latentrt.load(bundles["fp16"].root, backend="onnxruntime") as pipe:
        found = pipe.run(IMAGES.request).images
    assert len(found) == 16
    assert not np.array_equal(found, images)
    assert median_psnr_db(found, images) >= MEDIAN_LIMITS_DB["fp16"]


def test_images_in_bf16_resemble_those_in_float32(bundles: dict[str, Bundle], images: np.ndarray):
    """`latentrt check` reports their figure and does not judge it; here only: they are no noise."""
    assert MEDIAN_LIMITS_DB["bf16"] is None
    with latentrt.load(bundles["bf16"].root, backend="openvino") as pipe:
        found = pipe.run(IMAGES.request).images
    assert 15 < median_psnr_db(found, images) < 80


@pytest.mark.parametrize(
    ("found", "reference_values", "expected"),
    [
        (np.float32([1, 1.1]), np.float32([1, 1]), 10 * np.log10(2 / 0.01)),
        (np.float32([1, 1]), np.float32([1, 1]), np.inf),
        (np.float32([1, np.nan]), np.float32([1, 1]), -np.inf),
        (np.float32([1, np.inf]), np.float32([1, 1]), -np.inf),
        (np.float64([1]), np.float32([1]), -np.inf),
        (np.float32([[1]]), np.float32([1]), -np.inf),
        (np.uint8([10, 11]), np.uint8([10, 10]), 10 * np.log10(255**2 / 0.5)),
    ],
)
def test_the_ratio_is_that_of_powers(found: np.ndarray, reference_values: np.ndarray, expected: float):
    assert signal_to_noise_db(found, reference_values) == pytest.approx(expected, abs=1e-4)


def test_backends_that_cannot_run_a_format_are_left_out(bundles: dict[str, Bundle]):
    both = ("onnxruntime", "openvino")
    assert half.able(both, bundles["bf16"]) == ["openvino"]
    assert half.able(both, bundles["fp16"]) == half.able(both, bundles["fp32"]) == list(both)
    assert [half.lowest_precision(bundles[name]) for name in bundles] == ["fp32", "fp16", "bf16"]
