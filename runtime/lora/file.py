"""A LoRA file as layers, in any of the layouts in common use.

- kohya: `lora_unet_down_blocks_0_..._to_q` with `.lora_down.weight`, `.lora_up.weight`, `.lora_mid.weight`, `.alpha`,
  `.dora_scale`
- PEFT: `unet.mid_block...to_q`: `.lora_A.weight`, `.lora_B.weight`, `.lora_magnitude_vector`; alphas in its metadata
- diffusers: `unet.down_blocks.0...to_q.lora.down.weight`; of older versions `...attn1.processor.to_q_lora.down.weight`
  and `text_encoder...q_proj.lora_linear_layer.down.weight`
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from latentrt.errors import RequestError
from latentrt.tensor_file import TensorFile, read_tensor_file
from latentrt.values import FilePath, Flag, Listed, Number, settle, shown
from latentrt.weights import FLOATS, Weight

_ADAPTER = r"(?:\.default(?:_\d+)?)?"  # PEFT writes the adapter's name where it was not told to leave it out
_LAYOUTS = tuple(
    (re.compile(rf"(.+?){suffix}"), role)
    for suffix, role in (
        (r"\.lora_down\.weight", "down"),
        (r"\.lora_up\.weight", "up"),
        (r"\.lora_mid\.weight", "mid"),
        (r"\.alpha", "alpha"),
        (r"\.dora_scale", "magnitude"),
        (rf"\.lora_A{_ADAPTER}\.weight", "down"),
        (rf"\.lora_B{_ADAPTER}\.weight", "up"),
        (rf"\.lora_magnitude_vector{_ADAPTER}(?:\.weight)?", "magnitude"),
        (r"(?:\.lora|_lora|\.lora_linear_layer)\.down\.weight", "down"),
        (r"(?:\.lora|_lora|\.lora_linear_layer)\.up\.weight", "up"),
    )
)
_PEFT_METADATA = "lora_adapter_metadata"
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file and how strongly it is applied.

    Args:
        path: a .safetensors file.
        scale: 1 as it was trained; 0 is off, negative does the opposite.
        strict: refuse the file if some of its layers belong to no weight of the bundle; False applies the others and
            logs a warning that lists these.
    """

    path: str | PathLike[str]
    scale: float = 1.0
    strict: bool = True

    def __post_init__(self) -> None:
        settle(self, {"path": FilePath()})
        settle(self, {"scale": Number(-1000, 1000), "strict": Flag()}, of=f" of {self.path}")

    def __str__(self) -> str:
        return f"{Path(self.path).stem}:{self.scale:g}"


LoraLike: TypeAlias = Lora | str | PathLike[str] | tuple[str | PathLike[str], float]


def as_loras(given: Sequence[LoraLike]) -> tuple[Lora, ...]:
    """Paths, (path, scale) and `Lora`s, as the latter."""
    if isinstance(given, str | PathLike):
        raise RequestError(f"lora={str(given)!r}", expected="a list", hint=f"write lora=[{str(given)!r}]")
    return Listed(_LoraLike(), "LoRAs", most=1000).read("lora", given)


@dataclass(frozen=True, slots=True)
class _LoraLike:
    """A `Lora`, or what one is made of."""

    def read(self, name: str, value: Any) -> Lora:
        if isinstance(value, Lora):
            return value
        if isinstance(value, str | PathLike):
            return Lora(value)
        if isinstance(value, tuple | list) and len(value) == 2:
            return Lora(*value)
        raise RequestError(f"{name} is {shown(value)}", expected="a path, (path, scale) or a Lora")


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """The tensors of one layer. The difference that they make is `strength` * up @ down (latentrt.lora.delta).

    Args:
        name: as the file writes it, such as `lora_unet_mid_block_attentions_0_proj_in`.
        down: [r, in, ...].
        up: [out, r, ...].
        mid: [r, r, ...], the kernel between the two; None without.
        magnitude: of each output, or input, channel of the sum (DoRA); None without.
        strength: alpha / r; 1 where the file has no alpha.
    """

    name: str
    down: Weight
    up: Weight
    mid: Weight | None
    magnitude: Weight | None
    strength: float


