"""The parts of a random checkpoint: made and written one after the other, so that memory holds one of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
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
        parts: what makes each; in this order, on which random weights depend.
        settings: the pipeline's other arguments.
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


def make_vae(
    channels: Sequence[int], *, layers: int, latent_channels: int, sample_size: int, **config: Any
) -> AutoencoderKL:
    """An autoencoder with random weights; `sample_size` in latent pixels, `config` as diffusers takes it."""
    return AutoencoderKL(
        block_out_channels=tuple(channels),
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=layers,
        norm_num_groups=min(32, channels[0] // 2),
        latent_channels=latent_channels,
        sample_size=8 * sample_size,
        **config,
    )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
