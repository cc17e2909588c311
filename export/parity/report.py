"""A judgement as one HTML page."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from latentrt.bundle import Bundle
from latentrt.export.parity.measurement import Measurement, Measurements, Pictures
from latentrt.output.charts import bars, heat, lines
from latentrt.output.page import details, facts, number, provenance_section, render_page, section
from latentrt.output.png import encode_png
from latentrt.output.result import Images

REPORT = "report.html"  # in a calibrated bundle
LAYERS, DRIFTING, STRIP = 30, 12, 6  # how many are shown
LARGEST_PX = 256  # of a picture's longer side
AMPLIFIED = 8  # times, differences of pictures
_CLEAR_DB = 60.0  # the least that a full bar means: nobody sees that layer's error


def render(
    bundle: Bundle,
    measurements: Measurements,
    *,
    title: str,
    parent: Bundle | None = None,
    where: Mapping[str, Any] | None = None,
) -> str:
    """The page.

    Args:
        bundle: what was judged. How it was calibrated is read from its manifest, if it was.
        title: what was compared with what.
        parent: the float bundle, for the comparison of sizes; None leaves it out.
        where: date, machine and versions, as `latentrt.bench.machine.provenance` gives them; None leaves them out.
    """
    calibration = bundle.section("calibration") or {}
    judged = [row for row in measurements.rows if row.limit is not None]
    failed = sum(not row.passed for row in judged)
    verdict = f"{failed} of {len(judged)} gates failed" if failed else f"All {len(judged)} gates passed"
    sections = [
        *_strip(measurements.pictures),
        *_gates(measurements.rows),
        *_trajectories(measurements.rows),
        *_size(bundle, parent, calibration),
        *_layers(calibration),
        *_drift(calibration),
        *_float(calibration),
        *_recipe(calibration),
        *provenance_section(where),
    ]
    columns = 1 if measurements.pictures is None else 1 + 2 * len(measurements.pictures.found)
    return render_page(
        sections,
        title=title,
        verdict=verdict if judged else "Not judged",
        mood="failed" if failed else "ok" if judged else "",
        summary=_summary(bundle, measurements.rows),
        columns=columns,
    )


def _summary(bundle: Bundle, rows: Sequence[Measurement]) -> str:
    """Precisions, and the worst network and image figures, in a sentence."""
    precisions = ", ".join(f"{name} {part.precision}" for name, part in bundle.components.items())
    network = [row.value for row in rows if row.unit == "dB SQNR"]
    images = [row.value for row in rows if row.unit == "dB PSNR" and "median" in row.case]
    parts = [precisions]
    parts += [f"signal at least {min(network):.1f} dB above the error"] if network else []
    parts += [f"images {min(images):.1f} dB PSNR in the median"] if images else []
    return "; ".join(parts) + ". Figures are of the worst case and backend."


def _gates(rows: Sequence[Measurement]) -> Iterator[str]:
    """A row a measure, a column a backend; what is between backends has the width of all."""
    if not rows:
        return
    between = [row for row in rows if row.case.endswith("between backends")]
    backends = list(dict.fromkeys(row.backend for row in rows if row not in between))
    measures: dict[str, dict[tuple[str, str], dict[str, Measurement]]] = {}
    for row in rows:
        cells = measures.setdefault(row.subject, {}).setdefault((row.case, row.unit), {})
        cells["" if row in between else row.backend] = row
    head = "".join(f'<th class="n">{escape(name)}</th>' for name in backends)
    lines = [f'<tr><th>measure</th><th class="n">limit</th>{head}<th>unit</th></tr>']
    for subject, table in measures.items():
        lines.append(f'<tr><td class="group" colspan="{len(backends) + 3}">{escape(subject)}</td></tr>')
        for (case, unit), found in table.items():
            whole = [_cell(found[""], span=len(backends))] if "" in found else []
            body = "".join(whole or (_cell(found.get(name)) for name in backends))
            limit = _limit(next(iter(found.values())))
            lines.append(f'<tr><td>{escape(case)}</td><td class="n">{limit}</td>{body}<td>{escape(unit)}</td></tr>')
    lead = "Each backend by itself: the same file has meant different things to two of them. No limit: reported only."
    yield section("Gates", lead, f"<table>{''.join(lines)}</table>")


def _cell(row: Measurement | None, *, span: int = 1) -> str:
    if row is None:
        return '<td class="n"></td>'
    mood = "" if row.limit is None else " ok" if row.passed else " failed"
    mark = "" if row.limit is None else " ✓" if row.passed else " ✗"
    return f'<td class="n{mood}" colspan="{span}">{row.value:.4g}{mark}</td>'


def _limit(row: Measurement) -> str:
    return "" if row.limit is None else f"{'≥' if row.higher_is_better else '≤'} {row.limit:g}"


def _trajectories(rows: Sequence[Measurement]) -> Iterator[str]:
    """Signal-to-noise ratio of each call, a chart for each branch of the network."""
    cases: dict[tuple[str, str], list[Measurement]] = {}
    for row in rows:
        if len(row.series) > 1 and np.isfinite(row.series).all():
            cases.setdefault((row.subject, row.case), []).append(row)
    charts = [
        f"<h3>{escape(subject)}: {escape(case)}</h3>"
        + lines({row.backend: row.series for row in group}, unit="dB", limit=group[0].limit)
        for (subject, case), group in cases.items()
    ]
    if charts:
        lead = "Signal over error of each call; the dashed line is the gate of the mean. A fall at the end is usual."
        yield section("Along the trajectory", lead, "".join(charts))


def _strip(pictures: Pictures | None) -> Iterator[str]:
    """The reference, and for each backend the bundle's picture and the difference."""
    if pictures is None:
        return
    heads = ["reference", *(head for name in pictures.found for head in (name, f"difference x{AMPLIFIED}"))]
    cells = ["<span></span>", *(f"<span>{escape(head)}</span>" for head in heads)]
    for place in _spread(len(pictures.reference), STRIP):
        reference = pictures.reference[place]
        row = [reference]
        for images in pictures.found.values():
            difference = np.abs(images[place].astype(np.int16) - reference)
            row += [images[place], np.minimum(difference * AMPLIFIED, 255).astype(np.uint8)]
        cells.append(f"<span>{escape(pictures.prompts[place])}</span>")
        cells += [_picture(image) for image in row]
    lead = "The same prompts and seeds. A picture that differs is not worse by that; judge with your own eyes."
    yield section("Pictures", lead, f'<div class="strip">{"".join(cells)}</div>')


