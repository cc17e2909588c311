"""Pickles of trainers: tensors are read, all else is left out by name, and nothing of a file is ever run."""

import argparse
import collections
import datetime
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.single_file.weights import Weights
from latentrt.export.messages import first_line


@pytest.fixture
def trainer() -> Iterator[types.ModuleType]:
    """A package that is there when the file is written and not when it is read."""
    module = types.ModuleType("pytorch_lightning_callbacks")

    class ModelCheckpoint:
        """With attributes, and called with arguments."""

        def __init__(self, monitor: str = "loss") -> None:
            self.monitor = monitor

        def __reduce__(self) -> Any:
            return ModelCheckpoint, (self.monitor,), {"best": torch.ones(1), "when": datetime.date(2026, 1, 1)}

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = module.__name__, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


STATE = {
    "single": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(3).half(),
    "brain": torch.ones(3).bfloat16(),
    "whole": torch.arange(4),
    "flag": torch.tensor([True, False]),
    "view": torch.arange(12.0).reshape(3, 4).t()[1:],
    "parameter": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.compatibility(
    kind="checkpoint",
    what=".ckpt of Lightning with callbacks, NumPy scalars and objects of other packages",
    recognised="--allow-pickle",
    outcome="works",
)
@pytest.mark.parametrize("new", [True, False])
def test_tensors_are_read_beside_anything_else(trainer, new: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    held = {
        "state_dict": collections.OrderedDict(STATE),
        "callbacks": {trainer.ModelCheckpoint: {"best_model_score": np.float64(0.5)}, "own": trainer.ModelCheckpoint()},
        "global_step": np.int64(7),
        "epoch": 3,
        "hyper_parameters": argparse.Namespace(lr=1e-4, path=Path("x"), many=collections.defaultdict(list, a=[1])),
        "loss": np.ones(3),
    }
    torch.save(held, tmp_path / "x.ckpt", _use_new_zipfile_serialization=new)
    del sys.modules[trainer.__name__]
    weights = Weights.open(tmp_path / "x.ckpt", allow_pickle=True)
    read = weights.read(STATE)
    assert weights.shapes == {key: tuple(value.shape) for key, value in STATE.items()}
    assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in STATE.items())
    assert weights.notes["epoch"] == "3"
    assert "pytorch_lightning_callbacks.ModelCheckpoint" in caplog.text
    assert trainer.__name__ not in sys.modules


class Runs:
    """What asks for a call when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.compatibility(
    kind="checkpoint",
    what=".ckpt that asks for a command to be run",
    recognised="the names in the pickle",
    outcome="refused",
)
@pytest.mark.parametrize("kind", ["new", "former", "bare pickle"])
@pytest.mark.parametrize("place", ["callbacks", "state_dict"])
def test_a_command_is_never_run(kind: str, place: str, tmp_path: Path):
    """Through every way to one that is known; also as a class that is only named."""
    mark = tmp_path / "was-run"
    attacks = (
        (os.system, f"touch {mark}"),
        (subprocess.call, ["touch", str(mark)]),
        (eval, f"open({str(mark)!r}, 'w')"),
        (exec, f"open({str(mark)!r}, 'w')"),
        (open, str(mark), "w"),
        (getattr, os, "system"),
    )
    for number, (function, *arguments) in enumerate(attacks):
        if function is getattr:
            arguments = [Runs(__import__, "os"), "system"]
        held = {"state_dict": dict(STATE), "callbacks": {}} | {place: {"x": Runs(function, *arguments)}}
        path = tmp_path / f"{number}.ckpt"
        if kind == "bare pickle":
            path.write_bytes(pickle.dumps(held, protocol=2 + number % 3))
        else:
            torch.save(held, path, _use_new_zipfile_serialization=kind == "new")
        with pytest.raises(CheckpointError, match=r"to be run|cannot be read") as caught:
            Weights.open(path, allow_pickle=True)
        assert "\x1b" not in str(caught.value)
        assert not mark.exists()


def test_functions_of_other_packages_are_not_called(tmp_path: Path):
    """One that is no command by its name is left out all the same."""
    mark = tmp_path / "was-run"
    torch.save({"state_dict": STATE, "x": Runs(np.save, str(mark), np.ones(1))}, tmp_path / "x.ckpt")
    assert Weights.open(tmp_path / "x.ckpt", allow_pickle=True).shapes.keys() == STATE.keys()
    assert not list(tmp_path.glob("was-run*"))


def test_a_pickle_cannot_change_what_it_is_given(tmp_path: Path):
    """Setting attributes of the functions and classes that rebuild tensors reaches none that others use."""
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    attack = b"\x80\x02" + rebuild + b"N}U\x05helloK\x01s\x86b."
    (tmp_path / "x.ckpt").write_bytes(attack)
    with pytest.raises(CheckpointError):
        Weights.open(tmp_path / "x.ckpt", allow_pickle=True)
    assert not hasattr(torch._utils._rebuild_tensor_v2, "hello")


def test_programs_of_torchscript_are_refused(tmp_path: Path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        Weights.open(tmp_path / "x.pt", allow_pickle=True)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04broken", b"\x80\x02}q\x00.", b"text", b"\x80\x05N."])
def test_what_is_no_pickle_of_tensors_is_refused(data: bytes, tmp_path: Path):
    (tmp_path / "x.ckpt").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        Weights.open(tmp_path / "x.ckpt", allow_pickle=True)
    assert caught.value.expected is not None


def test_words_of_a_library_lose_their_escape_codes():
    assert first_line(ValueError("\x1b[1mbold\x1b[0m words\x00\nmore")) == "bold words"
