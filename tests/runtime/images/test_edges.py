"""Edges and line art of pictures whose edges are known."""

import numpy as np
import pytest

from latentrt import canny, lineart
from latentrt.errors import RequestError


def square() -> np.ndarray:
    """A square with its sides at 20 and 44 on black. [64, 64, 3]"""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[20:44, 20:44] = 255
    return pixels


def test_edges_are_one_pixel_wide_and_where_the_brightness_jumps():
    edges = canny(square())
    assert edges.shape == (64, 64, 3) and edges.dtype == np.uint8
    assert set(np.unique(edges)) == {0, 255} and (edges == edges[..., :1]).all()
    row = np.flatnonzero(edges[32, :, 0])
    assert len(row) == 2 and abs(row[0] - 19.5) < 1 and abs(row[1] - 43.5) < 1
    assert (canny(square().transpose(1, 0, 2))[..., 0] == edges[..., 0].T).all()


def test_the_corners_of_a_picture_are_no_edges():
    """A steep ramp, whose derivative falls to half in the corners, where nothing lies beyond to compare it with."""
    y, x = np.mgrid[:5, :5]
    for ramp in (x + y, 4 - x + y, x + 4 - y, 8 - x - y):
        edges = canny(np.repeat((ramp * 26)[..., None].astype(np.uint8), 3, axis=2))[..., 0]
        assert not edges[[0, 0, -1, -1], [0, -1, 0, -1]].any()


def test_an_edge_of_a_colour_counts_though_its_brightness_is_even():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16] = (200, 0, 0)
    pixels[:, 16:] = (0, 200, 0)
    assert (canny(pixels)[..., 0].any(axis=0)).sum() == 1


def test_a_faint_edge_counts_only_where_it_continues_a_strong_one():
    """Sobel's derivative of a straight step of n levels is 4 n: 40 levels make 160, between the thresholds."""
    faint = np.zeros((64, 64, 3), np.uint8)
    faint[:, 32:] = 40
    assert not canny(faint).any()
    assert canny(faint, low=50, high=120).any()
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, 32:], pixels[32:, 32:] = 255, 40
    found = canny(pixels)[..., 0]
    assert found[40:60, 30:34].any(axis=1).all()


def test_a_plain_picture_has_no_lines():
    grey = np.full((40, 40, 3), 90, np.uint8)
    assert not canny(grey).any() and not lineart(grey).any()


def test_dark_strokes_become_bright():
    pixels = np.full((64, 64, 3), 250, np.uint8)
    pixels[:, 31:33] = 20
    lines = lineart(pixels)[..., 0]
    assert (lines[:, 31:33] > 100).all() and (lines[:, :20] < 10).all()


def test_thresholds_out_of_order_are_refused():
    with pytest.raises(RequestError, match="lower one first"):
        canny(square(), low=200, high=100)