def _spread(total: int, wanted: int) -> list[int]:
    """Places from first to last, evenly."""
    places = np.linspace(0, total - 1, min(total, wanted)).round()
    return sorted({int(place) for place in places})


def _picture(image: Images) -> str:
    """[H, W, 3], made smaller by a whole factor if it is large."""
    factor = -(-max(image.shape[:2]) // LARGEST_PX)
    height, width = (length // factor for length in image.shape[:2])
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    data = encode_png(blocks.mean(axis=(1, 3)).round().astype(np.uint8))
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def _size(bundle: Bundle, parent: Bundle | None, calibration: Mapping[str, Any]) -> Iterator[str]:
    lines = ['<tr><th>component</th><th>precision</th><th class="n">MB</th>']
    lines[0] += '<th class="n">float MB</th><th class="n">share</th>' if parent is not None else ""
    lines[0] += '<th class="n">work quantised</th></tr>'
    for name, part in bundle.components.items():
        size = bundle.stored_bytes(name)
        cells = [f"<td>{escape(name)}</td><td>{escape(part.precision)}</td>", number(f"{size / 1e6:.2f}")]
        if parent is not None:
            before = parent.stored_bytes(name)
            cells += [number(f"{before / 1e6:.2f}"), number(f"{size / before:.3f}")]
        cells.append(number(_work(calibration, name)))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lead = "Graph and weights. Work is counted in multiplications of the operators with constant weights."
    yield section("Size and work", lead, f"<table>{''.join(lines)}</table>")


def _work(calibration: Mapping[str, Any], component: str) -> str:
    """The share of the work that is quantised; empty where it was not counted."""
    layers = _layer_rows(calibration).get(component, [])
    work = [(layer["work_macs"], _low(layer)) for layer in layers if layer["work_macs"] is not None]
    total = sum(macs for macs, _ in work)
    return f"{sum(macs for macs, low in work if low) / total:.1%}" if total else ""


def _layers(calibration: Mapping[str, Any]) -> Iterator[str]:
    for component, layers in _layer_rows(calibration).items():
        at_output = any(layer["output_sqnr_db"] is not None for layer in layers)
        figure = "output_sqnr_db" if at_output else "sqnr_db"
        known = [layer for layer in layers if layer[figure] is not None]
        if not known:
            continue
        drawn = [
            (row["name"], row[figure], f"{row[figure]:.1f} dB", "low" if _low(row) else "kept")
            for row in sorted(known, key=lambda layer: (layer[figure], layer["name"]))
        ]
        full = max(_CLEAR_DB, drawn[-1][1])
        body = bars(drawn[:LAYERS], full=full)
        if len(drawn) > LAYERS:
            body += details(f"{len(drawn) - LAYERS} more", bars(drawn[LAYERS:], full=full))
        where = f"the output of {component}" if at_output else "its own output"
        lead = f"Signal over error in {where} where this layer alone is rounded, worst first. Grey: back in float."
        yield section(f"Layers of {component}", lead, body)


def _drift(calibration: Mapping[str, Any]) -> Iterator[str]:
    """The tensors whose largest magnitude changes most over the schedule."""
    for component, row in calibration.get("components", {}).items():
        seen = [place for place, calls in enumerate(row["calls"]) if calls]
        ranges = {
            name: [tensor["largest"][place] for place in seen]
            for name, tensor in row["tensors"].items()
            if len(seen) > 1 and min(tensor["largest"][place] for place in seen) > 0
        }
        worst = sorted(ranges, key=lambda name: (-_drift_of(ranges[name]), name))[:DRIFTING]
        if worst:
            body = heat(
                [
                    (row["tensors"][name].get("layer", name), ranges[name], f"x{_drift_of(ranges[name]):.1f}")
                    for name in worst
                ],
                ends=("clean end", "noisy end"),
            )
            lead = (
                "The largest magnitude, before smoothing, that a layer reads in each part of the schedule: those that "
                "drift most. One scale serves all parts: where the row is pale, few of its levels are in use."
            )
            yield section(f"Ranges over time, {component}", lead, body)


def _drift_of(largest: Sequence[float]) -> float:
    return max(largest) / min(largest)


def _float(calibration: Mapping[str, Any]) -> Iterator[str]:
    for component, row in calibration.get("components", {}).items():
        lines = []
        for group in row["float"]:
            names = details("names", f"<code>{escape(', '.join(group['operators']))}</code>")
            count = number(str(len(group["operators"])))
            lines.append(f"<tr><td>{escape(group['reason'])}</td>{count}<td>{names}</td></tr>")
        lead = f"{len(row['quantised'])} operators are quantised; these are not. {_budget(row.get('budget'))}"
        head = '<tr><th>why</th><th class="n">operators</th><th></th></tr>'
        yield section(f"What stayed float in {component}", lead, f"<table>{head}{''.join(lines)}</table>")


def _budget(budget: Mapping[str, Any] | None) -> str:
    """What a search for a quality returned to float, and what that won and cost."""
    if not budget or not budget["returned"]:
        return ""
    ratio, size = budget["sqnr_db"], budget["bytes"]
    return (
        f"The search returned {len(budget['returned'])} of them: {ratio['before']:.1f} to {ratio['after']:.1f} dB, "
        f"{size['before'] / 1e6:.1f} to {size['after'] / 1e6:.1f} MB, {budget['work_returned']:.1%} of the work."
    )


def _recipe(calibration: Mapping[str, Any]) -> Iterator[str]:
    if not calibration:
        return
    rows = {key: value for group in ("policy", "recipe", "tools") for key, value in calibration[group].items()}
    yield section("How it was calibrated", "Policy, runs and versions.", facts(rows))


def _layer_rows(calibration: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The measured layers by component; a component whose layers were not measured is left out."""
    components = calibration.get("components", {})
    return {name: row["layers"] for name, row in components.items() if row.get("layers")}


def _low(layer: Mapping[str, Any]) -> bool:
    return bool(layer["precision"] != "float")
