"""A LoRA file as layers, in any of the layouts in common use.

- kohya: `lora_unet_down_blocks_0_..._to_q` with `.lora_down.weight`, `.lora_up.weight`, `.lora_mid.weight`, `.alpha`,
  `.dora_scale`
- PEFT: `unet.mid_block...to_q`: `.lora_A.weight`, `.lora_B.weight`, `.lora_magnitude_vector`; alphas in its metadata,
  or, where names begin with `base_model.model.`, in `adapter_config.json` beside it
- diffusers: `unet.down_blocks.0...to_q.lora.down.weight`; of older versions `...attn1.processor.to_q_lora.down.weight`
  and `text_encoder...q_proj.lora_linear_layer.down.weight`
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from latentrt.errors import RequestError
from latentrt.lora.original_names import WHOLE, Rows
from latentrt.lora.sources import joined_sha256, lora_sources
from latentrt.lora.strengths import PEFT_WRAPPER, Strengths, read_strengths
from latentrt.values import FilePath, Flag, Listed, Number, settle, shown
from latentrt.weights.dtypes import FLOATS, NUMBERS, Weight
from latentrt.weights.safetensors_file import TensorFile, read_tensor_file

SCALE = Number(-1000, 1000)
"""What a LoRA may be multiplied with."""

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
_UNSUPPORTED = (  # ends of names, and whose they are
    (re.compile(r".*\.hada_(?:w[12]_[ab]|t[12])"), "LoHa"),
    (re.compile(r".*\.lokr_(?:w[12](?:_[ab])?|t2)"), "LoKr"),
    (re.compile(r".*\.(?:oft_blocks|oft_diag|oft_[rR](?:\..*)?|oft_S)"), "OFT"),
    (re.compile(r".*\.(?:boft_.*|vera_.*|ia3_.*|on_input)"), "another kind than LoRA"),
    (re.compile(r".*\.[ab][12]\.weight"), "GLoRA"),
    (re.compile(r".*\.(?:diff|diff_b|w_norm|b_norm)"), "whole differences of weights, norms or biases"),
    (re.compile(r".*\.(?:lora_[AB](?:\.\w+)?\.bias|lora_(?:up|down)\.bias|reshape_weight|scalar)"), "biases"),
    (re.compile(r".*lora_embedding_[AB].*"), "a LoRA of token embeddings"),
    (re.compile(r"bundle_emb\..*|emb_params|clip_[lg]|.*\.string_to_param\..*"), "trained embeddings"),
    (re.compile(r".*\.(?:modules_to_save|base_layer)\..*"), "whole layers"),
)
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file and how strongly it is applied.

    Args:
        path: a .safetensors file, or a folder as diffusers or PEFT save it.
        scale: 1 as it was trained; 0 is off, negative does the opposite.
        strict: refuse the file if some of its layers belong to no weight of the bundle, or if nothing says its alphas
            though they should be said; False applies the others, at a strength of 1, and logs a warning.
    """

    path: str | PathLike[str]
    scale: float = 1.0
    strict: bool = True

    def __post_init__(self) -> None:
        settle(self, {"path": FilePath()})
        settle(self, {"scale": SCALE, "strict": Flag()}, of=f" of {self.path}")

    def __str__(self) -> str:
        return f"{Path(self.path).stem}:{self.scale:g}"


LoraLike: TypeAlias = Lora | str | PathLike[str] | tuple[str | PathLike[str], float]


def as_loras(given: Sequence[LoraLike]) -> tuple[Lora, ...]:
    """Paths, (path, scale) and `Lora`s, as the latter."""
    if isinstance(given, str | PathLike):
        raise RequestError(f"lora={shown(given)}", expected="a list", hint=f"write lora=[{shown(given)}]")
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

    def taking(self, rows: Rows) -> Layer:
        """The layer of a weight that has these rows of this layer's; both are cut into equal blocks."""
        if rows == WHOLE:
            return self
        size = self.up.shape[0] // rows.count
        taken = np.concatenate([np.arange(block * size, (block + 1) * size) for block in rows.order])
        magnitude = self.magnitude
        if magnitude is not None and magnitude.shape[:1] == self.up.shape[:1]:
            magnitude = Weight(magnitude.dtype, magnitude.values[taken])
        return replace(self, up=Weight(self.up.dtype, self.up.values[taken]), magnitude=magnitude)


