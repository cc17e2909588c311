"""The benchmark of other runtimes: who takes part, in which environments, and what becomes of one that fails."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers import contenders, environments
from latentrt.bench.machine import machine_facts
from latentrt.bench.runner import BenchRuns, Candidate, Workload
from latentrt.errors import BackendError
from latentrt.output.result import Timings

PINNED = re.compile(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9_.]+")


@pytest.mark.parametrize("name", [contenders.TORCH, contenders.ONNX, contenders.GENAI])
def test_every_package_of_an_environment_is_pinned(name: str):
    lines = (environments.PINS / f"{name}.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not PINNED.fullmatch(line)] == []
    names = [line.partition("==")[0].lower().replace("_", "-") for line in pins]
    assert len(names) == len(set(names))
    assert {"torch", "diffusers", "transformers", "numpy", "tokenizers", "pillow", "safetensors", "filelock"} <= {
        *names
    }
    assert environments.TORCH in pins


def test_an_environment_is_made_again_when_its_pins_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []

    def run(*command: object) -> None:
        made.append(str(command[-1]))
        (tmp_path / "work" / "a").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(environments, "PINS", tmp_path)
    monkeypatch.setattr(environments, "_run", run)
    (tmp_path / "a.txt").write_text("one==1\n")
    python = environments.environment("a", tmp_path / "work")
    assert python == tmp_path / "work" / "a" / "bin" / "python"
    assert len(made) == 4
    assert environments.environment("a", tmp_path / "work") == python
    assert len(made) == 4
    (tmp_path / "a.txt").write_text("one==2\n")
    environments.environment("a", tmp_path / "work")
    assert len(made) == 8


def test_all_peers_take_part(tmp_path: Path):
    python = tmp_path / "python"
    found = [
        *contenders.torch_contenders(tmp_path, python, tmp_path),
        contenders.onnx_contender(tmp_path, python, tmp_path),
        *contenders.genai_contenders(tmp_path, python, tmp_path, ["fp32", "bf16"]),
    ]
    names = [each.candidate.name for each in found]
    for name in ("torch fp32", "torch bf16", "torch.compile bf16", "optimum-onnx", "OpenVINO GenAI bf16"):
        assert any(each.startswith(name) for each in names), name
    assert len({each.candidate.options["cache_dir"] for each in found}) == len(found)
    assert all(each.differs and each.candidate.interpreter == str(python) for each in found)


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict]:
    """Two candidates, of which the second fails, in three turns; what is cached is kept between them."""

    def measure_apart(candidate: Candidate, workload: Workload, **_: object) -> BenchRuns:
        if candidate.name == "bad":
            raise BackendError("bad ended without a result (status 9)")
        kept = Path(str(candidate.options["cache_dir"])) / "kept"
        load_s = 2.0 if kept.is_file() else 30.0
        kept.write_bytes(b"x" * 1000)
        run = Timings(text_ms=1.0, steps_ms=(10.0, 12.0), decode_ms=3.0, total_ms=26.0)
        return BenchRuns(samples=(run, run), warmup=(run,), load_s=load_s, peak_memory_mb=500.0)

    def contender(name: str) -> contenders.Contender:
        place = tmp_path / name
        (place / "files").mkdir(parents=True)
        (place / "files" / "weights").write_bytes(b"x" * 2_000_000)
        (place / "cache").mkdir()
        (place / "cache" / "old").write_bytes(b"x")  # of a run before
        candidate = Candidate(name, "a:b", {"cache_dir": str(place / "cache")})
        return contenders.Contender(
            candidate=candidate, environment=None, files=place / "files", differs="does it otherwise"
        )

    def run() -> dict:
        options = argparse.Namespace(
            size=(64, 64), batch=1, steps=2, guidance=7.5, threads=None, repeat=2, rounds=3, architecture="tiny-sd15"
        )
        return peers.measured([contender("good"), contender("bad")], options, tmp_path)

    monkeypatch.setattr(peers.Bundle, "open", lambda path: None)
    monkeypatch.setattr(peers, "provenance", lambda *_, **__: machine_facts(()))
    monkeypatch.setattr(peers, "measure_apart", measure_apart)
    return run


def test_loads_are_told_apart_and_a_failure_leaves_the_others(measured: Callable[[], dict]):
    document = json.loads(json.dumps(measured()))
    good, bad = document["results"]
    assert (good["load_cold_s"], good["load_cached_s"]) == (30.0, 2.0)
    assert (good["disk_mb"], good["cache_mb"], good["runs"]) == (2.0, 0.001, 6)
    assert good["step_ms"]["median"] == 11.0
    assert {"openvino", "onnxruntime"} <= good["versions"].keys()
    assert "status 9" in bad["error"]
    assert "step_ms" not in bad
    table = peers.markdown(document)
    assert "| good | 1 | 11 | 3 | 26 | 30.0 | 2.0 | 500 | 2 | 0 |" in table
    assert "| bad | failed: bad ended" in table
    assert table.count("does it otherwise") == 2
    (line,) = [line for line in table.splitlines() if line.startswith("- good")]
    assert "openvino 2" in line


def test_torch_compiled_is_timed_like_the_others(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """What is compiled is the forward pass, so that the clock's hooks stay outside; the compiler has a stand-in."""
    import torch

    from latentrt.export.bench_torch import open_diffusers

    compiled: list[str] = []

    def compile(function: Callable) -> Callable:
        compiled.append(type(function.__self__).__name__)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    options = {"path": str(tiny_checkpoint), "compute": "bf16", "compiled": "1", "cache_dir": None}
    workload = Workload(
        prompt="a", size=(64, 64), batch=1, steps=2, guidance=1.0, threads=1, repeat=1, warmup=0, duration_s=0.0
    )
    with open_diffusers(options, workload) as run:
        timings = run()
    assert len(timings.steps_ms) == 2
    assert 0 < timings.text_ms + sum(timings.steps_ms) + timings.decode_ms <= timings.total_ms * 1.001
    assert sorted(compiled) == ["AutoencoderKL", "CLIPTextModel", "UNet2DConditionModel"]
    with open_diffusers(replace_compiled(options), workload):
        pass
    assert len(compiled) == 3


def replace_compiled(options: dict) -> dict:
    return {**options, "compiled": None}
