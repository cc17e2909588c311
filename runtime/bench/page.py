"""A benchmark's document as one HTML page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from latentrt.bench.tables import latency_rows, notes, percentile_rows
from latentrt.output.charts import bars, lines
from latentrt.output.page import page_table, provenance_section, render_page, section

_APART = 4  # lines that a chart tells apart
_CHARTS = (("images_per_s", "images/s"), ("peak_memory_mb", "MB at the peak"))


def render(document: Mapping[str, Any], *, title: str) -> str:
    """The page as text: tables, how runs and sweeps went, provenance."""
    results = document["results"]
    fastest = min(results, key=lambda row: row["step_ms"]["median"] / row["batch"])
    return render_page(
        [
            *_latency(document),
            *_percentiles(document),
            *_sweep(document),
            *_runs(results),
            *provenance_section(document["provenance"]),
        ],
        title=title,
        verdict=f"{fastest['step_ms']['median']:.1f} ms a step",
        summary=f"Of {fastest['name']}, batch {fastest['batch']}, the fastest here. {'; '.join(notes(document))}.",
    )


def _latency(document: Mapping[str, Any]) -> Iterator[str]:
    results = document["results"]
    drawn = [(_label(row), row["step_ms"]["median"], f"{row['step_ms']['median']:.1f} ms", "low") for row in results]
    body = page_table(latency_rows(document)) + "<h3>step, median</h3>"
    yield section("Latency", f"{notes(document)[0]}.", body + bars(drawn, full=max(value for _, value, *_ in drawn)))


def _percentiles(document: Mapping[str, Any]) -> Iterator[str]:
    rows = percentile_rows(document)
    if rows:
        lead = "Milliseconds, at the nearest rank. What too few runs say nothing of is left out."
        yield section("Percentiles", lead, page_table(rows, left=len(rows[0]) - 7))


def _sweep(document: Mapping[str, Any]) -> Iterator[str]:
    """Throughput and memory over batch sizes, or over threads."""
    work = document["workload"]
    for axis, other in (("batch", "threads"), ("threads", "batch")):
        values = work[axis]
        if len(values) < 2:
            continue
        charts = [
            f"<h3>{unit}</h3>{lines(some, unit=axis, at=['auto' if v is None else str(v) for v in values])}"
            for key, unit in _CHARTS
            for some in _apart(_series(document["results"], key, axis, other, len(values)))
        ]
        yield section(f"Over {axis}", "From left to right; steps between the values are drawn alike.", "".join(charts))


def _series(
    results: Sequence[Mapping[str, Any]], key: str, axis: str, other: str, whole: int
) -> dict[str, list[float]]:
    """A figure along an axis for each candidate, and each value of the other axis; of those measured everywhere."""
    both = len({row[other] for row in results}) > 1
    found: dict[str, list[float]] = {}
    for row in results:
        name = f"{row['name']}, {other} {row[other]}" if both else row["name"]
        found.setdefault(name, []).append(row[key])
    return {name: values for name, values in found.items() if len(values) == whole}


def _apart(series: Mapping[str, Sequence[float]]) -> Iterator[dict[str, Sequence[float]]]:
    """As many as a chart tells apart."""
    rows = list(series.items())
    for first in range(0, len(rows), _APART):
        yield dict(rows[first : first + _APART])


def _runs(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Each run in turn, so that a machine that slows down, or a warm-up that was too short, is seen."""
    series = {
        _label(row): [*(ms for turn in row["warmup_ms"] for ms in turn), *row["total_ms"]["samples"]] for row in results
    }
    several = {name: values for name, values in series.items() if len(values) > 1}
    charts = [lines(some, unit="ms") for some in _apart(several)]
    if charts:
        lead = "Milliseconds of each run, warm-up first. A slope or two levels: the machine was not at rest."
        yield section("Run by run", lead, "".join(charts))


def _label(row: Mapping[str, Any]) -> str:
    threads = "" if row["threads"] is None else f", {row['threads']} threads"
    return f"{row['name']}, batch {row['batch']}{threads}"
