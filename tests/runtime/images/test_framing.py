"""Where a photo lies in the model's picture, and what comes back from there."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrt import Image, Inpaint, Outpaint, RequestError
from latentrt.images.framing import contained, covering, crop_around, inward, natural_sizes, resized, warn_untrained
from latentrt.testing import fake_family

FAMILY = fake_family()
LOW, HIGH = FAMILY.size_range_px
sides = st.integers(40, 150)


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(st.integers(64, 3000), st.integers(64, 3000))
def test_a_photos_own_size_is_in_range_and_of_its_shape(width: int, height: int):
    try:
        inner, size = natural_sizes((width, height), FAMILY)
    except RequestError:
        scale = np.sqrt(2.25 * 64 * 64 / (width * height))
        assert min(width, height) * min(1, scale, HIGH / max(width, height)) < LOW
        return
    assert all(LOW <= side <= HIGH and side % 8 == 0 for side in size)
    assert all(whole - 8 < part <= whole for part, whole in zip(inner, size, strict=True))
    assert abs(inner[1] - height * inner[0] / width) <= 1 + height / width
    assert inner == (width, height) or inner[0] * inner[1] <= 2.3 * 64 * 64


@settings(deadline=None, max_examples=40)
@given(sides, sides, st.integers(0, 30), st.data())
def test_a_pasted_part_leaves_all_pixels_outside_its_mask_alone(width, height, margin, data):
    left, top = data.draw(st.integers(0, width - 12)), data.draw(st.integers(0, height - 12))
    mask = np.zeros((height, width), np.bool_)
    mask[top : top + 12, left : left + 12] = True
    photo = noise(width, height)
    canvas = Inpaint(photo, mask, margin=margin).canvas((72, 64), FAMILY)
    assert canvas.image.shape == (64, 72, 3)
    done = canvas.finish(noise(72, 64, seed=1))
    assert done.shape == photo.shape
    assert np.array_equal(done[~mask], photo[~mask])
    assert (done[mask] != photo[mask]).any()


@settings(deadline=None, max_examples=40)
@given(sides, sides, st.tuples(*[st.integers(0, 40)] * 4).filter(any), st.integers(0, 20))
def test_continuing_a_photo_keeps_its_pixels_beyond_the_overlap(width, height, added, overlap):
    left, right, top, bottom = added
    photo = noise(width, height)
    start = Outpaint(photo, left=left, right=right, top=top, bottom=bottom, overlap=overlap)
    canvas = start.canvas((128, 128), FAMILY)
    made = noise(128, 128, seed=1)
    done = canvas.finish(made)
    assert done.shape == (height + top + bottom, width + left + right, 3)
    y0, y1 = (overlap if top else 0), height - (overlap if bottom else 0)
    x0, x1 = (overlap if left else 0), width - (overlap if right else 0)
    kept = done[top : top + height, left : left + width][y0 : max(y0, y1), x0 : max(x0, x1)]
    assert np.array_equal(kept, photo[y0 : max(y0, y1), x0 : max(x0, x1)])
    view = resized(made[: canvas.frame.inner[1], : canvas.frame.inner[0]], (done.shape[1], done.shape[0]))
    for new in (np.s_[:top], np.s_[top + height :], np.s_[:, :left], np.s_[:, left + width :]):
        assert np.array_equal(done[new], view[new])


def test_everything_that_is_pasted_was_painted():
    """A pixel of the paste whose latent pixel is held fixed would show the repeated edge instead of a picture."""
    canvas = Outpaint(noise(67, 64), right=33, overlap=0).canvas(None, FAMILY)
    assert canvas.size == (104, 64)
    assert canvas.paint[:, 67:100].all()
    assert canvas.paint[::8, ::8].repeat(8, 0).repeat(8, 1).tolist() == canvas.paint.tolist()


def test_without_a_size_a_photo_keeps_its_own_and_comes_back_in_it():
    photo = noise(83, 70)
    canvas = Image(photo).canvas(None, FAMILY)
    assert (canvas.size, canvas.output_size) == ((88, 72), (83, 70))
    assert np.array_equal(canvas.image[:70, :83], photo)
    assert (canvas.image[:, 83:] == canvas.image[:, 82:83]).all()
    assert (canvas.image[70:] == canvas.image[69:70]).all()
    assert canvas.finish(canvas.image).shape == photo.shape


def test_with_a_size_a_photo_covers_it_and_is_cropped_evenly():
    photo = noise(200, 100)
    photo[:, :50], photo[:, 150:] = 0, 255
    shown = covering(photo, (64, 64))
    assert shown.shape == (64, 64, 3)
    middle = resized(np.ascontiguousarray(photo[:, 50:150]), (64, 64))
    assert np.abs(shown[:, 4:-4].astype(int) - middle[:, 4:-4]).max() <= 1
    assert np.array_equal(covering(photo, (200, 100)), photo)


@given(st.integers(0, 99), st.integers(0, 79), st.integers(1, 60), st.integers(0, 40), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_crop_holds_the_mask_and_its_margin_and_lies_in_the_photo(x, y, side, margin, aspect):
    mask = np.zeros((80, 100), np.bool_)
    mask[y : y + side, x : x + side] = True
    left, top, right, bottom = crop_around(mask, margin, (int(64 * aspect), 64))
    assert 0 <= left < right <= 100
    assert 0 <= top < bottom <= 80
    rows, columns = np.nonzero(mask)
    assert left <= max(0, columns.min() - margin)
    assert right >= min(100, columns.max() + 1 + margin)
    assert top <= max(0, rows.min() - margin)
    assert bottom >= min(80, rows.max() + 1 + margin)
    if right - left < 100 and bottom - top < 80:
        assert abs((right - left) - aspect * (bottom - top)) <= 1 + aspect


def test_the_paste_fades_in_over_the_feather():
    mask = np.zeros((20, 20), np.bool_)
    mask[4:16, 4:] = True
    alpha = inward(mask, 3)
    assert alpha[10, 3:9].tolist() == [0, 0.25, 0.5, 0.75, 1, 1]
    assert alpha[10, 19] == 1, "a side of the picture is no border"
    assert inward(mask, 0).tolist() == mask.tolist()


def test_a_part_of_a_large_photo_fades_in_softly():
    """A margin of 64 around 600 pixels of a photo of 1000x1500, made at 128: each value of the latent covers 46."""
    mask = np.zeros((1500, 1000), np.bool_)
    mask[500:1100, 200:800] = True
    photo = noise(1000, 1500)
    soft, hard = (Inpaint(photo, mask, margin=64, feather=feather).canvas((128, 128), FAMILY) for feather in (None, 4))
    assert 0.4 < soft.frame.alpha[800, 220] < 0.5
    assert soft.frame.alpha[800, 200] < 0.05 and hard.frame.alpha[800, 204] == 1
    steps = [np.abs(np.diff(canvas.frame.alpha[800])).max() for canvas in (soft, hard)]
    assert steps[0] < 0.025 < 0.19 < steps[1]
    assert soft.frame.alpha[800, 500] == 1
    assert not soft.frame.alpha[~mask].any(), "outside the photo stays as it is"


@pytest.mark.parametrize("width", [6, 40])
def test_a_line_is_painted_in_its_middle(width):
    mask = np.zeros((400, 400), np.bool_)
    mask[100 : 100 + width, 20:380] = True
    frame = Inpaint(noise(400, 400), mask, margin=16).canvas((128, 128), FAMILY).frame
    assert frame.alpha[100 + width // 2, 200] >= 0.7
    assert frame.alpha[100, 200] <= 0.5


@given(st.integers(1, 500), st.integers(1, 500))
def test_what_is_contained_touches_two_sides(width, height):
    inner = contained((width, height), (96, 64))
    assert inner[0] == 96 or inner[1] == 64
    assert 1 <= inner[0] <= 96
    assert 1 <= inner[1] <= 64


def test_a_size_far_from_the_trained_one_is_warned_about_once(caplog: pytest.LogCaptureFixture):
    warn_untrained.cache_clear()
    with caplog.at_level(logging.WARNING):
        for size in ((512, 512), (512, 512), (64, 64), (96, 96), (32, 32)):
            warn_untrained(size, (64, 64))
    assert [record.getMessage()[:10] for record in caplog.records] == ["512x512 px", "32x32 px i"]
