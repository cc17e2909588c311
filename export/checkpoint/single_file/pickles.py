"""Tensors of a pickle, and nothing else of it: what is no tensor and no plain value is left out, and never run.

A pickle names what shall be called to rebuild it. Of these names only those that rebuild tensors and plain containers
are looked up (`_SAFE`); for every other one an empty stand-in takes its place, which accepts whatever it is called
with. Programs of training leave such names in their files: callbacks, settings, numbers of NumPy.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import torch

from latentrt.errors import CheckpointError
from latentrt.export.messages import first_line

_TENSORS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")
_SAFE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    **{("torch._utils", name): getattr(torch._utils, name) for name in _TENSORS},
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}
_COMMANDS = frozenset(
    {
        "os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "runpy", "importlib", "ctypes", "pty", "code",
        "webbrowser", "pip", "commands", "multiprocessing", "asyncio", "pdb", "bdb", "timeit", "urllib", "http",
    }
)  # fmt: skip
_BUILTINS = frozenset({"eval", "exec", "compile", "open", "getattr", "setattr", "__import__", "input", "breakpoint"})
_OF_BUILTINS = ("builtins", "io", "_io")


class _StandIn:
    """Takes the place of what is not looked up. It accepts every call and every state, and keeps none."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> "_StandIn":
        return self

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """As a list has it."""

    def extend(self, _: Any) -> None:
        """As a list has it."""

    def add(self, _: Any) -> None:
        """As a set has it."""

    def __hash__(self) -> int:
        return id(self)


def read_pickle(path: Path) -> tuple[Any, list[str]]:
    """What a pickle of torch holds, on the CPU.

    Returns:
        Its object, with stand-ins for what was left out, and the names of that.

    Raises:
        CheckpointError: it is damaged, no pickle, or asks for a command to be run.
    """
    left_out: set[str] = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in _SAFE:
                safe = _SAFE[module, name]
                # A function of its own each time: a pickle may change what it is given.
                return partial(safe) if isinstance(safe, FunctionType) else safe
            module = module.replace("__builtin__", "builtins")  # its name in the former protocols
            if module.split(".")[0] in _COMMANDS or (module in _OF_BUILTINS and name in _BUILTINS):
                raise CheckpointError(
                    f"{path} asks for {module}.{name} to be run, which no weights need; nothing of it was run",
                    expected="a state dict",
                    hint="do not use this file, and be careful with where it is from",
                )
            left_out.add(f"{module}.{name}")
            return _StandIn

    def load(file: Any, **settings: Any) -> Any:
        return Unpickler(file, **settings).load()

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise CheckpointError(f"{path} is a program of TorchScript", expected="a state dict")
    module = SimpleNamespace(
        Unpickler=Unpickler,
        load=load,
        loads=lambda data, **settings: load(io.BytesIO(data), **settings),
        UnpicklingError=pickle.UnpicklingError,
        __name__="pickle",
    )
    try:
        held = torch.load(
            path, map_location="cpu", pickle_module=module, weights_only=False, mmap=zipfile.is_zipfile(path)
        )
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged pickle makes of its own machine
        names = f"; it also names {', '.join(sorted(left_out))}" if left_out else ""
        raise CheckpointError(
            f"{path} cannot be read as tensors and plain values ({first_line(error)}){names}",
            expected="a state dict",
            hint="the file is damaged, or holds no plain tensors: convert it to .safetensors where you trust it",
        ) from error
    return held, sorted(left_out)
