"""The document of a check as text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from latentrt.bench.figures import tail, tail_name
from latentrt.cli.console import table

STAGES = ("text_ms", "step_ms", "decode_ms", "total_ms")


def report(document: Mapping[str, Any]) -> str:
    """Tables of every section, and last what was not done."""
    sections = document["sections"]
    blocks = [_machine(document)]
    blocks += [_parity(sections[name].get("runs", [])) for name in ("toys", "parity", "full-size") if name in sections]
    for workload in sections.get("latency", {}).get("workloads", []):
        blocks.append(_latency(workload))
    if "rtx-probe" in sections:
        blocks.append(_probe(sections["rtx-probe"].get("variants", [])))
    blocks.append(_failures(sections))
    return "\n\n".join(block for block in blocks if block)


def failures(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(what, why) of everything in a document that did not come to its end."""
    if isinstance(value, Mapping):
        name = value.get("name", name)
        if value.get("status") == "failed":
            error = value["error"]
            yield name, error["found"] + (f"; {error['hint']}" if error["hint"] else "")
        for key, child in value.items():
            yield from failures(child, key)
    elif isinstance(value, list):
        for child in value:
            yield from failures(child, name)


def _machine(document: Mapping[str, Any]) -> str:
    survey, where = document["survey"], document["provenance"]
    card = survey["card"]
    lines = [f"{where['date']}, LatentRT {where['versions']['latentrt']}"]
    if card is None:
        lines.append(f"no GPU; {where['cpu']}")
    else:
        peak = "peak not in the table" if card["peak_tflops"] is None else f"peak {card['peak_tflops']:.0f} TFLOP/s"
        lines.append(f"{card['name']}, {card['memory_gb']} GB, compute capability {card['compute_capability']}, {peak}")
    for name, variant in survey["variants"].items():
        state = variant["lacks"] if variant["lacks"] is not None else "found"
        lines.append(f"  {name:<13} {variant['version'] or '-':<12} {state}")
    if (note := survey.get("slimmed_provider")) is not None:
        lines.append(f"  onnxruntime's CUDA provider is a slimmed one: code for sm_{note['architecture']} alone")
    return "\n".join(lines)


def _parity(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = [("parity", "cases", "worst", "limit", "unit", "")]
    for run in runs:
        for subject, group in _by_subject(run.get("rows", [])):
            worst = min(group, key=_margin)
            judged = worst["limit"] is not None
            sign = ">=" if worst["higher_is_better"] else "<="
            limit = f"{sign} {worst['limit']:.3g}" if judged else "-"
            verdict = ("ok" if all(row["passed"] for row in group) else "FAILED") if judged else ""
            figure = worst["value"] if isinstance(worst["value"], str) else f"{worst['value']:.3g}"
            rows.append((f"{run['name']}: {subject}", str(len(group)), figure, limit, worst["unit"], verdict))
    return table(rows) if len(rows) > 1 else ""


def _by_subject(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    groups: dict[tuple[str, str, Any], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["subject"], row["unit"], row["limit"]), []).append(row)
    return [(subject, group) for (subject, _, _), group in groups.items()]


def _margin(row: Mapping[str, Any]) -> float:
    """Small for a case that is bad."""
    value = float(row["value"])
    return value if row["higher_is_better"] else -value


def _latency(part: Mapping[str, Any]) -> str:
    work, results = part["workload"], [row for row in part["results"] if "step_ms" in row]
    if not results:
        return ""
    peers = [row["name"] for row in results if row["name"].startswith("torch")]
    heads = ["", *(f"{stage.removesuffix('_ms')} ms" for stage in STAGES), "step TFLOP/s", "of peak", "GPU MB"]
    rows = [[*heads, *(f"x {name}" for name in peers)]]
    for row in results:
        cells = [f"{row[stage]['median']:.2f} ({tail(row[stage]):.2f})" for stage in STAGES]
        cells += [_number(row.get("step_tflops"), ".3g"), _percent(row.get("step_share_of_peak"))]
        cells.append(_number(row.get("gpu_memory_mb"), ".0f"))
        against = row.get("times_as_fast_as", {})
        cells += [_number(against[name]["step_speedup"] if name in against else None, ".2f") for name in peers]
        rows.append([row["name"], *cells])
    width, height = work["size"]
    runs = min(len(row["total_ms"]["samples"]) for row in results)
    beyond = tail_name(row[stage] for row in results for stage in STAGES)
    note = (
        f"median ({beyond}) of {runs} runs or more, by turns: {width}x{height}, batch {work['batch']},"
        f" {work['steps']} steps, guidance {work['guidance']:g}; x: a step, times as fast"
    )
    return f"{table(rows)}\n{note}"


def _probe(variants: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for variant in variants:
        for name, stage in variant.get("result", {}).get("stages", {}).items():
            says = "" if stage["says"] is None else f"  {stage['says']}"
            lines.append(f"{variant['name']}: {name} {'worked' if stage['worked'] else 'FAILED'}{says}")
    return "\n".join(lines)


def _failures(sections: Mapping[str, Any]) -> str:
    lines = [f"  {what}: {why}" for what, why in failures(sections)]
    return "\n".join(["not done:", *lines]) if lines else ""


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
