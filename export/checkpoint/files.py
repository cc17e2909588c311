"""The files of a checkpoint: whole, of a kind that is read, and loaded as a module of finite weights."""

import json
import re
import struct
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from latentrt.errors import CheckpointError
from latentrt.export.messages import first_line
from latentrt.files.lfs import HINT as LFS_HINT
from latentrt.files.lfs import POINTER, is_pointer_file

_SHARD = re.compile(r"(?P<before>.+-)\d{5}(?P<of>-of-(?P<count>\d{5})\.\w+)")
_VARIANT = re.compile(r"[^.]+\.(?P<variant>\w+)(-\d{5}-of-\d{5})?\.\w+")


def read_json(path: Path, *, expected: str) -> dict[str, Any]:
    """A JSON object; a CheckpointError where it is missing or malformed."""
    if not path.is_file():
        raise CheckpointError(f"no file {path}", expected=expected, hint="check the path")
    refuse_pointer(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error})", expected=expected) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}", expected="a JSON object")
    return value


def refuse_pointer(path: Path) -> None:
    """Raises CheckpointError for a file that is a Git LFS pointer."""
    if is_pointer_file(path):
        raise CheckpointError(f"{path} is {POINTER}", expected="the file that it points to", hint=LFS_HINT)


def check_safetensors(path: Path) -> None:
    """Raises unless a file is as long as its header promises: 8 bytes of length, JSON, data."""
    refuse_pointer(path)
    size = path.stat().st_size
    hint = "the file is incomplete or damaged: copy or download it again"
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if length > size - 8:
            raise CheckpointError(f"{path} ends within its header ({size} bytes)", hint=hint)
        try:
            header = json.loads(file.read(length))
            ends = [row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} has no valid safetensors header", hint=hint) from error
    if (promised := 8 + length + max(ends, default=0)) != size:
        raise CheckpointError(f"{path} has {size} bytes", expected=f"{promised} as its header says", hint=hint)


def check_allowed(files: list[Path], *, allow_pickle: bool) -> None:
    """Raises CheckpointError for pickles, unless they are allowed."""
    if files[0].suffix == ".bin" and not allow_pickle:
        raise CheckpointError(
            f"the weights in {files[0].parent} are a pickle ({files[0].name}), which can run code of whoever made it",
            expected="*.safetensors",
            hint="--allow-pickle reads it all the same, tensors and plain values only",
        )


def check_shards(files: list[Path]) -> None:
    """Every shard of `model-00001-of-00002.safetensors` must be there."""
    names = {file.name for file in files}
    for match in filter(None, map(_SHARD.fullmatch, sorted(names))):
        for number in range(1, int(match["count"]) + 1):
            if (name := f"{match['before']}{number:05d}{match['of']}") not in names:
                raise CheckpointError(
                    f"{files[0].parent} lacks {name}",
                    expected=f"all {int(match['count'])} shards",
                    hint="the checkpoint is incomplete: copy or download it again",
                )


def variant_of(file: Path) -> str | None:
    """`fp16` of `model.fp16.safetensors` or `model.fp16-00001-of-00002.safetensors`."""
    match = _VARIANT.fullmatch(file.name)
    return match["variant"] if match else None


def load_module(kind: type[nn.Module], folder: Path, *, weights: Path, variant: str | None) -> nn.Module:
    """A module of diffusers or transformers from a folder, in float32; all of its weights are there, and finite."""
    try:
        module, report = cast(Any, kind).from_pretrained(
            folder,
            dtype=torch.float32,
            variant=variant,
            use_safetensors=weights.suffix == ".safetensors",
            output_loading_info=True,
        )
    except Exception as error:
        raise CheckpointError(
            f"{folder} cannot be loaded as {kind.__name__} ({first_line(error)})",
            expected="weights that fit config.json",
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights, such as {missing[0]}",
            expected=f"all weights of a {kind.__name__} as config.json describes it",
        )
    _check_finite(module, folder.name)
    return cast(nn.Module, module.eval().requires_grad_(False))


def _check_finite(module: nn.Module, part: str) -> None:
    for name, weight in module.named_parameters():
        if not torch.isfinite(weight).all():
            bad = int((~torch.isfinite(weight)).sum())
            raise CheckpointError(
                f"weight {name} of {part} holds {bad} values that are NaN or infinite",
                expected="finite weights",
                hint="the checkpoint is broken: training diverged or the file is damaged",
            )
