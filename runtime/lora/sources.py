"""Where a LoRA lies: in a file, or in a folder as diffusers or PEFT save it, perhaps with a configuration beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentrt.errors import RequestError

PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
"""Folders of a checkpoint, after which those of a LoRA are named that PEFT saved part by part."""

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a LoRA.

    Args:
        part: of the checkpoint, where a folder says which; None: its names do.
        config: PEFT's configuration beside it; None: there is none.
    """

    path: Path
    part: str | None
    config: Path | None


def lora_sources(path: Path) -> tuple[Source, ...]:
    """The files of a LoRA."""
    if not path.is_dir():
        return (_source(path),)
    for name in (PEFT_WEIGHTS, _DIFFUSERS_WEIGHTS):
        if (path / name).is_file():
            return (_source(path / name),)
    if parts := [path / part / PEFT_WEIGHTS for part in PARTS if (path / part / PEFT_WEIGHTS).is_file()]:
        return tuple(map(_source, parts))
    found = sorted(file.name for file in path.iterdir() if file.suffix == ".safetensors")
    if len(found) == 1:
        return (_source(path / found[0]),)
    raise RequestError(
        f"{path} is a folder with {f'{len(found)} .safetensors files' if found else 'no .safetensors file'}",
        expected=f"a file, or a folder with {PEFT_WEIGHTS} or {_DIFFUSERS_WEIGHTS}",
        hint="name the file" if found else "pickles can run code and are not read: convert them to safetensors",
    )


def lora_sha256(path: Path) -> str:
    """The sha256 of a LoRA's file; of several, or of one with a configuration beside it, that of theirs."""
    files = [file for source in lora_sources(path) for file in (source.path, source.config) if file is not None]
    try:
        return joined_sha256([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror})", expected="a LoRA") from error


def joined_sha256(digests: Sequence[str]) -> str:
    """That of one file as it is, and one of several."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _source(path: Path) -> Source:
    config = path.parent / PEFT_CONFIG
    part = path.parent.name if path.name == PEFT_WEIGHTS and path.parent.name in PARTS else None
    return Source(path, part, config if config.is_file() else None)
