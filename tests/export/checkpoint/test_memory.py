"""Memory is asked for before anything is written, from the headers of the weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentrt.cli import main
from latentrt.errors import EnvironmentLacks
from latentrt.export.checkpoint import memory
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.checkpoint.memory import BASE_BYTES, FACTOR, check_memory, count_parameters, needed_bytes
from latentrt.export.synthetic.checkpoints import make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(make_checkpoint("tiny-sd3", tmp_path_factory.mktemp("sd3")))


def test_parameters_are_counted_whatever_their_type(tmp_path: Path):
    tensors = {"a": torch.zeros(3, 5, dtype=torch.float16), "b": torch.zeros(7), "c": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "some.safetensors")
    torch.save(tensors, tmp_path / "some.bin")
    for suffix in ("safetensors", "bin"):
        assert count_parameters(tmp_path / f"some.{suffix}") == 15 + 7 + 1
    both = [tmp_path / "some.safetensors"] * 2
    assert needed_bytes(both) == BASE_BYTES + FACTOR * 4 * 46


def test_what_is_too_large_and_optional_can_be_left_out(checkpoint: Checkpoint, monkeypatch):
    t5, transformer = (needed_bytes(checkpoint.weight_files(part)) for part in ("text_encoder_3", "transformer"))
    monkeypatch.setattr(memory, "available_memory", lambda: t5 - 1)
    with pytest.raises(EnvironmentLacks, match=r"text_encoder_3 about 0\.5 GB.*--without text_encoder_3"):
        check_memory(checkpoint, ["text_encoder_3"], optional=["text_encoder_3"])
    with pytest.raises(EnvironmentLacks, match=r"text_encoder_3 about 0\.5 GB.*more memory"):
        check_memory(checkpoint, ["text_encoder_3"], optional=[])
    for free in (t5, transformer, None):
        monkeypatch.setattr(memory, "available_memory", lambda free=free: free)
        check_memory(checkpoint, ["text_encoder_3"] if free == t5 else ["transformer"], optional=[])


@pytest.mark.families
@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_freed_memory_goes_back_to_the_system():
    """A process of its own: cycles that nobody collects, and blocks between others that are in use."""
    program = """
import gc
from latentrt.export.checkpoint.memory import give_back
def held():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon:")) // 1000
gc.disable()
bytearray(30_000_000)  # once freed, blocks of this size are the heap's
blocks = [bytearray(b"x") * 1_000_000 for _ in range(200)]
blocks = blocks[-1:]
cycle = [b"x" * 200_000_000]
cycle.append(cycle)
del cycle
before = held()
give_back()
print(before, held())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before - after > 350  # MB


def test_the_command_refuses_before_it_writes(checkpoint: Checkpoint, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "available_memory", lambda: BASE_BYTES)
    assert main(["export", str(checkpoint.root), "-o", str(tmp_path / "bundle")]) == 3
    assert "0.5 GB of memory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
