"""`python -m benchmarks.gpu` on a machine without a GPU: all but CUDA's own timing runs here, on the CPU."""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from parity.cases import shapes_case
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu import candidates, card, check, plain, toys
from benchmarks.gpu import prepare as prepare_module
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.card import peak_tflops
from benchmarks.gpu.flops import graph_flops
from benchmarks.gpu.latency import compare, compete
from benchmarks.gpu.parity import exact_float32, in_half
from benchmarks.gpu.prepare import Place, Task, architecture, bundle_tasks, prepare
from benchmarks.gpu.record import Deadline, Record, result_path
from benchmarks.gpu.report import failures, report
from benchmarks.gpu.worker import ask_apart, worker
from latentrt.bench.runner import Candidate, Workload
from latentrt.bundle import MANIFEST, Bundle
from latentrt.errors import BackendError, BundleError, EnvironmentLacks
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.engines.rewrite import rewrite_graphs
from latentrt.export.graphs.modules.unet import UNet
from latentrt.export.synthetic.checkpoints import ARCHITECTURES, _unet, _vae

WORKLOAD = Workload(prompt="a", size=(64, 64), batch=2, steps=2, guidance=7.5, threads=None, repeat=3, warmup=1)

# Candidates that take no time, and one of each way to fail.
FAKES = """
import os, time
from contextlib import contextmanager

def timings(step_ms):
    return {"text_ms": 1.0, "steps_ms": [0.5 * step_ms, 1.5 * step_ms], "decode_ms": 2.0, "total_ms": 3.0 + 2 * step_ms}

@contextmanager
def open_steady(options):
    print("a library's banner", flush=True)
    os.write(1, b"and one from C++\\n")
    def answer(request):
        with open(options["journal"], "a") as journal:
            print(options["step_ms"], request["runs"], file=journal)
        return {"samples": [timings(options["step_ms"])] * request["runs"], "network_ms": [], "peak_memory_mb": 1.0}
    yield answer

@contextmanager
def open_nothing(options):
    from latentrt.errors import BundleError
    raise BundleError("no bundle at all", expected="one", hint="export it")
    yield

@contextmanager
def open_deadly(options):
    def answer(request):
        print("last words", flush=True)
        os._exit(9)
    yield answer

@contextmanager
def open_slow(options):
    yield lambda request: time.sleep(60)
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of openers that worker processes can import."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "fakes.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return "fakes"


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "results" / "r.json", {"command": "x"}, say=lambda line: None)


def counted(function: Callable[[], object]) -> int:
    """torch's own count; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


# ---- work


@pytest.mark.parametrize(("b", "k", "h", "w", "length"), [(1, 1, 8, 8, 77), (2, 2, 9, 13, 154)])
def test_the_count_of_a_step_is_that_of_torch(b, k, h, w, length, shapes_bundle: Path, shapes_checkpoint: Path):
    network = UNet(Checkpoint.open(shapes_checkpoint).unet()).to("meta")
    width = network.unet.config.cross_attention_dim
    with torch.device("meta"):
        inputs = torch.zeros(b * k, 4, h, w), torch.ones(b * k), torch.zeros(b * k, length, width)
    expected = counted(lambda: network(*inputs))
    assert graph_flops(shapes_bundle / "step.onnx", {"B": b, "K": k, "h": h, "w": w, "L": length}) == expected


def test_the_count_of_the_decoder_is_that_of_torch(shapes_bundle: Path, shapes_checkpoint: Path):
    vae = Checkpoint.open(shapes_checkpoint).vae().to("meta")
    expected = counted(lambda: vae.decode(torch.zeros(2, 4, 9, 13, device="meta")))
    assert graph_flops(shapes_bundle / "decoder.onnx", {"B": 2, "h": 9, "w": 13}) == expected


