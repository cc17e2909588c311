"""The first inputs of a run: each image's start value as latents, drawn from its own generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentrt.arrays import FloatArray
from latentrt.images.framing import Canvas
from latentrt.images.photo import Bits, Encode
from latentrt.samplers import StepTable
from latentrt.samplers.torch_rng import Generator


@dataclass(frozen=True, slots=True, eq=False)
class InitialState:
    """What one image of a batch starts from: its request's canvas, which of the request's images it is, its table."""

    canvas: Canvas
    index: int
    table: StepTable


def start_inputs(
    starts: Sequence[InitialState],
    *,
    shape: tuple[int, int, int],
    extra: bool,
    generators: Sequence[Generator],
    encode: Encode,
) -> dict[str, FloatArray]:
    """The step's inputs that come from start values: `state`, `known`, `mask`, and `extra` where the step has it.

    Each image draws from its own generator: the posterior of its picture, the start noise, the posterior of the masked
    picture; only what it needs.

    Args:
        extra: whether the network sees mask and masked picture itself. Then nothing is held fixed outside the mask.
        generators: of each image, fresh.
    """
    (channels, *plane), batch = shape, len(starts)
    feed = {
        "state": np.zeros((batch, 4, *shape), np.float32),
        "known": np.zeros((batch, *shape), np.float32),
        "mask": np.ones((batch, 1, *plane), np.float32),
    }
    if extra:
        feed["extra"] = np.zeros((batch, 1 + channels, *plane), np.float32)
    for image, (initial, generator) in enumerate(zip(starts, generators, strict=True)):
        canvas = initial.canvas
        clean = _clean(initial, shape, generator, encode)
        feed["state"][image, 0] = _first(initial, clean, shape, generator)
        mask = np.ones(plane, np.float32) if canvas.paint is None else _cells(canvas.paint, plane)
        if extra:
            feed["extra"][image] = [mask, *_masked(canvas, shape, generator, encode)]
        elif canvas.paint is not None and clean is not None:
            feed["mask"][image, 0], feed["known"][image] = mask, clean
    return feed


def _clean(initial: InitialState, shape: Sequence[int], generator: Generator, encode: Encode) -> FloatArray | None:
    """The latent [C, h, w] that a run starts from, or None where it starts from noise alone."""
    canvas = initial.canvas
    if canvas.latents is not None:
        clean: FloatArray = canvas.latents[initial.index if len(canvas.latents) > 1 else 0]
        return clean
    if canvas.image is None or canvas.strength is None:
        return None
    return encode(canvas.image, np.ones((*canvas.image.shape[:2], 1), np.float32), generator.randn((1, *shape))[0])


def _first(initial: InitialState, clean: FloatArray | None, shape: Sequence[int], generator: Generator) -> FloatArray:
    """Slot 0 of the state, [C, h, w]."""
    table = initial.table
    if initial.canvas.denoising_start is not None and clean is not None:
        return clean
    noise: FloatArray = generator.randn((1, *shape))[0] * np.float32(table.start_noise)
    return noise if clean is None else np.float32(table.start_signal) * clean + noise


def _masked(canvas: Canvas, shape: Sequence[int], generator: Generator, encode: Encode) -> FloatArray:
    """Latent [C, h, w] of the picture with mid grey where the model paints: all of it grey without a picture."""
    width, height = canvas.size
    image = canvas.image if canvas.image is not None else np.zeros((height, width, 3), np.uint8)
    paint = canvas.paint if canvas.paint is not None else np.ones((height, width), np.bool_)
    return encode(image, (~paint)[..., None].astype(np.float32), generator.randn((1, *shape))[0])


def _cells(paint: Bits, plane: Sequence[int]) -> FloatArray:
    """A mask of pixels as one of latent pixels, [h, w]: each takes its top left pixel, as diffusers' `interpolate`."""
    factor = paint.shape[0] // plane[0]
    return paint[::factor, ::factor].astype(np.float32)
