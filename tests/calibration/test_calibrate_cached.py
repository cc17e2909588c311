"""Step caching and int8: shallow calls are counted, and run on the rounded weights of the step."""

from pathlib import Path

import numpy as np

import latentrt
from latentrt.bundle import Bundle
from latentrt.calibration.collect import collect
from latentrt.calibration.observers import probes
from latentrt.calibration.placement import operators
from latentrt.export.bundles.step_cache import add_step_cache
from latentrt.export.passes.storage import load_graph


def test_tensors_of_shallow_calls_are_counted_in_every_second_trajectory(cached_bundle: Path, short, tmp_path: Path):
    bundle = Bundle.open(cached_bundle)
    model = load_graph(bundle.component("step").graph.path)
    every = probes(model, operators(model), divisors={})
    outer = next(probe for probe in reversed(every) if probe.layer.startswith("up_blocks.") and "conv2" in probe.layer)
    inner = next(probe for probe in every if probe.layer.startswith("mid_block.resnets.0.conv2"))
    settings = short("a red circle", "a blue star", steps=4)
    found = collect(bundle, settings, {"step": [outer, inner]}, record=tmp_path / "record")["step"]
    assert found.calls.sum() == 8
    calls = {probe.tensor: 0 for probe in (outer, inner)}
    whole = collect(bundle, short("a red circle", steps=4), {"step": [outer, inner]}, record=tmp_path / "one")["step"]
    for tensor in calls:
        calls[tensor] = 4 * found.counts[tensor].sum() / whole.counts[tensor].sum()
    assert calls == {outer.tensor: 8, inner.tensor: 4 + 2}, "calls 0 and 3 of the cached trajectory are deep"


def test_shallow_calls_of_an_int8_bundle_are_int8(calibrated, cached_bundle: Path, tmp_path: Path):
    bundle = add_step_cache(calibrated.bundle, tmp_path / "cached", layers=1)
    graph = load_graph(bundle.component("step-shallow").graph.path).graph
    assert bundle.component("step-shallow").precision == "int8"
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph}
    asked = {"seed": 7, "steps": 6, "size": (64, 64), "output": "latent"}
    with latentrt.load(bundle.root, backend="onnxruntime") as pipe:
        plain, found = (pipe.generate("a red circle", cache=cache, **asked).latents for cache in (None, 2))
    with latentrt.load(cached_bundle, backend="onnxruntime") as pipe:
        expected = pipe.generate("a red circle", cache=2, **asked).latents
    assert np.square(found - expected).mean() < 0.25 * np.square(plain - expected).mean()
