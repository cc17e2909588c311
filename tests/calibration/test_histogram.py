"""Histograms of magnitudes: ranges read off them against those computed from the values themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentrt.calibration.formats import FORMATS, FP8, INT8, Format
from latentrt.calibration.histogram import (
    BINS,
    BINS_PER_OCTAVE,
    LOWER,
    UPPER,
    mse_range,
    percentile_range,
    squared_error,
)

BIN = 2 ** (1 / BINS_PER_OCTAVE)  # upper edge over lower one
SAMPLES = {
    "normal": lambda rng: rng.standard_normal(20_000),
    "heavy tails": lambda rng: rng.standard_t(3, 20_000),
    "activations of SiLU": lambda rng: (x := rng.standard_normal(20_000)) / (1 + np.exp(-x)),
    "tiny": lambda rng: 1e-4 * rng.standard_normal(20_000),
    "one outlier": lambda rng: np.append(rng.standard_normal(20_000), 400.0),
}


def counted(x: np.ndarray) -> np.ndarray:
    return np.histogram(np.abs(x), bins=[*LOWER, np.inf])[0]


def true_error(x: np.ndarray, limit: float, form: Format) -> float:
    step = limit / form.largest
    return float(np.square(x - step * form.rounded(np.float32(x / step)).astype(np.float64)).mean())


def test_bins_cover_forty_octaves_without_a_gap():
    assert len(UPPER) == len(LOWER) == BINS
    assert LOWER[0] == 0
    np.testing.assert_array_equal(LOWER[1:], UPPER[:-1])
    assert UPPER[-1] == 2**20


# In fp8 a single outlier has most of the error, and that of one value is not the mean over its bin.
EVEN = [(form, name) for form in FORMATS.values() for name in SAMPLES if (form, name) != (FP8, "one outlier")]


@pytest.mark.parametrize(("form", "name"), EVEN, ids=[f"{form.name}, {name}" for form, name in EVEN])
@pytest.mark.parametrize("clip", [1.0, 0.5, 0.1])
def test_the_error_from_counts_is_that_of_the_values(name: str, clip: float, form: Format):
    x = SAMPLES[name](np.random.default_rng(0))
    largest = float(np.abs(x).max())
    found = squared_error(counted(x), largest=largest, limit=clip * largest, magnitudes=form.magnitudes)
    # Values are spread evenly within bins of 2.9 %, which a few outliers are not.
    assert found == pytest.approx(true_error(x, clip * largest, form), rel=0.05)


@pytest.mark.parametrize(("form", "name"), EVEN, ids=[f"{form.name}, {name}" for form, name in EVEN])
def test_the_mse_range_is_as_good_as_the_best_of_a_fine_search(name: str, form: Format):
    x = SAMPLES[name](np.random.default_rng(1))
    largest = float(np.abs(x).max())
    chosen = mse_range(counted(x), largest=largest, magnitudes=form.magnitudes)
    best = min(true_error(x, largest * share, form) for share in np.geomspace(1 / 32, 1, 400))
    assert chosen <= largest
    assert true_error(x, chosen, form) <= 1.03 * best


def test_a_range_of_equal_values_is_their_magnitude():
    x = np.full(100, -0.75)
    assert mse_range(counted(x), largest=0.75, magnitudes=INT8.magnitudes) == pytest.approx(0.75, rel=BIN - 1)


def test_a_tensor_of_zeros_has_no_range():
    assert mse_range(counted(np.zeros(10)), largest=0.0, magnitudes=INT8.magnitudes) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 1.0), st.floats(1e-3, 1e3))
def test_a_percentile_lies_at_most_a_bin_above_the_true_one(seed: int, share: float, scale: float):
    x = np.abs(scale * np.random.default_rng(seed).standard_normal(500))
    found = percentile_range(counted(x), largest=float(x.max()), share=share)
    exact = np.sort(x)[int(np.ceil(share * len(x))) - 1]
    assert exact <= found * (1 + 1e-12)
    assert found <= exact * BIN * (1 + 1e-12)
