"""Observers in the graph: what they count is what numpy counts, and memory does not grow with layers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import attention_front, convolution_chain, graph_file, run

from latentrt.arrays import to_host
from latentrt.calibration.histogram import BINS, LOWER
from latentrt.calibration.observers import ObservingEngine, probes
from latentrt.calibration.placement import operators


def observe(model: ir.Model, x: np.ndarray, folder: Path, divisors=None):
    """The outputs of a run and what the observers said."""
    said = {}
    found = probes(model, operators(model), divisors={} if divisors is None else divisors)
    with ObservingEngine(graph_file(model, folder / "g.onnx"), found, observe=lambda feed, o: said.update(o)) as engine:
        (output,) = (to_host(value) for value in engine.run({"x": x}).values())
    return output, said


def normed(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """What the layer norm of `attention_front` makes."""
    scale, bias = (model.graph.initializers[f"norm.{name}"].const_value.numpy() for name in ("weight", "bias"))
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5) * scale + bias


def counted(values: np.ndarray) -> np.ndarray:
    return np.histogram(np.abs(values), bins=[*LOWER, np.inf])[0]


def inputs(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("divided", [False, True])
def test_observers_count_what_numpy_counts(tmp_path, divided):
    model, x = attention_front(), inputs(3, 50, 8)
    tensor = "block.norm/LayerNormalization.y"
    divisor = np.geomspace(0.1, 10, 8).astype(np.float32)
    output, said = observe(model, x, tmp_path, {tensor: divisor} if divided else None)
    values = normed(model, x) / (divisor if divided else 1)
    seen = said[tensor]
    assert set(said) == {tensor, "block.gate/Mul.y"}
    assert seen.finite
    np.testing.assert_allclose(seen.channels, np.abs(values).max(axis=(0, 1)), rtol=1e-5)
    assert seen.counts.shape == (BINS,)
    assert seen.counts.sum() == values.size
    # A value next to an edge may be counted on its other side.
    assert np.abs(np.cumsum(seen.counts) - np.cumsum(counted(values))).max() <= 2
    np.testing.assert_allclose(output, run(model, x), rtol=1e-5, atol=1e-5)


def test_zeros_are_counted_and_do_not_disturb(tmp_path):
    model = convolution_chain(1)
    _, said = observe(model, np.zeros((1, 8, 4, 4), np.float32), tmp_path)
    assert said["x"].finite
    assert said["x"].counts[0] == 8 * 16
    assert said["x"].channels.tolist() == [0] * 8


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_noticed(tmp_path, bad):
    x = inputs(1, 8, 4, 4)
    x[0, 3, 2, 1] = bad
    _, said = observe(convolution_chain(2), x, tmp_path)
    assert not said["x"].finite


def test_a_float16_graph_is_observed_as_well(tmp_path):
    model, x = attention_front(dtype="float16"), inputs(2, 20, 8).astype(np.float16)
    _, said = observe(model, x, tmp_path)
    seen = said["block.norm/LayerNormalization.y"]
    assert seen.counts.sum() == x.size
    np.testing.assert_allclose(seen.channels, np.abs(normed(model, x)).max(axis=(0, 1)), rtol=5e-3)


def test_two_runs_say_the_same_to_the_bit(tmp_path):
    first, second = (observe(attention_front(), inputs(2, 33, 8), tmp_path)[1] for _ in range(2))
    for tensor in first:
        np.testing.assert_array_equal(first[tensor].counts, second[tensor].counts)
        np.testing.assert_array_equal(first[tensor].channels, second[tensor].channels)


PEAK = """
import resource, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from small_graphs import convolution_chain, graph_file
from pathlib import Path
from latentrt.calibration.observers import ObservingEngine, probes
from latentrt.calibration.placement import operators
from latentrt.engine import EngineOptions
model = convolution_chain(int(sys.argv[3]))
found = probes(model, operators(model), divisors={})
graph = graph_file(model, Path(sys.argv[2]) / "chain.onnx")
engine = ObservingEngine(graph, found, observe=lambda *_: None, options=EngineOptions(threads=1))
engine.run({"x": np.ones((1, 8, 512, 512), np.float32)})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_layers(tmp_path):
    """24 layers would hold 160 MiB more than 4, if tensors waited for their observers."""

    def peak_mib(layers: int) -> float:
        arguments = [sys.executable, "-c", PEAK, str(Path(__file__).parent), str(tmp_path), str(layers)]
        return int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout) / 1024

    assert peak_mib(24) - peak_mib(4) < 40
