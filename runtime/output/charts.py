"""Small SVG charts as text. Colours and fonts are those of the page: see the classes in page.html."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 720  # units; the page scales charts to its own width
_ROW = 18
_LABEL = 300
_FIGURE = 90


def bars(rows: Sequence[tuple[str, float, str, str]], *, full: float) -> str:
    """Horizontal bars, one below the other.

    Args:
        rows: (label, value, text behind the bar, class of the bar).
        full: the value of a bar that takes all the room; longer ones are cut there.
    """
    room = WIDTH - _LABEL - _FIGURE
    parts = []
    for place, (label, value, text, kind) in enumerate(rows):
        y = place * _ROW
        width = room * min(1.0, max(0.0, value / full))
        parts += [
            f'<text class="label" x="{_LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(_short(label))}'
            f"<title>{escape(label)}</title></text>",
            f'<rect class="{kind}" x="{_LABEL}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 6}" rx="2"/>',
            f'<text class="figure" x="{_LABEL + width + 6:.1f}" y="{y + 13}">{escape(text)}</text>',
        ]
    return _svg(parts, height=len(rows) * _ROW)


def lines(
    series: Mapping[str, Sequence[float]],
    *,
    unit: str,
    limit: float | None = None,
    at: Sequence[str] | None = None,
) -> str:
    """Lines from left to right, with a legend and perhaps a limit.

    Args:
        series: values by name; at most four are told apart.
        at: what stands below each of two or more values; None: they are the calls of a run.
    """
    height, left, right, top, bottom = 200, 44, 12, 26, 24
    every = [value for values in series.values() for value in values] + ([] if limit is None else [limit])
    ticks = _ticks(min(every), max(every))
    low, high = ticks[0], ticks[-1]
    calls = max(len(values) for values in series.values())

    def x(call: int) -> float:
        return left + (WIDTH - left - right) * call / max(1, calls - 1)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - value) / (high - low)

    parts = []
    for tick in ticks:
        parts += [
            f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>',
            f'<text class="figure" x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>',
        ]
    for number, (name, values) in enumerate(series.items()):
        points = " ".join(f"{x(call):.1f},{y(value):.1f}" for call, value in enumerate(values))
        parts += [
            f'<polyline class="line{number % 4}" points="{points}"/>',
            f'<rect class="mark{number % 4}" x="{left + 170 * number}" y="6" width="10" height="10" rx="2"/>',
            f'<text class="figure" x="{left + 170 * number + 15}" y="15">{escape(name)}</text>',
        ]
    if limit is not None:
        parts.append(f'<line class="limit" x1="{left}" x2="{WIDTH - right}" y1="{y(limit):.1f}" y2="{y(limit):.1f}"/>')
    below = [(0, "first call", "start"), (calls - 1, f"last call, {unit}", "end")]
    if at is not None:
        anchors = ["start", *["middle"] * (calls - 2), "end"]
        below = [
            (place, label if place < calls - 1 else f"{label}, {unit}", anchors[place])
            for place, label in enumerate(at)
        ]
    parts += [
        f'<text class="figure" x="{x(place):.1f}" y="{height - 6}" text-anchor="{anchor}">{escape(label)}</text>'
        for place, label, anchor in below
    ]
    return _svg(parts, height=height)


def heat(rows: Sequence[tuple[str, Sequence[float], str]], *, ends: tuple[str, str]) -> str:
    """Rows of cells, each as dark as its value is near the largest of its row.

    Args:
        rows: (label, values of 0 or more, text behind them); all with the same number of values.
        ends: what the first and the last column are.
    """
    room = WIDTH - _LABEL - _FIGURE
    cell = room / len(rows[0][1])
    parts = [
        f'<text class="figure" x="{_LABEL}" y="12">{escape(ends[0])}</text>',
        f'<text class="figure" x="{_LABEL + room}" y="12" text-anchor="end">{escape(ends[1])}</text>',
    ]
    for place, (label, values, text) in enumerate(rows, 1):
        y, largest = place * _ROW, max(values) or 1.0
        parts.append(
            f'<text class="label" x="{_LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(_short(label))}'
            f"<title>{escape(label)}</title></text>"
        )
        parts += [
            f'<rect class="cell" fill-opacity="{0.06 + 0.94 * value / largest:.2f}" x="{_LABEL + column * cell:.1f}"'
            f' y="{y + 1}" width="{cell - 1:.1f}" height="{_ROW - 2}"><title>{value:g}</title></rect>'
            for column, value in enumerate(values)
        ]
        parts.append(f'<text class="figure" x="{_LABEL + room + 6:.1f}" y="{y + 13}">{escape(text)}</text>')
    return _svg(parts, height=(len(rows) + 1) * _ROW)


def _svg(parts: Sequence[str], *, height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'


def _short(label: str, longest: int = 46) -> str:
    """Without its middle if it is long: beginning and end tell layers apart."""
    return label if len(label) <= longest else f"{label[:24]}…{label[25 - longest :]}"


def _ticks(low: float, high: float) -> list[float]:
    """Round values that enclose both, 5 to 9 of them."""
    span = max(high - low, 1e-3 * abs(high), 1e-9)  # of equal values too
    sizes = (digit * 10.0**power for power in range(-9, 15) for digit in (1, 2, 5))
    step = next(size for size in sizes if span / size <= 6)
    first, last = int(low // step), int(-(-high // step))
    return [float(f"{step * place:.6g}") for place in range(first, max(last, first + 1) + 1)]
