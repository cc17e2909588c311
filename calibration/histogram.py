"""Streaming histograms of magnitudes with logarithmic bins, and the ranges that are read off them.

A logarithmic histogram needs no range beforehand: every call of every trajectory counts into the same bins, and
sums of counts are exact in any order. Bin 0 holds everything below 2**LOWEST_OCTAVE.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BINS_PER_OCTAVE = 24  # 2.9 % from one edge to the next
LOWEST_OCTAVE = -20
OCTAVES = 40
BINS = BINS_PER_OCTAVE * OCTAVES

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Upper edge of each bin [BINS]; bin i holds UPPER[i - 1] <= |x| < UPPER[i].
UPPER: Floats = 2.0 ** (LOWEST_OCTAVE + np.arange(1, BINS + 1) / BINS_PER_OCTAVE)
LOWER: Floats = np.concatenate([[0.0], UPPER[:-1]])

_SEARCHED_OCTAVES = 5  # a range below 1/32 of the largest magnitude is never the best one


def percentile_range(counts: Counts, *, largest: float, share: float) -> float:
    """The smallest bin edge below which `share` (0..1) of all values lie; at most `largest`, the maximum seen.

    Args:
        counts: [BINS].
    """
    within = np.cumsum(counts) >= share * counts.sum()
    return min(float(UPPER[np.argmax(within)]), largest)


def mse_range(counts: Counts, *, largest: float, magnitudes: Floats) -> float:
    """The range with the least mean squared error of rounding to a format, clipping included.

    Values are taken as spread evenly within a bin. Candidates are the bin edges and `largest`; of equals the widest.

    Args:
        counts: [BINS].
        largest: the maximum seen; 0 is returned as it is.
        magnitudes: [n] of the format, ascending from 0; the range becomes the last one.
    """
    if largest == 0:
        return 0.0
    edges = UPPER[(largest * 2.0**-_SEARCHED_OCTAVES < UPPER) & (largest > UPPER)]
    candidates = np.concatenate([[largest], edges[::-1]])
    errors = [squared_error(counts, largest=largest, limit=float(x), magnitudes=magnitudes) for x in candidates]
    return float(candidates[int(np.argmin(errors))])


def squared_error(counts: Counts, *, largest: float, limit: float, magnitudes: Floats) -> float:
    """Mean squared error of rounding to `magnitudes`, the last of which stands for `limit`.

    Args:
        counts: [BINS], values spread evenly within each bin.
        largest: the maximum seen, the upper end of its bin.
        magnitudes: [n] of the format, ascending from 0.
    """
    filled = np.flatnonzero(counts)
    low, high = LOWER[filled], np.minimum(UPPER[filled], max(largest, np.nextafter(0, 1)))
    high = np.maximum(high, np.nextafter(low, np.inf))
    scale = limit / float(magnitudes[-1])
    # Integral of the squared rounding error over [low, high], in units of the scale.
    area = _error_area(high / scale, magnitudes) - _error_area(low / scale, magnitudes)
    mean = area / ((high - low) / scale)
    return float((counts[filled] * mean).sum() / counts.sum() * scale**2)


def _error_area(x: Floats, magnitudes: Floats) -> Floats:
    """Integral from 0 to x of the squared distance to the nearest magnitude: gap**3 / 12 a whole gap, cubic from the
    last magnitude passed."""
    gaps = np.diff(magnitudes)
    whole = np.concatenate([[0.0], np.cumsum(gaps**3 / 12)])
    nearest = np.searchsorted(magnitudes[:-1] + gaps / 2, x, side="right")
    area: Floats = whole[nearest] + (x - magnitudes[nearest]) ** 3 / 3
    return area
