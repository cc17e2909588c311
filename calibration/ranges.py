"""From counts to ranges: the magnitude of each tensor that becomes the largest of the format."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from latentrt.calibration.formats import SMALLEST_SCALE, Format
from latentrt.calibration.histogram import Counts, mse_range, percentile_range
from latentrt.calibration.statistics import Statistics
from latentrt.errors import RequestError

PERCENTILE = 0.9999

METHODS: dict[str, Callable[[Counts, float, Format], float]] = {
    "mse": lambda counts, largest, form: mse_range(counts, largest=largest, magnitudes=form.magnitudes),
    "percentile": lambda counts, largest, form: percentile_range(counts, largest=largest, share=PERCENTILE),
    "max": lambda counts, largest, form: largest,
}


def choose_ranges(statistics: Statistics, tensors: Iterable[str], *, method: str, form: Format) -> dict[str, float]:
    """The range of each tensor over all timesteps.

    Args:
        statistics: of tensors as they reach the operator, divided where SmoothQuant divides them.
        method: `mse`, least squared error; `percentile`, 99.99 %; `max`, the largest magnitude seen.
    """
    if method not in METHODS:
        raise RequestError(f"ranges '{method}'", expected=", ".join(METHODS))
    smallest = SMALLEST_SCALE * form.largest  # also a tensor that was always zero needs a scale
    return {
        tensor: max(smallest, METHODS[method](statistics.histogram(tensor), statistics.largest(tensor), form))
        for tensor in tensors
    }
