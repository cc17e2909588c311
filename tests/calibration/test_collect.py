"""Collecting: even timesteps, exact sums, resuming, and values that are not finite."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentrt.bundle import MANIFEST, Bundle, sha256_file
from latentrt.calibration.collect import CollectionProgress, collect, spread_timesteps
from latentrt.calibration.observers import probes
from latentrt.calibration.placement import operators
from latentrt.errors import BundleError
from latentrt.export.passes.storage import load_graph


def step_probes(bundle: Bundle):
    """The first tensors, a deep one and the last: enough, and loaded soon."""
    model = load_graph(bundle.component("step").graph.path)
    every = probes(model, operators(model), divisors={})
    return {"step": [*every[:2], *(probe for probe in every if probe.layer.startswith("mid_block.resnets.0.conv2"))]}


def assert_same(a, b):
    assert a.calls.tolist() == b.calls.tolist()
    for tensor in a.tensors:
        np.testing.assert_array_equal(a.counts[tensor], b.counts[tensor])
        np.testing.assert_array_equal(a.channels[tensor], b.channels[tensor])


@given(st.integers(1, 200), st.integers(200, 2000), st.floats(0, 1, exclude_max=True))
def test_timesteps_are_even_descending_and_in_range(steps: int, total: int, shift: float):
    found = spread_timesteps(steps, total, shift=shift)
    assert len(found) == steps
    assert 0 <= found[-1] <= found[0] <= total - 1
    assert (np.abs(-np.diff(found) - total / steps) < 1).all()


def test_all_parts_of_the_schedule_are_covered_alike_whatever_the_sampler(short):
    settings = replace(short("a", "b", "c", "d"), steps=10, batch=2)
    for sampler in ("euler", "dpmpp-2m", "pndm"):
        timesteps = [t for request in replace(settings, sampler=sampler).requests(1000) for t in request.timesteps]
        assert np.bincount(np.array(timesteps) // 100).tolist() == [2] * 10
    assert [request.seed for request in settings.requests(1000)] == [3, 5]


def test_each_size_runs_all_prompts_with_seeds_of_its_own(short):
    settings = replace(short("a", "b", "b"), sizes=((64, 64), (64, 128)))
    requests = list(settings.requests(1000))
    assert [request.size for request in requests] == [(64, 64)] * 3 + [(64, 128)] * 3
    assert [request.seed for request in requests] == [3, 4, 5, 6, 7, 8]


def test_counts_are_the_same_to_the_bit_also_after_an_interruption(shapes_bundle, short, tmp_path):
    bundle = Bundle.open(shapes_bundle)
    settings, wanted = short("a red circle", "a blue star", "a pink heart"), step_probes(bundle)

    def interrupt(event: CollectionProgress) -> None:
        if event.done == 4:  # the second of three trajectories has had its last call, and is not yet recorded
            raise KeyboardInterrupt

    unbroken = collect(bundle, settings, wanted, record=tmp_path / "a.npz", threads=1)["step"]
    with pytest.raises(KeyboardInterrupt):
        collect(bundle, settings, wanted, record=tmp_path / "b.npz", threads=1, progress=interrupt)
    events: list[CollectionProgress] = []
    resumed = collect(bundle, settings, wanted, record=tmp_path / "b.npz", threads=1, progress=events.append)["step"]
    assert [event.done for event in events] == [3, 4, 5, 6]
    assert {event.resumed for event in events} == {2}
    assert_same(unbroken, resumed)
    assert unbroken.calls.sum() == 6
    first = next(probe for probe in wanted["step"] if probe.layer == "down_blocks.0.resnets.0.conv1/Conv")
    # Calls, branches, channels, latent pixels: every value was counted, once.
    assert unbroken.histogram(first.tensor).sum() == 6 * 2 * first.channels * 8 * 8


def test_a_record_of_other_prompts_is_not_taken_for_ours(shapes_bundle, short, tmp_path):
    bundle, record = Bundle.open(shapes_bundle), tmp_path / "r.npz"
    wanted = step_probes(bundle)
    collect(bundle, short("a red circle"), wanted, record=record, threads=1)
    events: list[CollectionProgress] = []
    collect(bundle, short("a blue star"), wanted, record=record, threads=1, progress=events.append)
    assert [event.resumed for event in events] == [0, 0]


@pytest.mark.parametrize("damage", [b"", b"not a record", None])
def test_a_damaged_record_starts_anew(shapes_bundle, short, tmp_path, damage):
    bundle, record = Bundle.open(shapes_bundle), tmp_path / "r.npz"
    wanted, settings = step_probes(bundle), short("a red circle")
    whole = collect(bundle, settings, wanted, record=record, threads=1)["step"]
    record.write_bytes(record.read_bytes()[:-200] if damage is None else damage)
    assert_same(whole, collect(bundle, settings, wanted, record=record, threads=1)["step"])


def test_nan_names_layer_call_and_prompt(shapes_bundle, short, tmp_path):
    bundle = Bundle.open(poisoned(shapes_bundle, tmp_path / "bundle", "mid_block.resnets.0.conv1.bias"))
    with pytest.raises(BundleError, match=r"NaN or infinity.*mid_block\.resnets\.0\..*call 1.*'a red circle'"):
        collect(bundle, short("a red circle"), step_probes(bundle), record=tmp_path / "r.npz", threads=1)


def poisoned(source: Path, target: Path, weight: str) -> Path:
    """A copy with a weight made infinite, and a manifest that agrees with the files."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("engines"))
    model = ir.load(source / "step.onnx")
    value = model.graph.initializers[weight]
    value.const_value = ir.tensor(np.full(value.shape.numpy(), np.inf, value.dtype.numpy()), name=weight)
    ir.save(model, target / "step.onnx", external_data="step.weights")
    manifest = json.loads((target / MANIFEST).read_text())
    for name in ("step.onnx", "step.weights"):
        file = target / name
        manifest["files"][name] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
    (target / MANIFEST).write_text(json.dumps(manifest))
    return target