@dataclass(frozen=True, slots=True, eq=False)
class LoraFile:
    """A file's layers by name, and the sha256 of its bytes."""

    path: Path
    layers: Mapping[str, Layer]
    sha256: str


def read_lora(path: Path) -> LoraFile:
    """Reads and checks a file.

    Raises:
        RequestError: unreadable, no LoRA, of an unsupported kind, incomplete, or with values that are not finite.
    """
    file = read_tensor_file(path, what="a LoRA")
    parts, unknown = _grouped(file.tensors)
    if unknown:
        raise RequestError(
            f"{path} holds {len(unknown)} tensors that no supported kind of LoRA has: {shorten(unknown)}",
            expected="LoRA, LoCon or DoRA in the layouts of kohya, PEFT or diffusers",
            hint="LoHa, LoKr, full differences and trained embeddings are not supported",
        )
    if not parts:
        raise RequestError(f"{path} holds no tensors", expected="a LoRA")
    alphas = _Alphas(file)
    layers = {name: _layer(path, name, tensors, alphas) for name, tensors in parts.items()}
    return LoraFile(path, layers, file.sha256)


def shorten(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _grouped(tensors: Mapping[str, Weight]) -> tuple[dict[str, dict[str, Weight]], list[str]]:
    """Tensors by layer and role, and the names that are of no layout."""
    parts: dict[str, dict[str, Weight]] = {}
    unknown = []
    for name, tensor in tensors.items():
        matches = ((pattern.fullmatch(name), role) for pattern, role in _LAYOUTS)
        match, role = next(((match, role) for match, role in matches if match is not None), (None, ""))
        if match is None:
            unknown.append(name)
        else:
            parts.setdefault(match[1], {})[role] = _flat(tensor) if "magnitude_vector" in name else tensor
    return parts, unknown


def _flat(tensor: Weight) -> Weight:
    """PEFT's magnitudes are those of the output channels, in the shape [1, out, 1, 1] for convolutions."""
    return Weight(tensor.dtype, tensor.values.reshape(-1))


def _layer(path: Path, name: str, tensors: Mapping[str, Weight], alphas: _Alphas) -> Layer:
    def refuse(found: str, expected: str) -> RequestError:
        return RequestError(f"layer {name} of {path} {found}", expected=expected, hint="the file is damaged")

    if missing := {"down", "up"} - tensors.keys():
        raise refuse(f"has no {' and no '.join(sorted(missing))} matrix", "both")
    for role, tensor in tensors.items():
        if tensor.dtype not in FLOATS or not np.isfinite(tensor.float32()).all():
            raise refuse(f"has values in its {role} tensor that are not finite numbers", "finite numbers")
    down, up, mid = tensors["down"], tensors["up"], tensors.get("mid")
    rank = down.shape[0] if down.values.ndim in (2, 4) else 0
    inner = (rank, rank) if mid is None else mid.shape[:2]
    if rank == 0 or up.values.ndim not in (2, 4) or (up.shape[1], rank) != inner:
        shapes = " and ".join(str(list(tensor.shape)) for tensor in (down, mid, up) if tensor is not None)
        raise refuse(f"has matrices of shapes {shapes}", "one rank, [r, in] and [out, r]")
    alpha = tensors.get("alpha")
    if alpha is not None and alpha.values.size != 1:
        raise refuse(f"has an alpha of shape {list(alpha.shape)}", "one number")
    strength = alphas.strength(name, rank) if alpha is None else float(alpha.float32().reshape(())) / rank
    return Layer(name, down, up, mid, tensors.get("magnitude"), strength)


class _Alphas:
    """Where a file's tensors do not say alpha, its metadata may (PEFT's configuration, as diffusers saves it)."""

    def __init__(self, file: TensorFile) -> None:
        try:
            config = json.loads(file.metadata.get(_PEFT_METADATA, "{}"))
        except ValueError:
            config = {}
        self._config: Mapping[str, Any] = config if isinstance(config, dict) else {}

    def strength(self, name: str, rank: int) -> float:
        part, _, layer = name.partition(".")
        patterns = self._config.get(f"{part}.alpha_pattern") or {}
        matching = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer))
        alpha = next(matching, self._config.get(f"{part}.lora_alpha"))
        if alpha is None:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if self._config.get(f"{part}.use_rslora") else rank)
