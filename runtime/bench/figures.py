"""What a benchmark says of its samples and of what ran."""

import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from latentrt.bundle import Bundle

ENOUGH_RUNS = 20  # for a 95th percentile: one of them may lie beyond
BUSY_SHARE = 0.5  # of the cores

_QUANTISED = ("int8", "fp8")


def component_precisions(bundle: Bundle, *, compute: str) -> dict[str, str]:
    """In which precision each component runs, such as `fp16` or `int8, rest fp32`.

    Args:
        bundle: its graphs state their number formats.
        compute: `fp32`, or `bf16` for what the graphs have in float.
    """
    return {name: _precision(bundle, name, compute) for name in bundle.components}


def ran_as(precisions: Mapping[str, str]) -> str:
    """The step's precision and those of the decoder and the text encoders that differ in more than the step being
    quantised, as one line: `int8, rest fp32; decoder fp16`."""
    step = precisions["step"]
    rest = step.rpartition("rest ")[2]
    others = {
        name: precision
        for name, precision in precisions.items()
        if (name == "decoder" or name.startswith("text_encoder")) and precision not in (step, rest)
    }
    return "; ".join([step, *(f"{name} {precision}" for name, precision in others.items())])


def _precision(bundle: Bundle, name: str, compute: str) -> str:
    stored = bundle.component(name).precision
    converted = bundle.manifest["components"][name].get("conversion") is not None
    if stored in _QUANTISED:  # `conversion` is then that of the bundle that was calibrated
        rest = "fp16" if converted else "fp32"
        return f"{stored}, rest {rest if compute == 'fp32' else compute}"
    if stored == "fp32":
        return compute
    return stored if compute == "fp32" else f"{stored} computed in {compute}"


def spread(values: Sequence[float], *, runs: int) -> dict[str, Any]:
    """Median, slowest and samples; the 95th percentile where there are enough runs for one, else None.

    Args:
        values: one or several of each run.
        runs: that they come from. What one run holds several times is no sample of its own.
    """
    ordered = sorted(values)
    p95 = ordered[round(0.95 * (len(ordered) - 1))] if runs >= ENOUGH_RUNS else None
    return {
        "median": statistics.median(ordered),
        "p95": p95,
        "max": ordered[-1],
        "samples": [round(value, 3) for value in values],
    }


def tail(stage: Mapping[str, Any]) -> float:
    """What stands in brackets behind a median: see `tail_name`."""
    value: float = stage["max"] if stage["p95"] is None else stage["p95"]
    return value


def tail_name(stages: Iterable[Mapping[str, Any]]) -> str:
    """What `tail` is."""
    return "slowest" if any(stage["p95"] is None for stage in stages) else "95th percentile"


def busy_warning(load_average: float) -> str | None:
    """What to say where other work takes a good part of the machine; None where it does not.

    Args:
        load_average: of the last minute, before anything was measured. It counts the cores of the whole machine, also
            those that this process may not use.
    """
    cores = os.cpu_count() or 1
    if load_average <= BUSY_SHARE * cores:
        return None
    return (
        f"this machine is busy (load average {load_average:.1f} on {cores} cores before the first run): these figures"
        " are those of a shared machine; measure again when it is idle"
    )