def test_by_that_count_stable_diffusion_1_5_needs_what_is_published():
    """0.803 TFLOP for one sample of the network at 512x512, 2.51 for decoding it."""
    with torch.device("meta"):
        unet, vae = _unet(ARCHITECTURES["sd15"]), _vae(ARCHITECTURES["sd15"])
        latent = torch.zeros(1, 4, 64, 64)
        step = counted(lambda: UNet(unet)(latent, torch.ones(1), torch.zeros(1, 77, 768)))
        decode = counted(lambda: vae.decode(latent))
    assert step / 1e12 == pytest.approx(0.803, abs=0.0005)
    assert decode / 1e12 == pytest.approx(2.51, abs=0.005)


@pytest.mark.parametrize(
    ("operator", "inputs", "output", "attributes", "flops"),
    [
        ("MatMul", [(2, 3, 4), (4, 5)], (2, 3, 5), {}, 2 * 2 * 3 * 5 * 4),
        ("Gemm", [(4, 3), (4, 5)], (3, 5), {"transA": 1}, 2 * 3 * 5 * 4),
        ("Gemm", [(3, 4), (5, 4)], (3, 5), {"transB": 1}, 2 * 3 * 5 * 4),
        ("Conv", [(1, 6, 8, 8), (4, 3, 3, 3)], (1, 4, 6, 6), {"group": 2}, 2 * 4 * 6 * 6 * 3 * 9),
        ("Attention", [(2, 4, 7, 8), (2, 4, 9, 8), (2, 4, 9, 16)], (2, 4, 7, 16), {}, 2 * 2 * 4 * 7 * 9 * (8 + 16)),
        (
            "Attention",
            [(2, 7, 32), (2, 9, 32), (2, 9, 32)],
            (2, 7, 32),
            {"q_num_heads": 4, "kv_num_heads": 4},
            2 * 2 * 4 * 7 * 9 * (8 + 8),
        ),
        ("Add", [(2, 3), (2, 3)], (2, 3), {}, 0),
    ],
)
def test_operators_are_counted_by_their_definition(operator, inputs, output, attributes, flops, tmp_path: Path):
    names = [f"x{i}" for i in range(len(inputs))]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(names, inputs, strict=True)]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, output)
    graph = helper.make_graph([helper.make_node(operator, names, ["y"], **attributes)], "g", values, [result])
    path = tmp_path / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), path)
    assert graph_flops(path, {}) == flops


def test_an_axis_without_a_length_is_refused(shapes_bundle: Path):
    with pytest.raises(KeyError, match="w"):
        graph_flops(shapes_bundle / "decoder.onnx", {"B": 1, "h": 8})


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 311.8),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("NVIDIA Something 9000", None),
    ],
)
def test_the_peak_is_that_of_the_card_and_no_other(name: str, peak: float | None):
    assert peak_tflops(name) == peak


# ---- processes


def test_a_worker_answers_whatever_libraries_print(fakes: str, tmp_path: Path):
    log, journal = tmp_path / "w.log", tmp_path / "journal"
    with worker(f"{fakes}:open_steady", {"step_ms": 5.0, "journal": str(journal)}, log=log) as process:
        process.open(timeout_s=60)
        assert len(process.ask({"runs": 2}, timeout_s=60)["samples"]) == 2
        assert len(process.ask({"runs": 1}, timeout_s=60)["samples"]) == 1
    assert log.read_text().splitlines() == ["a library's banner", "and one from C++"]


