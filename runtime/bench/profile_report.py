"""Profiles as text, as CSV and as one HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from latentrt.output.charts import bars
from latentrt.output.page import details, page_table, provenance_section, render_page, section

SHOWN = 14  # types; what is behind them is one line
_COLUMNS = ("type", "precision", "nodes", "ms", "share", "gflop", "gflops", "share_of_peak")


def type_rows(profile: Mapping[str, Any]) -> list[list[str]]:
    """A head, a row for each type of node, and one for all the small ones."""
    rows = [["type", "precision", "nodes", "ms", "share", "GFLOP", "GFLOP/s", "of peak"]]
    for row in profile["types"][:SHOWN]:
        share = row["share_of_peak"]
        work = [f"{row['gflop']:.4g}", f"{row['gflops']:.0f}"] if row["gflops"] is not None else ["", ""]
        peak = "" if share is None else f"{share:.0%}"
        rows.append(
            [row["type"], row["precision"], str(row["nodes"]), f"{row['ms']:.2f}", f"{row['share']:.1%}", *work, peak]
        )
    rest = profile["types"][SHOWN:]
    if rest:
        figures = [str(sum(row["nodes"] for row in rest)), f"{sum(row['ms'] for row in rest):.2f}"]
        rows.append([f"{len(rest)} others", "", *figures, f"{sum(row['share'] for row in rest):.1%}", "", "", ""])
    return rows


def heading(profile: Mapping[str, Any]) -> str:
    """What a component took, and what its products alone would take at the peak."""
    said = (
        f"{profile['component']} on {profile['name']}: {profile['run_ms']:.1f} ms a run, {profile['nodes_ms']:.1f} of"
        f" them in nodes; {profile['gflop']:.4g} GFLOP"
    )
    if profile["peak_ms"] is None:
        return said
    share = profile["peak_ms"] / profile["run_ms"]
    return f"{said}, which would take {profile['peak_ms']:.1f} ms at the peak ({share:.0%})"


def peak_line(peaks: Sequence[Mapping[str, Any]]) -> str:
    """The peaks in a sentence."""
    each = (f"{row['precision']} {row['product']} {row['gflops']:.0f} ({row['backend']})" for row in peaks)
    return f"measured peak, GFLOP/s: {', '.join(each)}"


def as_csv(profiles: Sequence[Mapping[str, Any]]) -> str:
    """A line for each type of node."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("name", "component", *_COLUMNS))
    for profile in profiles:
        for row in profile["types"]:
            lines.writerow([profile["name"], profile["component"], *(row[column] for column in _COLUMNS)])
    return text.getvalue()


def render(document: Mapping[str, Any], *, title: str) -> str:
    """The page as text."""
    profiles = document["profiles"]
    step = next(each for each in profiles if each["component"] == "step")
    largest = step["types"][0]
    return render_page(
        [
            *(part for profile in profiles for part in _sections(profile)),
            *provenance_section(document["provenance"]),
        ],
        title=title,
        verdict=f"{largest['share']:.0%} of a step in {largest['type']} nodes",
        summary="; ".join([heading(step), peak_line(document["peaks"]), *document["warnings"]]) + ".",
    )


def _sections(profile: Mapping[str, Any]) -> Iterator[str]:
    drawn = [
        (f"{row['type']} {row['precision']}", row["share"], f"{row['share']:.1%}", "low")
        for row in profile["types"][:SHOWN]
    ]
    longest = [["node", "type", "precision", "ms", "share", "GFLOP/s"]]
    for row in profile["longest"]:
        rate = "" if row["gflops"] is None else f"{row['gflops']:.0f}"
        longest.append([row["name"], row["type"], row["precision"], f"{row['ms']:.2f}", f"{row['share']:.1%}", rate])
    body = bars(drawn, full=drawn[0][1]) + page_table(type_rows(profile), left=2)
    body += details(escape(f"the {len(profile['longest'])} longest nodes"), page_table(longest, left=3))
    yield section(f"{profile['component']} on {profile['name']}", f"{heading(profile)}.", body)
