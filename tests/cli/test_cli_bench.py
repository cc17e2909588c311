"""`latentrt bench`: figures, provenance, and processes of their own."""

import argparse
import csv
import io
import os
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from benchmarks.gpu.flops import graph_flops
from latentrt import backends
from latentrt.bench.figures import (
    component_precisions,
    missing_percentiles,
    ran_as,
    ratios,
    spread,
    summary,
    tail,
    tail_name,
    verdicts,
)
from latentrt.bench.peak import PeakSizes, measure_peaks
from latentrt.bench.runner import MOST_WARMUPS, BenchRuns, Candidate, Workload, measure, measure_apart
from latentrt.bundle import Bundle
from latentrt.cli import bench as bench_module
from latentrt.errors import BackendError, BundleError, EnvironmentLacks
from latentrt.output.result import Timings

WORKLOAD = Workload(prompt="a", size=(64, 64), batch=1, steps=1, guidance=1.0, threads=1, repeat=2, warmup=1)


def timings(*steps: float) -> Timings:
    return Timings(text_ms=1.0, steps_ms=steps, decode_ms=2.0, total_ms=3.0 + sum(steps))


def measurement(*samples: Timings, memory: float = 100.0) -> BenchRuns:
    return BenchRuns(samples=samples, load_s=1.0, peak_memory_mb=memory)


def measured(totals: list[float], **changes: object) -> tuple[list[float], list[float], list[int]]:
    """Totals of the warm-up, of what counts, and the progress told, of runs that take so long one after the other."""
    runs, seen = iter(totals), []
    warm, samples = measure(
        lambda: replace(timings(), total_ms=next(runs)), replace(WORKLOAD, **changes), progress=seen.append
    )
    return [run.total_ms for run in warm], [run.total_ms for run in samples], seen


def test_measure_leaves_out_the_warm_up():
    assert measured([0, 1, 2, 3, 4], repeat=3, warmup=2) == ([0, 1], [2, 3, 4], [1, 2, 3, 4, 5])


def test_the_warm_up_ends_when_two_runs_in_a_row_take_equally_long():
    assert measured([100, 60, 50, 48, 47, 46, 45], repeat=2, warmup=None)[:2] == ([100, 60, 50, 48], [47, 46])
    restless = [float(2 ** (run % 2)) for run in range(MOST_WARMUPS + 1)]
    assert measured(restless, repeat=1, warmup=None)[:2] == (restless[:-1], restless[-1:])


def test_measuring_goes_on_for_the_time_that_is_stated(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("latentrt.bench.runner.time.perf_counter", lambda: float(next(clock)))
    assert len(measured([1.0] * 100, repeat=2, warmup=0, duration_s=5.0)[1]) == 6
    assert len(measured([1.0] * 100, repeat=8, warmup=0, duration_s=0.5)[1]) == 8


def test_summary_joins_the_turns():
    row = summary([measurement(timings(10.0, 20.0)), measurement(timings(30.0, 1000.0), memory=200.0)], batch=2)
    assert row["step_ms"]["median"] == 25.0
    assert (row["step_ms"]["p95"], row["step_ms"]["max"]) == (None, 1000.0)
    assert row["step_ms"]["samples"] == [10.0, 20.0, 30.0, 1000.0]
    assert row["total_ms"]["median"] == (33.0 + 1033.0) / 2
    assert row["images_per_s"] == pytest.approx(2 / 0.533)
    assert row["peak_memory_mb"] == 200.0


def test_the_first_call_and_throughput_are_of_all_runs():
    turn = replace(measurement(timings(10.0), timings(30.0)), warmup=(timings(500.0), timings(10.0)))
    row = summary([turn, measurement(timings(77.0))], batch=4)
    assert (row["first_ms"], row["warmup_ms"]) == (503.0, [[503.0, 13.0], []])
    assert row["runs"] == 3
    assert row["measured_s"] == pytest.approx(0.126)
    assert row["images_per_s"] == pytest.approx(4 * 3 / 0.126)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (9, (None, None, None)),
        (10, (9.0, None, None)),
        (19, (18.0, None, None)),
        (20, (18.0, 19.0, None)),
        (99, (90.0, 95.0, None)),
        (100, (90.0, 95.0, 99.0)),
    ],
)
def test_a_percentile_needs_runs(runs, expected):
    """As numpy's inverted_cdf, the nearest rank; and never of fewer than leave one run beyond it."""
    values = [float(value) for value in range(runs, 0, -1)]
    found = spread(values, runs=runs)
    assert (found["p90"], found["p95"], found["p99"]) == expected
    for percent in (90, 95, 99):
        if found[f"p{percent}"] is not None:
            assert found[f"p{percent}"] == np.percentile(values, percent, method="inverted_cdf")