@pytest.mark.parametrize(
    ("opener", "error", "message"),
    [
        ("fakes:open_nothing", BundleError, "no bundle at all; expected one; export it"),
        ("fakes:open_deadly", BackendError, "its process ended with status 9: last words"),
        ("fakes:open_slow", BackendError, "no answer within 3 s"),
        ("fakes:not_there", BackendError, "AttributeError"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_raised_here(fakes: str, opener, error, message, tmp_path: Path):
    with pytest.raises(error, match=message):
        ask_apart(opener, {}, log=tmp_path / "w.log", timeout_s=3)


# ---- the record


def test_a_failure_ends_its_own_piece_only_and_is_on_disk_at_once(record: Record):
    with record.section("one") as row:
        row["half"] = 1
        raise EnvironmentLacks("there is no GPU", hint="get one")
    with record.section("two") as row:
        on_disk = json.loads(record.path.read_text())
        assert on_disk["sections"]["one"]["error"]["found"] == "there is no GPU"
        assert on_disk["sections"]["two"] == {"status": "running"}
    assert record.document["sections"]["one"] | {"seconds": 0} == {
        "half": 1,
        "status": "failed",
        "seconds": 0,
        "error": {"type": "EnvironmentLacks", "found": "there is no GPU", "expected": None, "hint": "get one"},
    }
    record.finish()
    document = json.loads(record.path.read_text())
    assert (document["status"], document["sections"]["two"]["status"]) == ("done", "done")
    assert list(failures(document)) == [("one", "there is no GPU; get one")]
    assert [path.name for path in record.path.parent.iterdir()] == ["r.json"]


def test_an_interruption_is_written_down_and_goes_on_up(record: Record):
    with pytest.raises(KeyboardInterrupt), record.section("one"):
        raise KeyboardInterrupt
    assert json.loads(record.path.read_text())["sections"]["one"]["status"] == "interrupted"


def test_a_spent_budget_begins_nothing_new():
    assert Deadline().left_s(7.0) == 7.0
    assert Deadline.after(1.0).left_s(600.0) == pytest.approx(60.0, abs=5.0)
    with pytest.raises(EnvironmentLacks, match=r"spent; give it more with --budget-minutes"):
        Deadline(time.monotonic() - 1).left_s(7.0)


def test_a_result_is_named_by_date_card_and_sections(tmp_path: Path):
    common = {"date": "2026-11-21T09:00:00", "card": "NVIDIA H100 80GB HBM3"}
    assert (
        result_path(tmp_path, **common, sections=("parity",), whole=True).name == "2026-11-21-gpu-h100-80gb-hbm3.json"
    )
    partial = result_path(tmp_path, **common, sections=("parity",), whole=False)
    assert partial.name == "2026-11-21-gpu-h100-80gb-hbm3-parity.json"


# ---- preparation


def test_preparation_does_what_is_missing_or_older_and_survives_failures(record: Record, tmp_path: Path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    new.touch()
    os.utime(old, (1, 1))
    tasks = [
        Task("kept", ("this",), made=new, source=old),
        Task("made again", ("this",), made=old, source=new),
        Task("broken", ("no_such_module_at_all",)),
    ]
    row: dict[str, Any] = {}
    prepare(tasks, into=row, record=record, deadline=Deadline(), logs=tmp_path / "logs")
    assert [(part["name"], part["status"]) for part in row["prepared"]] == [
        ("made again", "done"),
        ("broken", "failed"),
    ]
    assert "No module named no_such_module_at_all" in row["prepared"][1]["error"]["found"]


def test_a_bundle_is_exported_once_and_converted_from_there(tmp_path: Path):
    export, convert = bundle_tasks(Place(tmp_path, "sd15"), "sd15", tmp_path / "checkpoint", ("fp32", "fp16"))
    assert (export.made, export.source) == (tmp_path / "bundles/sd15-fp32/bundle.json", tmp_path / "checkpoint")
    assert (convert.made, convert.source) == (tmp_path / "bundles/sd15-fp16/bundle.json", export.made)


@pytest.mark.parametrize(
    ("variant", "capability", "expected"),
    [
        ("tensorrt-rtx", "8.9", "sm89"),
        ("tensorrt-rtx", "12.0", "sm120"),
        ("tensorrt-rtx", "9.0", "sm80+"),
        ("tensorrt-rtx", None, "sm80+"),
        ("tensorrt", "9.0", None),
    ],
)
def test_engines_are_built_for_the_card_if_it_is_listed(variant: str, capability: str | None, expected: str | None):
    assert architecture(variant, capability) == expected


# ---- latency


def test_candidates_take_turns_and_a_failing_one_stops_no_other(fakes: str, record: Record, tmp_path: Path):
    journal = tmp_path / "journal"
    entrants = [
        Candidate("torch eager fp16", f"{fakes}:open_steady", {"step_ms": 10.0, "journal": str(journal)}),
        Candidate("missing", f"{fakes}:open_nothing", {}),
        Candidate("deadly", f"{fakes}:open_deadly", {}),
        Candidate("ours", f"{fakes}:open_steady", {"step_ms": 4.0, "journal": str(journal)}),
    ]
    into: dict[str, Any] = {"name": "latency, batch 2"}
    logs = tmp_path / "logs"
    compete(entrants, WORKLOAD, rounds=2, into=into, record=record, deadline=Deadline(), logs=logs)
    compare(into, flops={"step": 2 * 10**12, "decode": 10**12}, peak_tflops=1000.0)
    assert journal.read_text().split("\n")[:-1] == ["10.0 1", "4.0 1", "10.0 3", "4.0 3", "4.0 3", "10.0 3"]
    torch_row, missing, deadly, ours = into["results"]
    assert [row["status"] for row in into["results"]] == ["done", "failed", "failed", "done"]
    assert missing["error"]["type"] == "BundleError"
    assert "last words" in deadly["error"]["found"]
    assert len(ours["total_ms"]["samples"]) == 6
    assert ours["step_ms"]["median"] == 4.0  # the mean of a run's calls, 2 and 6 ms
    assert ours["step_tflops"] == pytest.approx(500.0)
    assert ours["step_share_of_peak"] == pytest.approx(0.5)
    assert ours["decode_tflops"] == pytest.approx(500.0)
    assert ours["times_as_fast_as"]["torch eager fp16"] == {"step_speedup": 2.5, "total_speedup": 23.0 / 11.0}
    assert torch_row["times_as_fast_as"] == {}


class Ticks:
    """Marks on a clock that goes on by one whenever it is asked."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits = 0

    def mark(self) -> float:
        self.now += 1.0
        return self.now

    def wait(self) -> None:
        self.waits += 1

    def between(self, first: float, last: float) -> float:
        return last - first


def test_the_watch_waits_at_the_borders_of_stages_and_not_between_steps():
    ticks = Ticks()
    watch = candidates._Watch(ticks, calls=3)
    network = watch.around(lambda x: x + 1)

    def images() -> None:
        assert [network(i) for i in range(3)] == [1, 2, 3]

    for _ in range(2):
        ticks.waits = 0
        timings, network_ms = watch.time(images)
        assert timings.steps_ms == (2.0, 2.0, 1.0)  # from beginning to beginning; the last to its end
        assert network_ms == [1.0, 1.0, 1.0]
        assert ticks.waits == 4
        assert timings.total_ms >= timings.text_ms + timings.decode_ms >= 0


def test_the_reference_is_half_precision_and_not_float32(shapes_checkpoint: Path):
    case = shapes_case("euler", size=(64, 64), steps=2)
    network, images = in_half(Checkpoint.open(shapes_checkpoint), "cpu", case=case)
    assert (network.subject, images.subject) == ("network", "images")
    assert 40 < network.value < 90
    assert 30 < images.value < 90
    assert network.limit is images.limit is None


def test_the_reference_is_free_of_tf32_for_as_long_as_it_is_asked():
    before = torch.backends.cudnn.allow_tf32
    with exact_float32():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32 is before


# ---- the command


@pytest.fixture
def survey(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Takes the place of every process that a check starts; `answers` by opener."""
    variants = {"torch": {"version": "2", "lacks": None}, "onnxruntime": {"version": "1", "lacks": None}}
    variants |= {name: {"version": None, "lacks": "not installed"} for name in ("tensorrt", "tensorrt-rtx")}
    gpu = {"name": "NVIDIA L4", "memory_gb": 24.0, "compute_capability": "8.9", "peak_tflops": 121.0}
    answers: dict[str, Any] = {"open_survey": {"card": gpu, "driver": None, "variants": variants}}
    answers |= {"open_opinion": [], "open_reference": []}

    def ask(opener: str, options: Any, **_: Any) -> Any:
        answer = answers[opener.partition(":")[2]]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(check, "ask_apart", ask)
    monkeypatch.setattr(check, "prepare", lambda *_, **__: None)
    return answers


def row(value: float, *, passed: bool, limit: float | None = 1e-4) -> dict[str, Any]:
    return {
        "subject": "component step",
        "case": "c",
        "backend": "onnxruntime",
        "value": value,
        "limit": limit,
        "unit": "relative",
        "higher_is_better": False,
        "note": "",
        "passed": passed,
    }


def test_without_a_gpu_it_says_what_there_is_and_what_is_needed(survey, tmp_path: Path, capsys):
    survey["open_survey"]["card"] = None
    survey["open_survey"]["variants"]["torch"]["lacks"] = "it sees no CUDA device"
    assert main(["--work", str(tmp_path), "--results", str(tmp_path / "results")]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "no GPU" in err and "it sees no CUDA device" in err and "Needed: an NVIDIA GPU" in err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("found", "code", "words"),
    [
        ([row(1e-6, passed=True)], 0, "ok"),
        ([row(1e-6, passed=True), row(3e-4, passed=False)], 1, "FAILED"),
        ([row(0.5, passed=True, limit=None)], 1, "relative"),
        (BackendError("the driver fell over"), 1, "not done:\n  onnxruntime fp32: the driver fell over"),
    ],
    ids=["passed", "failed", "nothing judged", "an error"],
)
def test_the_exit_code_is_that_of_the_gates(survey, found, code: int, words: str, tmp_path: Path, capsys):
    survey["open_check"] = found
    arguments = ["--only", "parity", "--precision", "fp32", "--work", str(tmp_path), "--results", str(tmp_path)]
    assert main(arguments) == code
    out = capsys.readouterr().out
    assert words in out
    (path,) = tmp_path.glob("*-gpu-l4-parity.json")
    assert out.strip().endswith(str(path))


def test_what_is_judged_and_broke_off_is_no_pass(survey, tmp_path: Path, capsys):
    """Beside what passed: a backend that fell over, or a kernel that is missing."""
    common = ["--precision", "fp32", "--work", str(tmp_path), "--results", str(tmp_path)]
    survey |= {"open_check": [row(1e-6, passed=True)], "open_toy": [row(1e-6, passed=True)]}
    assert main(["--only", "toys,parity", *common]) == 0
    survey["open_opinion"] = BackendError("the driver fell over")
    assert main(["--only", "parity", *common]) == 1
    survey["open_toy"] = BackendError("Conv failed: CUDA failure 209: no kernel image is available", hint="pack again")
    assert main(["--only", "toys", *common]) == 1
    assert "kernel Conv: Conv failed: CUDA failure 209: no kernel image is available; pack" in capsys.readouterr().out


def test_graphs_for_cuda_are_built_and_compared_with_those_that_they_were_made_of(
    survey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tasks: list[Task] = []
    jobs: list[dict[str, Any]] = []
    answered = check.ask_apart

    def ask(opener: str, options: Any, **rest: Any) -> Any:
        jobs.append({"opener": opener.partition(":")[2], **options})
        return answered(opener, options, **rest)

    def compete(entrants: Any, *_: Any, into: dict[str, Any], **__: Any) -> None:
        jobs.extend(entrant.options for entrant in entrants)
        into |= {"workload": {}, "results": []}

    monkeypatch.setattr(check, "ask_apart", ask)
    monkeypatch.setattr(check, "prepare", lambda found, **_: tasks.extend(found))
    monkeypatch.setattr(check, "compete", compete)
    monkeypatch.setattr(check, "compare", lambda *_, **__: None)
    survey |= {"open_check": [row(1e-6, passed=True)], "open_full_size": [row(1e-6, passed=True)]}
    sections = "parity,latency,full-size"
    words = ["--only", sections, "--precision", "fp16", "--batch", "1", "--peers", "eager", "--backend", "onnxruntime"]
    assert main([*words, "--work", str(tmp_path), "--results", str(tmp_path)]) == 0
    built = [" ".join(task.command) for task in tasks if "build" in task.command]
    bundles = {f"{tmp_path}/bundles/{name}" for name in ("shapes-checkpoint-fp16", "sd15-fp16")}
    assert {command.split()[2] for command in built} == bundles
    assert all(command.endswith("--backend onnxruntime --device cuda") for command in built)
    for opener in ("open_check", "open_full_size", None):
        paths = [job.get("bundle", job.get("path")) for job in jobs if job.get("opener") == opener]
        name = "shapes-checkpoint" if opener == "open_check" else "sd15"
        assert paths[-2:] == [f"{tmp_path}/bundles/{name}-fp16", f"{tmp_path}/bundles/{name}-fp16-plain"]


def test_a_plain_bundle_has_the_same_files_and_no_engines(shapes_bundle: Path, tmp_path: Path):
    source = shutil.copytree(shapes_bundle, tmp_path / "b", ignore=shutil.ignore_patterns("engines"))
    rewrite_graphs(Bundle.open(source), folder=source / "engines", components=["text_encoder"])
    version = onnxruntime.__version__
    assert prepare_module.rewritten(source, version) == ["text_encoder"]
    for _ in range(2):  # the second replaces the first
        assert plain.main([str(source), "-o", str(tmp_path / "plain")]) == 0
    Bundle.open(tmp_path / "plain").verify()
    assert prepare_module.rewritten(tmp_path / "plain", version) == []
    assert (tmp_path / "plain" / "step.weights").samefile(source / "step.weights")
    plain_task = prepare_module.graph_tasks(source, tmp_path / "plain")[1]
    assert plain_task.done
    os.utime(source / MANIFEST, (time.time() + 9,) * 2)
    assert not plain_task.done
    assert plain.main([str(tmp_path), "-o", str(tmp_path / "x")]) == 2


# ---- kernels one by one


REFERENCES: dict[str, Callable[..., torch.Tensor]] = {
    "Relu": torch.relu,
    "MatMul": torch.matmul,
    "Conv": lambda x, weight, bias: torch.nn.functional.conv2d(x, weight, bias, padding=1),
    "Attention": lambda *x: (
        torch.nn.functional.scaled_dot_product_attention(
            *(each.unflatten(-1, (8, -1)).transpose(1, 2) for each in x)
        ).transpose(1, 2).flatten(2)
    ),
    "GroupNorm": lambda x, scale, shift: torch.nn.functional.silu(
        torch.nn.functional.group_norm(x.permute(0, 3, 1, 2), 32, scale, shift, toys.EPSILON)
    ).permute(0, 2, 3, 1),
    "LayerNormalization": lambda x, *affine: torch.nn.functional.layer_norm(x, x.shape[-1:], *affine, toys.EPSILON),
}  # fmt: skip


@pytest.mark.parametrize("name", toys.TOYS)
def test_what_a_toy_expects_is_what_torch_computes(name: str):
    toy, rng = toys.TOYS[name], np.random.default_rng(1)
    values = [rng.standard_normal(shape) for shape in (toy.shape, *(shape for shape, _ in toy.others))]
    expected = REFERENCES[name](*map(torch.from_numpy, values)).numpy()
    found = toy.expected(*values)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("name", [name for name, toy in toys.TOYS.items() if toy.cpu])
def test_a_toy_is_right_on_the_cpu_and_wrong_numbers_are_noticed(name: str):
    measured = toys.judge(toys.TOYS[name], "cpu")
    assert measured.passed and measured.limit is not None
    wrong = replace(toys.TOYS[name], expected=lambda *x: 1.01 * toys.TOYS[name].expected(*x))
    assert not toys.judge(wrong, "cpu").passed


def test_a_kernel_that_is_missing_is_named():
    with pytest.raises(BackendError, match=r"GroupNorm on CPUExecutionProvider failed: .*GroupNorm.*--all-kernels"):
        toys.judge(toys.TOYS["GroupNorm"], "cpu")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "speed"], "unknown: speed; expected some of prepare, toys, parity"),
        (["--backend", "openvino"], "unknown: openvino"),
        (["--size", "512"], "size '512'"),
        (["--batch", "1,0"], "'0'"),
        (["--device", "tpu"], "invalid choice"),
    ],
)
def test_wrong_use_is_told(words: list[str], message: str, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_the_probe_of_a_missing_variant_says_so(survey, tmp_path: Path, capsys):
    assert main(["--only", "rtx-probe", "--work", str(tmp_path), "--results", str(tmp_path)]) == 0
    assert re.search("rtx-probe: .*not installed", capsys.readouterr().out)


@pytest.mark.families
def test_the_probe_reports_each_stage_and_what_tensorrt_says(shapes_bundle: Path, tmp_path: Path):
    """Without a GPU it builds and then fails to load; with one it goes further. Either way it tells."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    job = {"bundle": str(shapes_bundle), "module": "tensorrt_rtx", "variant": "default"}
    found = ask_apart("benchmarks.gpu.probe:open_probe", job, log=tmp_path / "p.log", timeout_s=300)
    stages = found["stages"]
    assert list(stages)[:3] == ["build", "validity", "deserialise"]
    assert stages["build"]["worked"] and found["plan_bytes"] > 1_000_000
    if torch.cuda.is_available():
        assert found["works"] is stages.get("compare", {}).get("worked", False)
    else:
        assert not found["works"] and list(stages)[-1] == "deserialise"
        assert "CUDA" in stages["deserialise"]["says"] and found["log"]


def ask_here(opener: str, options: Any, **_: Any) -> Any:
    """As `ask_apart`, without a process that imports torch for one question."""
    with resolve_name(opener)(options) as answer, np.errstate(invalid="ignore"):  # polygraphy divides zeros
        return json.loads(json.dumps(answer({})))


@pytest.fixture(scope="module", params=[pytest.param("cpu", marks=pytest.mark.families)])
def whole(shapes_bundle: Path, shapes_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A real check on the CPU: the example checkpoint in the roles of both the judged and the measured one. What is
    timed is so in processes of its own."""
    work, results = tmp_path_factory.mktemp("gpu-check"), tmp_path_factory.mktemp("results")
    (work / "checkpoints").mkdir()
    (work / "checkpoints" / "example").symlink_to(shapes_checkpoint)
    for name in ("shapes-checkpoint-fp32", "example-fp32"):
        shutil.copytree(shapes_bundle, work / "bundles" / name, ignore=shutil.ignore_patterns("engines"))
    words = [
        *("--device", "cpu", "--only", "toys,parity,latency,full-size"),
        *("--work", str(work), "--results", str(results)),
        *("--checkpoint", str(shapes_checkpoint), "--architecture", "example", "--precision", "fp32"),
        *("--samplers", "euler", "--peers", "eager", "--size", "64x64", "--batch", "1", "--steps", "2"),
        *("--repeat", "2", "--rounds", "2", "--warmup", "1"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "ask_apart", ask_here)
        code = main(words)
    (path,) = results.glob("*.json")
    return {"code": code, "document": json.loads(path.read_text()), "path": path}


def test_a_check_on_the_cpu_ends_well(whole):
    assert whole["code"] == 0
    document = whole["document"]
    assert document["status"] == "done"
    assert list(failures(document)) == []
    assert list(document["sections"]) == ["toys", "parity", "latency", "full-size"]
    assert "graphs_for_cuda" not in document["sections"]["latency"], "on the CPU there are none"
    assert "prepared" not in document["sections"]["parity"]  # all was there


def test_its_document_says_where_it_comes_from(whole):
    document = whole["document"]
    assert document["command"].startswith("python -m benchmarks.gpu")
    provenance = document["provenance"]
    assert {"date", "cpu", "cores", "system", "versions", "git"} <= provenance.keys()
    assert {"latentrt", "python", "torch", "diffusers", "onnxruntime"} <= provenance["versions"].keys()
    assert document["survey"]["variants"]["torch"]["version"] == torch.__version__
    assert document["survey"]["card"] is None or document["survey"]["card"]["name"]
    assert document["survey"]["slimmed_provider"] is None
    digests = document["sections"]["latency"]["bundles"]
    assert set(digests) == {"shapes-checkpoint-fp32", "example-fp32"}
    assert all(len(digest) == 64 for digest in digests.values())


def test_its_kernels_are_judged_each_in_a_process(whole):
    runs = whole["document"]["sections"]["toys"]["runs"]
    assert [run["name"] for run in runs] == [f"kernel {name}" for name, toy in toys.TOYS.items() if toy.cpu]
    assert all(row["passed"] and row["limit"] is not None for run in runs for row in run["rows"])
    assert "kernel Conv: kernel Conv" in report(whole["document"])


def test_its_parity_is_judged(whole):
    runs = whole["document"]["sections"]["parity"]["runs"]
    (run,) = (each for each in runs if not each["name"].startswith("polygraphy"))
    assert all(row["passed"] for each in runs for row in each["rows"]) and all(each["rows"] for each in runs)
    subjects = {row["subject"] for row in run["rows"]}
    assert {"component step", "component decoder", "images", "batches"} <= subjects
    assert all(row["passed"] and row["limit"] is not None for row in run["rows"])
    (full,) = whole["document"]["sections"]["full-size"]["runs"]
    assert {row["case"] for row in full["rows"] if row["limit"] is not None} >= {"denoised, 64x64", "hidden, 2 prompts"}


def test_its_candidates_are_measured_alike(whole):
    (part,) = whole["document"]["sections"]["latency"]["workloads"]
    assert part["work"]["flops"]["step"] > part["work"]["flops"]["decode"] / 10 > 0
    peer, ours = part["results"]
    assert (peer["name"], ours["name"]) == ("torch eager fp32", "onnxruntime fp32")
    for result in (peer, ours):
        assert all(len(result[stage]["samples"]) == 4 for stage in ("text_ms", "step_ms", "decode_ms", "total_ms"))
        assert 0 < 2 * result["step_ms"]["median"] < result["total_ms"]["median"] * 1.5
        assert result["step_tflops"] > 0 and result["step_share_of_peak"] is None
    assert 0 < peer["network_ms"] <= peer["step_ms"]["max"]
    assert ours["network_ms"] is None
    assert ours["times_as_fast_as"]["torch eager fp32"]["step_speedup"] > 0


def test_its_report_has_every_table(whole):
    text = report(whole["document"])
    assert "onnxruntime fp32: images" in text and "onnxruntime fp32: component step" in text
    assert "64x64, batch 1, 2 steps, guidance 7.5" in text
    assert "not done" not in text


def test_a_provider_that_is_not_taken_is_noticed():
    assert card.provider_loads("CPUExecutionProvider")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert not card.provider_loads("CUDAExecutionProvider")


def test_the_driver_is_asked_in_a_way_that_may_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert card.nvidia_smi("name") is None
    fake = tmp_path / "nvidia-smi"
    fake.write_text('#!/bin/sh\necho "1024"\n')
    fake.chmod(0o755)
    assert card.used_memory_mb() == pytest.approx(1073.741824)
    fake.write_text('#!/bin/sh\necho "[N/A]"\n')
    assert card.used_memory_mb() is None


def test_a_converted_bundle_that_is_there_needs_no_float32_one(tmp_path: Path):
    place, checkpoint = Place(tmp_path, "sd15"), tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "model_index.json").touch()
    assert len(bundle_tasks(place, "sd15", checkpoint, ["fp16"])) == 2, "nothing is there"
    made = place.bundle("sd15", "fp16") / MANIFEST
    made.parent.mkdir(parents=True)
    made.touch()
    assert bundle_tasks(place, "sd15", checkpoint, ["fp16"]) == []
    assert len(bundle_tasks(place, "sd15", checkpoint, ["fp32", "fp16"])) == 2
    os.utime(checkpoint / "model_index.json", (made.stat().st_mtime + 9,) * 2)
    assert len(bundle_tasks(place, "sd15", checkpoint, ["fp16"])) == 2, "the checkpoint is newer"
