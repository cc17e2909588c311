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


def mse_range(counts: Counts, *, largest: float, levels: int) -> float:
    """The range with the least mean squared error of symmetric rounding to -levels..levels, clipping included.

    Values are taken as spread evenly within a bin. Candidates are the bin edges and `largest`; of equals the widest.

    Args:
        counts: [BINS].
        largest: the maximum seen; 0 is returned as it is.
        levels: 127 for int8.
    """
    if largest == 0:
        return 0.0
    edges = UPPER[(largest * 2.0**-_SEARCHED_OCTAVES < UPPER) & (largest > UPPER)]
    candidates = np.concatenate([[largest], edges[::-1]])
    errors = [squared_error(counts, largest=largest, limit=float(limit), levels=levels) for limit in candidates]
    return float(candidates[int(np.argmin(errors))])


def squared_error(counts: Counts, *, largest: float, limit: float, levels: int) -> float:
    """Mean squared error of rounding to multiples of `limit` / `levels` within -limit..limit.

    Args:
        counts: [BINS], values spread evenly within each bin.
        largest: the maximum seen, the upper end of its bin.
    """
    filled = np.flatnonzero(counts)
    low, high = LOWER[filled], np.minimum(UPPER[filled], max(largest, np.nextafter(0, 1)))
    high = np.maximum(high, np.nextafter(low, np.inf))
    step = limit / levels
    # Integral of the squared rounding error over [low, high], in units of the step.
    area = _error_area(high / step, levels) - _error_area(low / step, levels)
    mean = area / ((high - low) / step)
    return float((counts[filled] * mean).sum() / counts.sum() * step**2)


def _error_area(x: Floats, levels: int) -> Floats:
    """Integral from 0 to x of (u - clip(round(u)))**2: 1/12 a whole step, cubic within one and beyond the clip."""
    whole = np.minimum(np.round(x), levels)
    area: Floats = whole / 12 + (x - whole) ** 3 / 3
    return area
