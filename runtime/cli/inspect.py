"""`latentrt inspect BUNDLE`: what a bundle holds, what it can do, where it comes from."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import latentrt
from latentrt.backends import BACKENDS
from latentrt.backends.host_memory import free_bytes
from latentrt.bundle import Bundle, Component
from latentrt.cli.arguments import add_memory, count, gigabytes, size
from latentrt.cli.command import Command
from latentrt.cli.compiled import compiled_text, describe_compiled
from latentrt.cli.console import Bar, Console, megabytes, table
from latentrt.cli.memory import (
    describe_engines,
    describe_host,
    describe_outdated,
    engines_text,
    host_text,
    outdated_text,
)
from latentrt.cli.rewritten import describe_rewritten_graphs, rewritten_text
from latentrt.errors import RequestError
from latentrt.family import Family
from latentrt.loading import loop_graphs
from latentrt.samplers import step_table


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory made by `latentrt export`")
    parser.add_argument("--verify", action="store_true", help="compare the sha256 of every file with the manifest")
    group = parser.add_argument_group("memory: of the machine, and of a GPU with TensorRT engines")
    group.add_argument("--size", type=size, metavar="WIDTHxHEIGHT", help="in pixels; default: the bundle's")
    group.add_argument("--batch", type=count, default=1, metavar="N", help="images at a time; default: 1")
    group.add_argument("--vram", type=gigabytes, default=8.0, metavar="GB", help="memory of the GPU; default: 8")
    add_memory(group, "of the machine; default: what is free")
    group.add_argument("--cache-dir", type=Path, metavar="DIR", help="look for engines there as well")


def run(options: argparse.Namespace, console: Console) -> int:
    bundle = Bundle.open(options.bundle)
    if options.verify:
        _verify(bundle, console)
    folders = [bundle.root / "engines", *([options.cache_dir] if options.cache_dir is not None else [])]
    picture = options.size if options.size is not None else bundle.family.defaults.size
    engines = describe_engines(bundle, folders, size=picture, batch=options.batch, vram_gb=options.vram)
    memory = options.memory if options.memory is not None else free_bytes()
    outdated = describe_outdated(bundle, folders)
    document = {
        **describe(bundle, verified=options.verify),
        "memory": describe_host(bundle, size=picture, batch=options.batch, memory=memory),
        "engines": engines,
        "outdated_engines": outdated,
        "limits": [limit for row in BACKENDS for limit in row.limits(loop_graphs(bundle))],
        "rewritten_graphs": describe_rewritten_graphs(bundle, folders),
        "compiled_graphs": describe_compiled(bundle, options.cache_dir),
    }
    console.result(_text(bundle, document), document)
    return 0


COMMAND = Command(help="show what a bundle holds, can do and comes from", configure=configure, run=run)


def describe(bundle: Bundle, *, verified: bool = False) -> dict[str, Any]:
    """Everything that the command shows but for engines, as JSON values; sizes in bytes."""
    family, files = bundle.family, bundle.manifest["files"]
    return {
        "path": str(bundle.root),
        "format_version": bundle.manifest["format_version"],
        "family": family.name,
        "prediction_type": family.noise.prediction_type,
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "files": len(files),
        "verified": verified,
        "components": {name: _component(part, bundle) for name, part in bundle.components.items()},
        "size_range_px": list(family.size_range_px),
        "size_multiple_px": family.multiple_px,
        "defaults": asdict(family.defaults),
        "samplers": fitting_samplers(family),
        "schedules": list(latentrt.schedule_names()),
        "provenance": bundle.section("provenance"),
        "pooling": bundle.section("pooling"),
        "parity": _parity(bundle.section("parity") or []),
    }


def fitting_samplers(family: Family) -> list[str]:
    """The samplers that take this family's noise schedule."""
    return [name for name in latentrt.sampler_names() if _fits(name, family)]


def _fits(sampler: str, family: Family) -> bool:
    try:
        step_table(family.noise, sampler=sampler, steps=family.defaults.steps)
    except RequestError:
        return False
    return True


def _component(part: Component, bundle: Bundle) -> dict[str, Any]:
    return {
        "precision": part.precision,
        "parameters": part.parameters,
        "stored": dict(part.stored),
        "pooled_attention": list(part.pooled_attention),
        "bytes": bundle.stored_bytes(part.name),
        "inputs": {name: {"dtype": spec.dtype, "dims": part.dims[name]} for name, spec in part.graph.inputs.items()},
        "outputs": {name: {"dtype": spec.dtype, "dims": part.dims[name]} for name, spec in part.graph.outputs.items()},
    }


