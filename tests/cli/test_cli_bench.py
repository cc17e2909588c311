"""`latentrt bench`: figures, provenance, and processes of their own."""

import argparse
import os
import sys
from dataclasses import replace

import pytest

from latentrt import backends
from latentrt.bench.figures import component_precisions, ran_as, tail, tail_name
from latentrt.bench.runner import BenchRuns, Candidate, Workload, measure, measure_apart
from latentrt.bundle import Bundle
from latentrt.cli import bench as bench_module
from latentrt.cli.bench import ratios, summary, verdicts
from latentrt.errors import BackendError, BundleError, EnvironmentLacks
from latentrt.output.result import Timings

WORKLOAD = Workload(prompt="a", size=(64, 64), batch=1, steps=1, guidance=1.0, threads=1, repeat=2, warmup=1)


def timings(*steps: float) -> Timings:
    return Timings(text_ms=1.0, steps_ms=steps, decode_ms=2.0, total_ms=3.0 + sum(steps))


def measurement(*samples: Timings, memory: float = 100.0) -> BenchRuns:
    return BenchRuns(samples=samples, load_s=1.0, peak_memory_mb=memory)


def test_measure_leaves_out_the_warm_up():
    numbers, seen = iter(range(10)), []
    assert measure(lambda: next(numbers), repeat=3, warmup=2, progress=seen.append) == (2, 3, 4)
    assert seen == [1, 2, 3, 4, 5]


def test_summary_joins_the_turns():
    row = summary([measurement(timings(10.0, 20.0)), measurement(timings(30.0, 1000.0), memory=200.0)], batch=2)
    assert row["step_ms"]["median"] == 25.0
    assert (row["step_ms"]["p95"], row["step_ms"]["max"]) == (None, 1000.0)
    assert row["step_ms"]["samples"] == [10.0, 20.0, 30.0, 1000.0]
    assert row["total_ms"]["median"] == (33.0 + 1033.0) / 2
    assert row["images_per_s"] == pytest.approx(2 / 0.533)
    assert row["peak_memory_mb"] == 200.0


def test_a_percentile_needs_runs():
    few, many = ([measurement(*(timings(float(ms)) for ms in range(runs)))] for runs in (19, 20))
    few, many = summary(few, batch=1)["step_ms"], summary(many, batch=1)["step_ms"]
    assert (few["p95"], tail(few), tail_name([few, many])) == (None, 18.0, "slowest")
    assert (many["p95"], tail(many), tail_name([many])) == (18.0, 18.0, "95th percentile")
    assert many["max"] == 19.0


def test_what_ran_is_named(shapes_bundle, shapes_fp16):
    """Of int8, by the manifest alone."""

    def name(bundle: Bundle, compute: str, **precisions: str) -> str:
        parts = {
            key: replace(part, precision=precisions.get(key, part.precision)) for key, part in bundle.components.items()
        }
        return ran_as(component_precisions(replace(bundle, components=parts), compute=compute))

    float32, float16 = Bundle.open(shapes_bundle), Bundle.open(shapes_fp16)
    assert [name(float32, compute) for compute in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert [name(float16, compute) for compute in ("fp32", "bf16")] == ["fp16", "fp16 computed in bf16"]
    assert name(float32, "fp32", step="int8") == "int8, rest fp32"
    assert name(float32, "bf16", step="int8") == "int8, rest bf16"
    assert name(float16, "fp32", step="fp8") == "fp8, rest fp16"
    assert name(float32, "fp32", step="int8", decoder="fp16") == "int8, rest fp32; decoder fp16"
    assert name(float32, "fp32", text_encoder="int8") == "fp32; text_encoder int8, rest fp32"


def test_a_busy_machine_is_said(cli, tiny_bundle, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (0.75 * os.cpu_count(), 0.0, 0.0))
    monkeypatch.setattr(bench_module, "measure_apart", lambda *_, **__: measurement(timings(1.0)))
    outcome = cli("bench", tiny_bundle, "--backend", "onnxruntime", "--repeat", 1, "--json")
    (warning,) = outcome.document["warnings"]
    assert "busy" in warning
    assert warning in outcome.err
    text = cli("bench", tiny_bundle, "--backend", "onnxruntime", "--repeat", 1).out
    assert warning in text
    assert "median (slowest) of 1 runs" in text
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 5.0, 5.0))
    assert cli("bench", tiny_bundle, "--backend", "onnxruntime", "--json").document["warnings"] == []


def test_ratios_are_times_as_fast():
    base = {"name": "torch fp32"} | summary([measurement(timings(100.0))], batch=1)
    row = {"name": "openvino"} | summary([measurement(timings(25.0))], batch=1)
    assert ratios(row, base) == {"against": "torch fp32", "step_speedup": 4.0, "total_speedup": 103.0 / 28.0}
    assert ratios(row, None) == {}


def test_what_a_bundle_wins_over_its_parent_is_said_in_words():
    base = {"name": "onnxruntime fp32, float", "against": "onnxruntime fp32, float", "step_speedup": 1.0}
    rows = [{"name": f"b{speed}", "against": base["name"], "step_speedup": speed} for speed in (0.8, 0.98, 1.5)]
    assert verdicts([base, *rows], "int8", "float") == [
        "b0.8: int8 is SLOWER than float: a step takes 1.25 times as long",
        "b0.98: int8 is no faster than float",
        "b1.5: int8 is faster than float: 1.50 steps in the time of one",
    ]


