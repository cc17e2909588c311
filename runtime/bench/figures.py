"""What a benchmark says of its samples and of what ran."""

import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from latentrt.bench.runner import BenchRuns
from latentrt.bundle import Bundle

PERCENTILES = (90, 95, 99)  # beside the 50th, the median
NOISE = 0.03  # a difference that two runs on a quiet machine may show
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
    """Median, percentiles, slowest and samples. A percentile is the value at its nearest rank, or None where there are
    fewer than `runs_for` it.

    Args:
        values: one or several of each run.
        runs: that they come from. What one run holds several times is no sample of its own.
    """
    ordered = sorted(values)
    return {
        "median": statistics.median(ordered),
        **{f"p{percent}": _at_rank(ordered, percent, runs) for percent in PERCENTILES},
        "max": ordered[-1],
        "samples": [round(value, 3) for value in values],
    }


def runs_for(percent: int) -> int:
    """Runs without which a percentile is not stated: with these, one of them lies beyond it."""
    return -(-100 // (100 - percent))


def summary(turns: Sequence[BenchRuns], *, batch: int) -> dict[str, Any]:
    """A candidate's turns at one batch size: each stage in milliseconds, images per second, the first call, memory.

    Images per second are those of all measured runs in their time; the first call is the slowest turn's.
    """
    samples = [sample for turn in turns for sample in turn.samples]
    stages = {
        "text_ms": [sample.text_ms for sample in samples],
        "step_ms": [call for sample in samples for call in sample.steps_ms],
        "decode_ms": [sample.decode_ms for sample in samples],
        "total_ms": [sample.total_ms for sample in samples],
    }
    measured_s = sum(stages["total_ms"]) / 1e3
    return {
        **{name: spread(values, runs=len(samples)) for name, values in stages.items()},
        "runs": len(samples),
        "measured_s": measured_s,
        "images_per_s": batch * len(samples) / measured_s,
        "first_ms": max((*turn.warmup, *turn.samples)[0].total_ms for turn in turns),
        "warmup_ms": [[round(run.total_ms, 3) for run in turn.warmup] for turn in turns],
        "load_s": max(turn.load_s for turn in turns),
        "peak_memory_mb": max(turn.peak_memory_mb for turn in turns),
    }


def ratios(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> dict[str, Any]:
    """How many times as fast as `base`, by medians."""
    if base is None:
        return {}
    return {
        "against": base["name"],
        "step_speedup": base["step_ms"]["median"] / row["step_ms"]["median"],
        "total_speedup": base["total_ms"]["median"] / row["total_ms"]["median"],
    }


def verdicts(results: Sequence[Mapping[str, Any]], name: str, parent: str) -> list[str]:
    """What converting or calibrating has won on this machine, a sentence for each row that has another one as base."""
    sentences = []
    for row in results:
        if row.get("against", row["name"]) == row["name"]:
            continue
        speed = row["step_speedup"]
        if speed < 1 - NOISE:
            said = f"{name} is SLOWER than {parent}: a step takes {1 / speed:.2f} times as long"
        elif speed < 1 + NOISE:
            said = f"{name} is no faster than {parent}"
        else:
            said = f"{name} is faster than {parent}: {speed:.2f} steps in the time of one"
        sentences.append(f"{row['name']}: {said}")
    return sentences


def tail(stage: Mapping[str, Any]) -> float:
    """What stands in brackets behind a median: see `tail_name`."""
    value: float = stage["max"] if stage["p95"] is None else stage["p95"]
    return value


def tail_name(stages: Iterable[Mapping[str, Any]]) -> str:
    """What `tail` is."""
    return "slowest" if any(stage["p95"] is None for stage in stages) else "95th percentile"


def missing_percentiles(results: Sequence[Mapping[str, Any]]) -> str | None:
    """Which percentiles the fewest runs of a row are too few for, and what would give them; None: none is missing."""
    fewest = min(results, key=lambda row: int(row["runs"]))
    missing = [percent for percent in PERCENTILES if fewest["runs"] < runs_for(percent)]
    if not missing:
        return None
    needed = runs_for(missing[-1])
    seconds = max(needed * row["measured_s"] / row["runs"] for row in results)
    names = ", ".join(f"{percent}th" for percent in missing)
    return (
        f"{fewest['runs']} runs say nothing of the {names} percentile; {needed} would, such as by --duration"
        f" {math.ceil(seconds)}"
    )


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


def _at_rank(ordered: Sequence[float], percent: int, runs: int) -> float | None:
    if runs < runs_for(percent):
        return None
    return ordered[math.ceil(percent / 100 * len(ordered)) - 1]
