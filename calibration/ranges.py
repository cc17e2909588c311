"""From counts to ranges: the magnitude of each tensor that becomes 127."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from latentrt.calibration.histogram import Counts, mse_range, percentile_range
from latentrt.calibration.quantize import LEVELS
from latentrt.calibration.statistics import Statistics
from latentrt.errors import RequestError

PERCENTILE = 0.9999
_SMALLEST = 1e-6  # a tensor that was always zero still needs a scale that float16 holds

METHODS: dict[str, Callable[[Counts, float], float]] = {
    "mse": lambda counts, largest: mse_range(counts, largest=largest, levels=LEVELS),
    "percentile": lambda counts, largest: percentile_range(counts, largest=largest, share=PERCENTILE),
    "max": lambda counts, largest: largest,
}


def choose_ranges(statistics: Statistics, tensors: Iterable[str], *, method: str) -> dict[str, float]:
    """The range of each tensor over all timesteps.

    Args:
        statistics: of tensors as they reach the operator, divided where SmoothQuant divides them.
        method: `mse`, least squared error; `percentile`, 99.99 %; `max`, the largest magnitude seen.

    Raises:
        RequestError: an unknown method.
    """
    if method not in METHODS:
        raise RequestError(f"ranges '{method}'", expected=", ".join(METHODS))
    return {
        tensor: max(_SMALLEST, METHODS[method](statistics.histogram(tensor), statistics.largest(tensor)))
        for tensor in tensors
    }
