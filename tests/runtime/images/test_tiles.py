"""Tiles: where they lie, how they are blended, and when. Trained weights: tests/parity/test_starts.py."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrt import Pipeline, RequestError
from latentrt.images.tiles import in_tiles, tile_of
from latentrt.testing import fake_pipeline

sides = st.integers(1, 40)


@settings(deadline=None)
@given(sides, sides, st.integers(2, 20), st.integers(2, 20), st.integers(1, 3))
def test_parts_of_a_whole_that_is_the_same_everywhere_make_that_whole(height, width, tall, broad, scale):
    plane, tile = (height, width), (min(tall, height), min(broad, width))
    whole = np.random.default_rng(0).normal(size=(height * scale, width * scale, 2)).astype(np.float32)
    shapes = set()

    def part(rows: slice, columns: slice) -> np.ndarray:
        cut = whole[rows.start * scale : rows.stop * scale, columns.start * scale : columns.stop * scale]
        shapes.add(cut.shape)
        return cut

    assert np.allclose(in_tiles(plane, tile, part, scale=scale, what="testing"), whole, atol=1e-5)
    assert shapes == {(tile[0] * scale, tile[1] * scale, 2)}, "one size, so that one is compiled"


def test_a_difference_between_parts_is_spread_over_what_they_share():
    made = in_tiles((8, 29), (8, 16), lambda _, c: np.full((8, 16, 1), float(c.start > 0), np.float32),
                    scale=1, what="testing")[4, :, 0]  # fmt: skip
    assert made[0] == 0
    assert made[-1] == 1
    assert (np.diff(made) >= 0).all()
    assert np.diff(made).max() <= 0.5


@pytest.mark.parametrize(
    ("tile", "plane", "expected"),
    [
        ("auto", (128, 128), None),
        ("auto", (128, 136), (128, 128)),
        ("auto", (8, 4096), (8, 128)),
        (None, (512, 512), None),
        (256, (32, 32), None),
        (256, (32, 40), (32, 32)),
        (256, (24, 40), (24, 32)),
    ],
)
def test_when_a_plane_is_cut(tile, plane, expected):
    assert tile_of(tile, plane, 8) == expected


def tiled(pipe: Pipeline, tile: object) -> Pipeline:
    return Pipeline(pipe.bundle, pipe.engines, tile=tile)


def test_a_vae_that_sees_single_pixels_is_the_same_in_tiles(tmp_path: Path):
    pipe = fake_pipeline(tmp_path)
    latent = np.random.default_rng(0).normal(size=(2, 4, 24, 17)).astype(np.float32)
    whole = pipe.decode(latent)
    decoder = pipe.engines["decoder"]
    before = len(decoder.calls)
    assert np.abs(tiled(pipe, 64).decode(latent).astype(int) - whole).max() <= 1
    assert {call.feed["latent"].shape for call in decoder.calls[before:]} == {(1, 4, 8, 8)}
    keep = np.ones((192, 136, 1), np.float32)
    encoded = [p.vae.encode(whole[0], keep, latent[0]) for p in (pipe, tiled(pipe, 64))]
    assert np.allclose(*encoded, atol=1e-5)


def test_tiles_are_prepared_as_they_are_run(tmp_path: Path):
    pipe = tiled(fake_pipeline(tmp_path), 64)
    pipe.prepare(size=(128, 96))
    decoder = pipe.engines["decoder"]
    prepared = list(decoder.prepared)
    pipe.generate("a fox", size=(128, 96))
    assert decoder.prepared == prepared


@pytest.mark.parametrize("tile", [60, 0, -64, 4096, "large", 64.5])
def test_a_tile_that_the_bundle_does_not_make_is_refused(tile, tmp_path: Path):
    with pytest.raises(RequestError, match=r"tile is .*64 to 512 px.*multiples of 8"):
        tiled(fake_pipeline(tmp_path), tile)