def _parity(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The case nearest its limit, of each component and backend."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["component"], row["backend"]), []).append(row)
    return [
        {
            "component": component,
            "backend": backend,
            "cases": len(group),
            "passed": sum(row["passed"] for row in group),
            **{key: max(group, key=_share)[key] for key in ("worst", "limit", "case")},
        }
        for (component, backend), group in groups.items()
    ]


def _share(row: Mapping[str, Any]) -> float:
    """Of the limit; the worst of those that allow nothing is what differs at all."""
    worst, limit = float(row["worst"]), float(row["limit"])
    return worst / limit if limit else worst and math.inf


def _verify(bundle: Bundle, console: Console) -> None:
    names = list(bundle.manifest["files"])
    bar = Bar(console, "verifying", total=len(names))
    bundle.verify(progress=lambda name: bar.update(names.index(name), text=name))


def _text(bundle: Bundle, facts: Mapping[str, Any]) -> str:
    whole = "every file as the manifest says" if facts["verified"] else "sizes as the manifest says"
    lines = [
        f"{facts['path']}: {facts['family']}, {megabytes(facts['bytes'])} in {facts['files']} files ({whole})",
        "",
        _components_text(facts["components"]),
        "",
        *_use_text(facts),
        "",
        *_provenance_text(facts["provenance"]),
        *_parity_text(facts["parity"]),
        *filter(None, [pooling_text(bundle)]),
        *(f"limits      {limit}" for limit in facts["limits"]),
        *host_text(facts["memory"]),
        *engines_text(facts["engines"]),
        *outdated_text(bundle, facts["outdated_engines"]),
        *rewritten_text(bundle, facts["rewritten_graphs"]),
        *compiled_text(bundle, facts["compiled_graphs"]),
    ]
    return "\n".join(lines)


def _components_text(components: Mapping[str, Any]) -> str:
    rows = [("component", "precision", "stored as", "parameters", "size")]
    for name, part in components.items():
        rows.append((name, part["precision"], _stored_text(part), f"{part['parameters']:,}", megabytes(part["bytes"])))
    head, *body = table(rows, left=3).splitlines()
    lines = [head]
    for line, part in zip(body, components.values(), strict=True):
        lines.append(line)
        for mark, side in (("in ", "inputs"), ("out", "outputs")):
            lines += [f"    {mark} {name}: {io['dtype']} {_dims(io['dims'])}" for name, io in part[side].items()]
    return "\n".join(lines)


def _stored_text(part: Mapping[str, Any]) -> str:
    """The types that hold more than a hundredth of the values, the largest share first."""
    stored: Mapping[str, int] = part["stored"]
    least = sum(stored.values()) / 100
    return " ".join(sorted((name for name, size in stored.items() if size > least), key=lambda name: -stored[name]))


def _dims(dims: Sequence[str | int]) -> str:
    return f"[{', '.join(map(str, dims))}]"


def pooling_text(bundle: Bundle) -> str:
    """What is approximated, and what that cost in float32 where it was judged; nothing where nothing is."""
    layers = bundle.component("step").pooled_attention
    if not layers:
        return ""
    rows = (bundle.section("pooling") or {}).get("judged", [])
    network = [row["value"] for row in rows if row["unit"] == "dB SQNR"]
    images = [row["value"] for row in rows if row["unit"] == "dB PSNR" and "median" in row["case"]]
    cost = "not judged as it is: run latentrt check"
    if network and images:
        cost = f"network {min(network):.1f} dB, images {min(images):.1f} dB"
    return f"pooled      keys and values of {len(layers)} self-attentions, 2x2, an approximation: {cost}"


def _use_text(facts: Mapping[str, Any]) -> list[str]:
    defaults, (low, high) = facts["defaults"], facts["size_range_px"]
    width, height = defaults["size"]
    return [
        f"sizes       {low} to {high} px, multiples of {facts['size_multiple_px']}; default {width}x{height}",
        f"defaults    {defaults['steps']} steps, guidance {defaults['guidance']:g}, {defaults['sampler']},"
        f" schedule {defaults['schedule']}",
        f"predicts    {facts['prediction_type']}",
        f"samplers    {' '.join(facts['samplers'])}",
        f"schedules   {' '.join(facts['schedules'])}",
    ]


def _provenance_text(provenance: Mapping[str, Any]) -> list[str]:
    tools = ", ".join(f"{tool} {version}" for tool, version in provenance["tools"].items())
    return [
        f"checkpoint  {provenance['checkpoint']['source']}",
        *_scheduler_text(provenance.get("scheduler")),
        f"exported    {provenance['created']}, opset {provenance['opset']}",
        f"by          {tools}",
    ]


def _scheduler_text(own: Mapping[str, Any] | None) -> list[str]:
    """What became of the checkpoint's own scheduler; older bundles do not say."""
    if own is None:
        return []
    near = "equals it" if own["differs"] is None else f"is the nearest, {own['differs']}"
    return [f"scheduler   {own['scheduler']}; {own['sampler']} {near}"]


def _parity_text(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    if not groups:
        return ["parity      not checked at export; run: latentrt check"]
    lines = [
        f"{g['component']} on {g['backend']}: {g['passed']} of {g['cases']} passed,"
        f" nearest to its limit {g['worst']:.1e} of {g['limit']:.0e} ({g['case']})"
        for g in groups
    ]
    return [f"{'parity' if i == 0 else '':<12}{line}" for i, line in enumerate(lines)]
