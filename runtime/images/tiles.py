"""The VAE in tiles: pictures too large for one call, in overlapping parts that are blended where they meet.

Both networks of a VAE see little beyond their receptive field, but for their norms and their attention, which see all
of what they are given. Parts therefore differ slightly in tone: each is weighted by a ramp that falls to its borders.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import numpy as np

from latentrt.arrays import FloatArray
from latentrt.errors import RequestError
from latentrt.family import Family
from latentrt.values import shown

log = logging.getLogger(__name__)

Tile: TypeAlias = int | Literal["auto"] | None

WHOLE_PX = 1024 * 1024
"""Largest picture that `auto` leaves whole. The VAE of Stable Diffusion takes about 4 KB a pixel in float32, and its
attention the square of the latent's pixels where a backend keeps the scores: 4 GB and 1 GB here, 16 GB and 17 GB at
twice the sides."""

AUTO_TILE_PX = 1024
"""As large as what is left whole: the larger the parts, the less they differ in tone."""
OVERLAP = 0.25
"""Share of a tile's side that it has in common with the next."""


def check_tile(tile: Tile, family: Family) -> Tile:
    """The tile, unless a side is no multiple of the VAE's factor or out of the bundle's range."""
    low, high = family.size_range_px
    if tile is None or (isinstance(tile, str) and tile == "auto"):
        return tile
    whole = isinstance(tile, int | np.integer) and not isinstance(tile, bool)
    if not whole or not low <= tile <= high or int(tile) % family.vae_factor:
        raise RequestError(
            f"tile is {shown(tile)}",
            expected=f"'auto', None, or {low} to {high} px in multiples of {family.vae_factor}",
        )
    return int(tile)


def tile_of(tile: Tile, plane: tuple[int, int], factor: int) -> tuple[int, int] | None:
    """What to cut a latent plane (h, w) into: (height, width) of a tile in latent pixels, or None for the whole."""
    height, width = plane
    if tile == "auto":
        tile = AUTO_TILE_PX if height * width * factor**2 > WHOLE_PX else None
    if tile is None or tile // factor >= max(plane):
        return None
    return min(tile // factor, height), min(tile // factor, width)


def in_tiles(
    plane: tuple[int, int],
    tile: tuple[int, int],
    make: Callable[[slice, slice], FloatArray],
    *,
    scale: int,
    what: str,
) -> FloatArray:
    """Parts made one by one and blended to a whole, float32 [h * scale, w * scale, channels].

    Args:
        tile: (height, width) of a part, at most the plane's.
        make: rows and columns of a part -> float32 [height * scale, width * scale, channels].
        scale: pixels made of one pixel of the plane along each axis.
    """
    parts = [(rows, columns) for rows in _spans(plane[0], tile[0]) for columns in _spans(plane[1], tile[1])]
    log.info("%s %dx%d in %d tiles of %dx%d", what, plane[1], plane[0], len(parts), tile[1], tile[0])
    total: FloatArray | None = None
    weights = np.zeros((plane[0] * scale, plane[1] * scale, 1), np.float32)
    ramp = _ramp(tile[0] * scale)[:, None, None] * _ramp(tile[1] * scale)[None, :, None]
    for rows, columns in parts:
        made = make(rows, columns)
        if total is None:
            total = np.zeros((*weights.shape[:2], made.shape[2]), np.float32)
        where = slice(rows.start * scale, rows.stop * scale), slice(columns.start * scale, columns.stop * scale)
        total[where] += ramp * made
        weights[where] += ramp
    return weights if total is None else total / weights


def _spans(length: int, tile: int) -> Iterator[slice]:
    """Parts of equal length, evenly spread, each with at least its share in common with the next."""
    if tile >= length:
        yield slice(0, length)
        return
    stride = max(1, tile - max(1, round(tile * OVERLAP)))
    count = -(-(length - tile) // stride) + 1
    for start in np.linspace(0, length - tile, count).round().astype(int).tolist():
        yield slice(start, start + tile)


def _ramp(length: int) -> FloatArray:
    """Weight along a side: rising from the border over the overlap, 1 in the middle; never 0."""
    reach = max(1.0, length * OVERLAP)
    place = np.arange(length) + 0.5
    ramp: FloatArray = (np.minimum(place, length - place) / reach).clip(0, 1).astype(np.float32)
    return ramp
