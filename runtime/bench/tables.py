"""A benchmark's document as text and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from latentrt.bench.figures import PERCENTILES, missing_percentiles, runs_for, tail, tail_name

STAGES = ("text_ms", "step_ms", "decode_ms", "total_ms")
_PLAIN = ("name", "batch", "threads", "runs", "measured_s", "images_per_s", "first_ms", "load_s", "peak_memory_mb")
_RATIOS = ("against", "step_speedup", "total_speedup")


def latency_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """A head, and a row for each candidate at each point of the sweep."""
    results = document["results"]
    versus = any("against" in row for row in results)
    heads = ["", *_swept(document), *(f"{stage.removesuffix('_ms')} ms" for stage in STAGES)]
    heads += ["images/s", "first ms", "load s", "peak MB"]
    rows = [[*heads, *(("step x", "total x") if versus else ())]]
    for row in results:
        cells = [f"{row[stage]['median']:.1f} ({tail(row[stage]):.1f})" for stage in STAGES]
        cells += [f"{row['images_per_s']:.3g}", f"{row['first_ms']:.1f}", f"{row['load_s']:.1f}"]
        cells += [f"{row['peak_memory_mb']:.0f}", *(_speedups(row) if versus else ())]
        rows.append([row["name"], *(_choice(row[axis]) for axis in _swept(document)), *cells])
    return rows


def percentile_rows(document: Mapping[str, Any]) -> list[list[str]]:
    """The same for the percentiles of whole runs and of steps; empty where no row has runs enough for any."""
    results = document["results"]
    if all(row["runs"] < runs_for(PERCENTILES[0]) for row in results):
        return []
    rows = [["", *_swept(document), "", "p50", *(f"p{percent}" for percent in PERCENTILES), "max", "runs", "in s"]]
    for row in results:
        for stage in ("step_ms", "total_ms"):
            spread = row[stage]
            values = [spread["median"], *(spread[f"p{percent}"] for percent in PERCENTILES), spread["max"]]
            cells = ["" if value is None else f"{value:.1f}" for value in values]
            place = [row["name"], *(_choice(row[axis]) for axis in _swept(document))]
            rows.append([*place, stage.replace("_", " "), *cells, str(row["runs"]), f"{row['measured_s']:.1f}"])
    return rows


def notes(document: Mapping[str, Any]) -> list[str]:
    """How it was measured, what is missing, and what has to be known of the machine."""
    work, where, results = document["workload"], document["provenance"], document["results"]
    width, height = work["size"]
    runs = sorted({row["runs"] for row in results})
    counted = str(runs[0]) if len(runs) == 1 else f"{runs[0]} to {runs[-1]}"
    batch = f"batch {', '.join(map(str, work['batch']))}, "
    said = [
        f"median ({tail_name(row[stage] for row in results for stage in STAGES)}) of"
        f" {counted} runs: {width}x{height}, {batch}{work['steps']} steps, guidance {work['guidance']:g},"
        f" threads {', '.join(map(_choice, work['threads']))}",
        f"{where['cpu']}, {where['cores']} cores, load average {where['load_average']} before",
        *document["warnings"],
    ]
    if work["duration_s"] and (missing := missing_percentiles(results)) is not None:
        said.append(missing)
    bases = list(dict.fromkeys(row["against"] for row in results if "against" in row))
    if bases:
        said.append(f"x: times as fast as {bases[0] if len(bases) == 1 else 'the other bundle on the same backend'}")
    return [*said, *document["verdicts"]]


def as_csv(results: Sequence[Mapping[str, Any]]) -> str:
    """A line for each row; a percentile that the runs do not support, and a ratio to nothing, are empty."""
    figures = ("median", *(f"p{percent}" for percent in PERCENTILES), "max")
    heads = [*_PLAIN, *(f"{stage}_{figure}" for stage in STAGES for figure in figures), *_RATIOS]
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(heads)
    for row in results:
        spreads = [row[stage][figure] for stage in STAGES for figure in figures]
        lines.writerow([*(row[key] for key in _PLAIN), *spreads, *(row.get(key) for key in _RATIOS)])
    return text.getvalue()


def _swept(document: Mapping[str, Any]) -> list[str]:
    """What has more than one value."""
    return [axis for axis in ("batch", "threads") if len(document["workload"][axis]) > 1]


def _choice(value: int | None) -> str:
    return "auto" if value is None else str(value)


def _speedups(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['step_speedup']:.2f}", f"{row['total_speedup']:.2f}"] if "against" in row else ["", ""]