def test_a_bundle_beside_the_one_that_it_was_made_from(cli, shapes_fp16, shapes_bundle):
    outcome = cli(
        *("bench", shapes_fp16, "--against", shapes_bundle, "--backend", "onnxruntime", "--size", "64x64"),
        *("--steps", 1, "--repeat", 1, "--warmup", 0, "--guidance", 1, "--json"),
    )
    assert outcome.code == 0, outcome.err
    assert "was not made from" not in outcome.err
    parent, own = outcome.document["results"]
    assert (parent["name"], own["name"]) == (f"onnxruntime fp32, {shapes_bundle.name}", "onnxruntime fp16")
    assert (parent["precision"]["step"], own["precision"]["step"]) == ("fp32", "fp16")
    assert own["against"] == parent["against"] == parent["name"]
    assert own["step_speedup"] == pytest.approx(parent["step_ms"]["median"] / own["step_ms"]["median"])
    (said,) = outcome.document["verdicts"]
    assert said.startswith(f"onnxruntime fp16: {shapes_fp16.name} is ")


def test_bench_json(cli, tiny_bundle):
    outcome = cli(
        *("bench", tiny_bundle, "--backend", "onnxruntime,openvino", "--size", "64x64", "--steps", 2),
        *("--repeat", 2, "--guidance", 1, "--json"),
    )
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert document.keys() == {"provenance", "workload", "warnings", "results", "verdicts"}
    assert {"date", "cpu", "cores", "memory_gb", "system", "versions", "bundle"} <= document["provenance"].keys()
    assert {"latentrt", "python", "numpy", "onnxruntime"} <= document["provenance"]["versions"].keys()
    assert len(document["provenance"]["bundle"]["sha256"]) == 64
    assert [row["name"] for row in document["results"]] == ["onnxruntime fp32", "openvino fp32"]
    for row in document["results"]:
        assert len(row["step_ms"]["samples"]) == 4
        assert len(row["total_ms"]["samples"]) == 2
        assert 0 < row["step_ms"]["median"] <= row["step_ms"]["max"] < row["total_ms"]["max"]
        assert row["step_ms"]["p95"] is None
        assert 30 < row["peak_memory_mb"] < 2000
        assert "against" not in row


def test_torch_is_measured_alike(tiny_checkpoint):
    from latentrt.export.bench_torch import candidates

    reference, _ = candidates(str(tiny_checkpoint))
    assert reference.name == "torch fp32"
    progress: list[int] = []
    found = measure_apart(reference, WORKLOAD, progress=progress.append)
    assert progress == [1, 2, 3]
    assert len(found.samples) == 2
    for sample in found.samples:
        assert len(sample.steps_ms) == 1
        assert 0 < sample.text_ms + sum(sample.steps_ms) + sample.decode_ms <= sample.total_ms * 1.001


def test_what_a_candidate_raises_is_raised_here(tmp_path):
    lost = Candidate(
        "lost",
        "latentrt.bench.runner:open_bundle",
        {"path": str(tmp_path), "backend": "onnxruntime", "compute": "fp32", "cache_dir": None},
    )
    with pytest.raises(BundleError, match=r"has no bundle\.json; expected a finished bundle"):
        measure_apart(lost, WORKLOAD, progress=lambda done: None)


def test_a_candidate_that_dies_is_told(tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text("import os\n\ndef open_nothing(options, workload):\n    os._exit(9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    dying = Candidate("dying", "deadly:open_nothing", {})
    with pytest.raises(BackendError, match=r"dying ended without a result \(status 9\)"):
        measure_apart(dying, replace(WORKLOAD, repeat=1), progress=lambda done: None)


def test_a_candidate_runs_in_the_interpreter_that_it_names(tmp_path, monkeypatch):
    """A peer whose pins conflict with ours."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "peer.py").write_text(
        "import os\nfrom latentrt.errors import BackendError\n\n"
        "def open_peer(options, workload):\n    raise BackendError(os.environ['PEER'])\n"
    )
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nPEER="an environment of its own" exec "{sys.executable}" "$@"\n')
    interpreter.chmod(0o755)
    peer = Candidate("peer", "peer:open_peer", {}, interpreter=str(interpreter))
    with pytest.raises(BackendError, match="an environment of its own"):
        measure_apart(peer, WORKLOAD, progress=lambda done: None)
    missing = replace(peer, interpreter=str(tmp_path / "no-python"))
    with pytest.raises(EnvironmentLacks, match="no-python cannot be started"):
        measure_apart(missing, WORKLOAD, progress=lambda done: None)


@pytest.mark.parametrize("asked", [("auto",), ("all",)])
def test_prebuilt_engines_that_fit_are_measured(asked, tiny_bundle, tmp_path, monkeypatch):
    """As `generate` takes them."""
    monkeypatch.setattr(backends, "_ready", lambda row, graphs, cache: row.name == "tensorrt-rtx" and cache == tmp_path)
    monkeypatch.setattr(backends.Backend, "installed", lambda row: row.name in ("tensorrt-rtx", "openvino"))
    options = argparse.Namespace(backend=asked, compute=("fp32",), cache_dir=str(tmp_path))
    found = [candidate.options["backend"] for candidate in bench_module._own(options, Bundle.open(tiny_bundle))]
    assert found == (["tensorrt-rtx"] if asked == ("auto",) else ["tensorrt-rtx", "openvino"])
