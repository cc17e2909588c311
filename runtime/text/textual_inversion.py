"""Textual inversion: files of a few token embeddings, which stand in a prompt as `<name>` (docs/prompts.md).

Source: Gal et al. 2022, arXiv 2208.01618. Three layouts are read: that of stable-diffusion-webui (`emb_params`), that
of diffusers (one tensor, under the token's name) and that of models with two CLIP text encoders (`clip_l`, `clip_g`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from latentrt.arrays import FloatArray
from latentrt.errors import RequestError
from latentrt.family import TextEncoderSpec
from latentrt.weights.dtypes import FLOATS
from latentrt.weights.safetensors_file import TensorFile, read_tensor_file

_NAME = re.compile(r"\w[\w.:-]*")
_PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """What stands in a prompt for `<name>`: rows [n, D] of each text encoder, by component; n tokens. And the sha256 of
    its file."""

    name: str
    rows: Mapping[str, FloatArray]
    sha256: str


def read_embedding(name: str, path: str | PathLike[str], text_encoders: Sequence[TextEncoderSpec]) -> Embedding:
    """Reads a .safetensors file.

    Args:
        name: what stands between angle brackets in a prompt; given with them or without.

    Raises:
        RequestError: a name that no prompt can hold, a file that cannot be read, or one of another model.
    """
    bare = name.removeprefix("<").removesuffix(">")
    if not _NAME.fullmatch(bare):
        raise RequestError(f"an embedding named '{name}'", expected="letters, digits and any of _ . : -")
    if not text_encoders:
        raise RequestError("an embedding for a bundle whose text encoders take none", hint="export the bundle again")
    file = read_tensor_file(Path(path), what="an embedding")
    tensors = [_rows(file, key) for key in _keys(file)]
    found, wanted = [rows.shape[1] for rows in tensors], [text_encoder.width for text_encoder in text_encoders]
    if found != wanted:
        raise RequestError(
            f"{path} has embeddings of {_joined(found)} features",
            expected=f"{_joined(wanted)}, those of {_joined([each.component for each in text_encoders])}",
            hint="it was made for another model",
        )
    if len({len(rows) for rows in tensors}) > 1:
        raise RequestError(
            f"{path} has {_joined([len(rows) for rows in tensors])} tokens", expected="as many for each text encoder"
        )
    return Embedding(
        bare,
        {text_encoder.component: rows for text_encoder, rows in zip(text_encoders, tensors, strict=True)},
        file.sha256,
    )


def _keys(file: TensorFile) -> list[str]:
    """The tensors that count, in the order of the text encoders."""
    pairs = ([key for key in pair if key in file.tensors] for pair in _PAIRS)
    found = next(filter(None, pairs), list(file.tensors) if len(file.tensors) == 1 else [])
    if found and len(found) == len(file.tensors):
        return found
    raise RequestError(
        f"{file.path} holds {_joined(sorted(file.tensors)[:4])}{', ...' if len(file.tensors) > 4 else ''}",
        expected="an embedding: emb_params, clip_l and clip_g, or one tensor under the token's name",
        hint="rows for T5 are not supported" if any("t5" in key for key in file.tensors) else None,
    )


def _rows(file: TensorFile, key: str) -> FloatArray:
    """[n, D] float32; a tensor [D] is one row."""
    tensor = file.tensors[key]
    if tensor.dtype not in FLOATS:
        raise RequestError(f"'{key}' in {file.path} is {tensor.dtype}", expected="floating-point numbers")
    rows = np.atleast_2d(tensor.float32())
    if rows.ndim != 2 or not rows.size or not np.isfinite(rows).all():
        raise RequestError(
            f"'{key}' in {file.path} has shape {list(rows.shape)} or values that are not finite",
            expected="an embedding: finite, tokens x features",
        )
    return rows


def _joined(values: Sequence[object]) -> str:
    return " and ".join(map(str, values)) if values else "nothing"
