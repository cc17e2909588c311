"""A file of named tensors: names, shapes and types are known at once, values are read when they are asked for."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import safe_open

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.files import check_safetensors, refuse_pointer
from latentrt.export.checkpoint.single_file.pickles import read_pickle

log = logging.getLogger(__name__)

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Weights:
    """What a file holds.

    Args:
        shapes, dtypes: of each tensor, by its key.
        notes: the file's metadata and single values, as text.
        read: the tensors of these keys, as they are stored.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    notes: Mapping[str, str]
    read: Callable[[Iterable[str]], Tensors]

    @classmethod
    def open(cls, path: Path, *, allow_pickle: bool = False) -> Self:
        """Reads the table of contents.

        Args:
            path: `.safetensors`, or one of `PICKLES`.

        Raises:
            CheckpointError: missing, damaged, of another kind, or a pickle that is not allowed.
        """
        if not path.is_file():
            raise CheckpointError(f"no file {path}", expected="a file of weights", hint="check the path")
        refuse_pointer(path)
        if path.suffix == ".safetensors":
            return cls._from_safetensors(path)
        if path.suffix not in PICKLES:
            raise CheckpointError(f"{path} is no file of weights", expected=".safetensors, or " + " ".join(PICKLES))
        if not allow_pickle:
            raise CheckpointError(
                f"{path} is a pickle, which can run code of whoever made it",
                expected=".safetensors",
                hint="--allow-pickle reads it all the same, tensors and plain values only",
            )
        return cls._from_pickle(path)

    @classmethod
    def _from_safetensors(cls, path: Path) -> Self:
        check_safetensors(path)

        def read(keys: Iterable[str]) -> Tensors:
            with safe_open(path, framework="pt") as file:
                return {key: file.get_tensor(key) for key in keys}

        with safe_open(path, framework="pt") as file:
            notes = file.metadata()
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            shapes = {key: tuple(entry.get_shape()) for key, entry in slices.items()}
            dtypes = {key: _dtype(entry.get_dtype(), path) for key, entry in slices.items()}
        return cls(path, shapes, dtypes, {} if notes is None else notes, read)

    @classmethod
    def _from_pickle(cls, path: Path) -> Self:
        held, left_out = read_pickle(path)
        if left_out:
            log.warning("%s: left out, and not run: %s", path, ", ".join(left_out))
        values = held.get("state_dict", held) if isinstance(held, dict) else {}
        values = values if isinstance(values, dict) else {}
        tensors = {str(key): value for key, value in values.items() if isinstance(value, torch.Tensor)}
        if not tensors:
            raise CheckpointError(f"{path} holds no named tensors", expected="a state dict")
        return cls(
            path,
            {key: tuple(tensor.shape) for key, tensor in tensors.items()},
            {key: tensor.dtype for key, tensor in tensors.items()},
            {str(key): str(value) for key, value in held.items() if isinstance(value, str | int | float)},
            lambda keys: {key: tensors[key] for key in keys},
        )


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _dtype(name: str, path: Path) -> torch.dtype:
    if name not in _DTYPES:
        raise CheckpointError(f"{path} holds weights of type {name}", expected="one of " + ", ".join(_DTYPES))
    return _DTYPES[name]