def test_steps_of_one_run_are_no_samples_of_their_own():
    row = summary([measurement(*(timings(*map(float, range(50))) for _ in range(9)))], batch=1)
    assert (len(row["step_ms"]["samples"]), row["step_ms"]["p90"]) == (450, None)


def test_the_tail_is_named():
    few, many = ([measurement(*(timings(float(ms)) for ms in range(runs)))] for runs in (19, 20))
    few, many = summary(few, batch=1)["step_ms"], summary(many, batch=1)["step_ms"]
    assert (tail(few), tail_name([few, many])) == (18.0, "slowest")
    assert (tail(many), tail_name([many]), many["max"]) == (18.0, "95th percentile", 19.0)


def test_what_too_few_runs_say_nothing_of_is_said_with_the_time_that_would_do():
    rows = [{"runs": 20, "measured_s": 30.0}, {"runs": 40, "measured_s": 30.0}]
    said = missing_percentiles(rows)
    assert said is not None
    assert "20 runs" in said
    assert "99th" in said
    assert "95th" not in said
    assert "--duration 150" in said
    assert missing_percentiles([{"runs": 100, "measured_s": 1.0}]) is None


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
    steady = replace(measurement(timings(1.0)), warmup=(timings(1.0),) * 2)
    monkeypatch.setattr(bench_module, "measure_apart", lambda *_, **__: steady)
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
        assert (row["batch"], row["threads"], row["runs"]) == (1, None, 2)
        assert round(row["first_ms"], 3) == row["warmup_ms"][0][0] > 0


@pytest.fixture
def instant(monkeypatch) -> list[Workload]:
    """Measures nothing: a step takes 100 ms for each image, but for 50 ms beside that. Gives what was asked for."""
    asked = []

    def measure_apart(candidate: Candidate, workload: Workload, **_: object) -> BenchRuns:
        asked.append(workload)
        if workload.batch > 4:
            raise BackendError(f"{candidate.name} ended without a result (status -9)")
        return replace(measurement(*[timings(50.0 + 100.0 * workload.batch)] * 12), warmup=(timings(900.0),) * 2)

    monkeypatch.setattr(bench_module, "measure_apart", measure_apart)
    return asked


def test_a_sweep_has_a_row_for_each_batch_size_and_number_of_threads(cli, tiny_bundle, tmp_path, instant):
    outcome = cli(
        *("bench", tiny_bundle, "--backend", "onnxruntime", "--batch", "1,2,4", "--threads", "1,2", "--duration", 3),
        *("--csv", tmp_path / "rows.csv", "--report", tmp_path / "page.html", "--json"),
    )
    assert outcome.code == 0, outcome.err
    document = outcome.document
    points = [(batch, threads) for batch in (1, 2, 4) for threads in (1, 2)]
    assert [(each.batch, each.threads) for each in instant] == points
    assert all((each.duration_s, each.warmup) == (3.0, None) for each in instant)
    assert [(row["batch"], row["threads"]) for row in document["results"]] == points
    assert (document["workload"]["batch"], document["workload"]["threads"]) == ([1, 2, 4], [1, 2])
    for row in document["results"]:
        assert row["step_ms"]["median"] == row["step_ms"]["p90"] == 50 + 100 * row["batch"]
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch"] / (53 + 100 * row["batch"]))
    lines = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert [(line["batch"], line["threads"]) for line in lines] == [(str(a), str(b)) for a, b in points]
    for line, row in zip(lines, document["results"], strict=True):
        assert float(line["step_ms_p90"]) == row["step_ms"]["p90"]
        assert float(line["images_per_s"]) == row["images_per_s"]
        assert (line["step_ms_p95"], line["against"]) == ("", "")
    page = (tmp_path / "page.html").read_text()
    for word in ("Latency", "Percentiles", "Over batch", "Over threads", "Run by run", "polyline", "153"):
        assert word in page
    assert "<script" not in page
    assert "http" not in page


def test_a_sweep_is_printed_with_what_its_runs_do_not_support(cli, tiny_bundle, instant):
    outcome = cli("bench", tiny_bundle, "--backend", "onnxruntime", "--batch", "1,2", "--duration", 1)
    assert outcome.code == 0, outcome.err
    head = outcome.out.splitlines()[0].split()
    assert head[0] == "batch"
    assert "threads" not in head
    for words in ("p50", "99th percentile", "--duration", "batch 1, 2"):
        assert words in outcome.out


def test_a_point_that_fails_leaves_the_others(cli, tiny_bundle, instant):
    """Such as a batch for which memory is too small; but where nothing was measured, that is an error."""
    outcome = cli("bench", tiny_bundle, "--backend", "onnxruntime", "--batch", "4,8", "--json")
    assert outcome.code == 0, outcome.err
    assert [row["batch"] for row in outcome.document["results"]] == [4]
    assert any("batch 8" in warning and "-9" in warning for warning in outcome.document["warnings"])
    assert cli("bench", tiny_bundle, "--backend", "onnxruntime", "--batch", "8").code == 3


