"""The parts of a checkpoint made and written one after the other, so that memory holds one of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn


def write_parts(
    kind: type[DiffusionPipeline],
    folder: Path,
    *,
    parts: Mapping[str, Callable[[], Any]],
    settings: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a diffusers folder, as `kind(...).save_pretrained(folder)` would.

    Args:
        kind: the class of the pipeline.
        parts: what makes each; in this order, on which random weights depend.
        settings: the pipeline's other arguments.
        dtype: of the weights.
    """
    made = {}
    with _default_dtype(dtype):
        for name, make in parts.items():
            part = made[name] = make()
            part.save_pretrained(folder / name)
            if isinstance(part, nn.Module):
                part.to("meta")  # its configuration is all that is needed from here on
    kind(**made, **settings).save_config(folder)
    return folder


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