@dataclass(frozen=True, slots=True, eq=False)
class LoraFile:
    """A LoRA's layers by name, and the sha256 of its bytes (of several files, or with a configuration: of theirs)."""

    path: Path
    layers: Mapping[str, Layer]
    sha256: str


def read_lora(path: Path, *, strict: bool = True) -> LoraFile:
    """Reads and checks a file or a folder.

    Raises:
        RequestError: unreadable, no LoRA, of an unsupported kind, incomplete, with values that are not finite, or one
            of PEFT whose configuration is missing or says what is not supported.
    """
    layers: dict[str, Layer] = {}
    digests = []
    for source in lora_sources(path):
        file = read_tensor_file(source.path, what="a LoRA")
        parts = _grouped(file)
        strengths = read_strengths(file, source, strict=strict)
        digests += [file.sha256, *([] if strengths.sha256 is None else [strengths.sha256])]
        for name, tensors in parts.items():
            layer = _layer(source.path, name, tensors, strengths)
            whole = name if source.part is None else f"{source.part}.{name.removeprefix(PEFT_WRAPPER)}"
            layers[whole] = replace(layer, name=whole)
    return LoraFile(path, layers, joined_sha256(digests))


def shorten(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _grouped(file: TensorFile) -> dict[str, dict[str, Weight]]:
    """The file's tensors by layer and role."""
    parts: dict[str, dict[str, Weight]] = {}
    unknown = []
    for name, tensor in file.tensors.items():
        matches = ((pattern.fullmatch(name), role) for pattern, role in _LAYOUTS)
        match, role = next(((match, role) for match, role in matches if match is not None), (None, ""))
        if match is None:
            unknown.append(name)
            continue
        tensors = parts.setdefault(match[1], {})
        if role in tensors:
            raise RequestError(f"{file.path} has two {role} tensors for {match[1]}", expected="one")
        # PEFT's magnitudes are those of the output channels, in the shape [1, out, 1, 1] for convolutions.
        flat = "magnitude_vector" in name
        tensors[role] = Weight(tensor.dtype, tensor.values.reshape(-1)) if flat else tensor
    if unknown:
        kinds = [kind for pattern, kind in _UNSUPPORTED if any(map(pattern.fullmatch, unknown))]
        raise RequestError(
            f"{file.path} holds {len(unknown)} tensors that no supported kind of LoRA has: {shorten(unknown)}",
            expected="LoRA, LoCon or DoRA in the layouts of kohya, PEFT or diffusers",
            hint=f"{', '.join(kinds)}: not supported" if kinds else "LoHa, LoKr and others are not supported",
        )
    if not parts:
        raise RequestError(f"{file.path} holds no tensors", expected="a LoRA")
    return parts


def _layer(path: Path, name: str, tensors: Mapping[str, Weight], strengths: Strengths) -> Layer:
    def refuse(found: str, expected: str) -> RequestError:
        return RequestError(f"layer {name} of {path} {found}", expected=expected, hint="the file is damaged")

    if missing := {"down", "up"} - tensors.keys():
        raise refuse(f"has no {' and no '.join(sorted(missing))} matrix", "both")
    for role, tensor in tensors.items():
        if role != "alpha" and tensor.dtype not in FLOATS:
            raise refuse(f"has a {role} tensor of {tensor.dtype}", "floating-point numbers")
        if tensor.dtype not in NUMBERS or not np.isfinite(tensor.float32()).all():
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
    if alpha is None:
        strength = strengths.of(name, rank, dora="magnitude" in tensors)
    else:
        strength = float(alpha.float32().reshape(())) / rank
    return Layer(name, down, up, mid, tensors.get("magnitude"), strength)