def test_a_warm_up_that_never_came_to_rest_is_said(cli, tiny_bundle, monkeypatch):
    restless = replace(measurement(timings(1.0)), warmup=(timings(1.0), timings(900.0)))
    monkeypatch.setattr(bench_module, "measure_apart", lambda *_, **__: restless)
    outcome = cli("bench", tiny_bundle, "--backend", "onnxruntime", "--json")
    assert any("not at rest" in warning for warning in outcome.document["warnings"])
    outcome = cli("bench", tiny_bundle, "--backend", "onnxruntime", "--warmup", 2, "--json")
    assert not any("not at rest" in warning for warning in outcome.document["warnings"])


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--batch", "1,0", "at least 1"),
        ("--batch", "", "at least 1"),
        ("--threads", "two", "at least 1"),
        ("--duration", "soon", "seconds"),
        ("--duration", "inf", "seconds"),
        ("--duration", "-1", "seconds"),
        ("--warmup", "-1", "auto"),
        ("--csv", "/nowhere/at-all.csv", "create the folder"),
        ("--report", "/nowhere/at-all.html", "create the folder"),
    ],
)
def test_what_cannot_be_measured_is_refused_beforehand(option, value, said, cli, tiny_bundle, instant):
    outcome = cli("bench", tiny_bundle, "--backend", "onnxruntime", f"{option}={value}")
    assert outcome.code in (2, 3)
    assert said in outcome.err
    assert not instant


@pytest.mark.families
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
    with pytest.raises(BackendError, match="dying ended with status 9"):
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


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_profile_says_what_nodes_take(backend, cli, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("latentrt.bench.peak.ENOUGH_S", 0.0)
    monkeypatch.setattr("latentrt.bench.peak.FEWEST_RUNS", 1)
    monkeypatch.setattr("latentrt.cli.profile.measure_peaks", partial(measure_peaks, sizes=PeakSizes(64, 1, 16, 8)))
    outcome = cli(
        *("bench", tiny_bundle, "--profile", "--backend", backend, "--size", "64x64", "--steps", 2, "--guidance", 1),
        *("--threads", 1, "--repeat", 1, "--json", "--report", tmp_path / "a.html", "--csv", tmp_path / "a.csv"),
    )
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert {"provenance", "workload", "warnings", "peaks", "profiles"} == document.keys()
    bundle = Bundle.open(tiny_bundle)
    sizes = {"B": 1, "h": 8, "w": 8}
    expected = {
        "step": graph_flops(bundle.component("step").graph.path, {**sizes, "K": 1, "L": 77}),
        "decoder": graph_flops(bundle.component("decoder").graph.path, sizes),
        "text_encoder": graph_flops(bundle.component("text_encoder").graph.path, {"N": 1, "E": 0, "L": 77}),
    }
    assert [row["component"] for row in document["profiles"]] == ["text_encoder", "step", "decoder"]
    for row in document["profiles"]:
        assert row["runs"] == (2 if row["component"] == "step" else 1)
        assert sum(each["share"] for each in row["types"]) == pytest.approx(1)
        assert sum(each["ms"] for each in row["types"]) == pytest.approx(row["nodes_ms"])
        assert row["nodes_ms"] > 0
        assert all(each["share_of_peak"] > 0 for each in row["types"] if each["gflop"] and each["ms"])
        counted = round(1e9 * row["gflop"])
        # ONNX Runtime's layout fills the channels of a few convolutions up
        assert counted == expected[row["component"]] or (
            backend == "onnxruntime" and expected[row["component"]] < counted < 1.1 * expected[row["component"]]
        )
    lines = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert len(lines) == sum(len(row["types"]) for row in document["profiles"])
    page = (tmp_path / "a.html").read_text()
    for word in ("step on", "decoder on", "longest nodes", "of peak", "<rect"):
        assert word in page


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--against", "BUNDLE"), "alone"),
        (("--batch", "1,2"), "one batch size"),
        (("--threads", "1,2"), "one batch size"),
        (("--csv", "/nowhere/a.csv"), "create the folder"),
    ],
)
def test_a_profile_of_something_else_is_refused(options, said, cli, tiny_bundle):
    options = [str(tiny_bundle) if option == "BUNDLE" else option for option in options]
    outcome = cli("bench", tiny_bundle, "--profile", "--backend", "onnxruntime", *options)
    assert outcome.code in (2, 3)
    assert said in outcome.err


def test_a_profile_of_a_backend_without_one_is_refused(cli, tiny_bundle, monkeypatch):
    monkeypatch.setattr(backends.Backend, "installed", lambda row: True)
    monkeypatch.setattr(backends, "check_versions", lambda *_, **__: None)
    outcome = cli("bench", tiny_bundle, "--profile", "--backend", "tensorrt-rtx")
    assert outcome.code == 2
    assert "nothing of what single nodes take" in outcome.err
