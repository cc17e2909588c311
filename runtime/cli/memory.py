"""The engines of a bundle and the GPU memory that they need, for `latentrt inspect`."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from latentrt.backends import backend_row
from latentrt.backends.host_memory import FIGURES, Call
from latentrt.backends.host_memory import estimate as estimate_host
from latentrt.backends.tensorrt.memory_estimate import Estimate, estimate
from latentrt.backends.tensorrt.records import MODULES, EngineRecord, built_engines, outdated_engines
from latentrt.bundle import SHALLOW, STEP_CONTROL, Bundle
from latentrt.cli.console import megabytes

_VARIANTS = tuple(MODULES)

Group = tuple[str, str, tuple[str, ...]]  # variant, version, GPUs


def describe_engines(
    bundle: Bundle, folders: Sequence[Path], *, size: tuple[int, int], batch: int, vram_gb: float
) -> list[dict[str, Any]]:
    """One row for each variant, version and set of GPUs: its engines, and what they need, as JSON values.

    Args:
        bundle: whose engines they are; those of other graphs are left out.
        vram_gb: memory of the GPU in 10^9 bytes.
    """
    return [
        {
            "backend": variant,
            "version": version,
            "gpus": list(gpus),
            "engines": [_engine(record) for record in records],
            "memory": {
                "size": list(size),
                "batch": batch,
                "vram_gb": vram_gb,
                **_figures(estimate(bundle, records, size=size, batch=batch), vram_gb),
                "controlled": [
                    {
                        "controls": list(names),
                        **_figures(estimate(bundle, records, size=size, batch=batch, controls=names), vram_gb),
                    }
                    for names in _together(bundle.controls)
                ],
                "cached": [
                    {
                        "controls": list(names),
                        **_figures(
                            estimate(bundle, records, size=size, batch=batch, controls=names, cached=True), vram_gb
                        ),
                    }
                    for names in _cached(bundle)
                ],
            },
        }
        for (variant, version, gpus), records in _groups(bundle, folders).items()
    ]


def describe_host(bundle: Bundle, *, size: tuple[int, int], batch: int, memory: int | None) -> list[dict[str, Any]]:
    """One row for each backend of the CPU that can run the bundle, and its arithmetic, as JSON values: what text to
    image needs with guidance, and the fastest way that so much memory in bytes holds; None: that is not known."""
    rows = []
    graphs = [part.graph for part in bundle.components.values()]
    for backend, compute in FIGURES:
        if backend_row(backend).cannot_run(graphs, device="cpu") is not None:
            continue
        found = estimate_host(bundle, Call(size=size, images=batch), backend=backend, compute=compute)
        fitting = None if memory is None else found.plan_for(memory)
        rows.append(
            {
                "backend": backend,
                "compute": compute,
                "size": list(size),
                "batch": batch,
                "memory": memory,
                "plans": {plan.name: plan.bytes for plan in found.plans},
                "fits_with": None if fitting is None else fitting.name,
            }
        )
    return rows


def host_text(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a report on `describe_host`."""
    lines: list[str] = []
    for row in rows:
        width, height = row["size"]
        needs = "; ".join(f"{name}: {megabytes(needed)}" for name, needed in row["plans"].items())
        verdict = ""
        if row["memory"] is not None:
            held = f"{row['memory'] / 1e9:.3g} GB"
            fits = row["fits_with"]
            verdict = f"does not fit {held}; " if fits is None else f"fits {held}, {fits}; "
        name = f"{row['backend']} {row['compute']}, {width}x{height}, batch {row['batch']}"
        lines.append(f"{'' if lines else 'memory':12}{name}: {verdict}{needs} (an estimate)")
    return lines


def describe_outdated(bundle: Bundle, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Engines that are of no use here any more, as JSON values. Those of a variant that is not installed are judged
    by their graphs alone."""
    graphs = [part.graph for part in bundle.components.values()]
    return [
        found.describe()
        for variant in _VARIANTS
        for folder in folders
        if (folder / variant).is_dir()
        for found in outdated_engines(
            folder,
            variant,
            graphs=graphs,
            version=_installed_version(variant),
            shared=folder != bundle.root / "engines",
        )
    ]


def outdated_text(bundle: Bundle, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a report on `describe_outdated`."""
    lines = []
    for backend, reason in dict.fromkeys((row["backend"], row["reason"]) for row in rows):
        group = [row for row in rows if (row["backend"], row["reason"]) == (backend, reason)]
        names = " ".join(dict.fromkeys(row["component"] for row in group))
        lines += [
            f"outdated    {backend}: {names}, {megabytes(sum(row['bytes'] for row in group))}: {reason}",
            f"            latentrt build {bundle.root} --backend {backend} --prune removes what is outdated",
        ]
    return lines


def _installed_version(variant: str) -> str | None:
    try:
        return str(import_module(MODULES[variant]).__version__)
    except (ImportError, OSError, AttributeError):  # the last: a module of that name that is another
        return None


def engines_text(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a report on `describe_engines`."""
    lines = []
    for group in groups:
        total = sum(engine["bytes"] for engine in group["engines"])
        names = " ".join(dict.fromkeys(engine["component"] for engine in group["engines"]))
        built = f"{group['backend']} {group['version']} for {' '.join(group['gpus'])}"
        lines += [f"engines     {built}: {names}, {megabytes(total)}", *_memory_text(group["memory"])]
    return lines


def _groups(bundle: Bundle, folders: Sequence[Path]) -> dict[Group, list[EngineRecord]]:
    digests = {(name, part.graph.digest) for name, part in bundle.components.items()}
    groups: dict[Group, list[EngineRecord]] = {}
    for variant in _VARIANTS:
        for folder in folders:
            for built in built_engines(folder, variant):
                record = built.record
                if (record.component, record.graph) in digests:
                    groups.setdefault((record.variant, record.version, record.gpus), []).append(record)
    return groups


def _engine(record: EngineRecord) -> dict[str, Any]:
    return {
        "component": record.component,
        "precision": record.precision,
        "options": dict(record.options),
        "bytes": record.plan_bytes,
        "weights_bytes": record.weights_bytes,
        "activation_bytes": record.activation_bytes,
        "layers": record.layers,
        "types": dict(record.types),
    }


def _together(controls: Sequence[str]) -> list[Sequence[str]]:
    """The ControlNets of a run: each alone, and all."""
    return [(name,) for name in controls] + ([controls] if len(controls) > 1 else [])


def _cached(bundle: Bundle) -> list[Sequence[str]]:
    """The ControlNets of runs with step caching: none, each alone, and all."""
    plain: list[Sequence[str]] = [()] if SHALLOW["step"] in bundle.components else []
    return plain + (_together(bundle.controls) if SHALLOW[STEP_CONTROL] in bundle.components else [])


def _figures(found: Estimate | str, vram_gb: float) -> dict[str, Any]:
    if isinstance(found, str):
        return {"missing": found}
    fitting = found.plan_for(int(vram_gb * 1e9))
    return {
        "weights_bytes": dict(found.weights),
        "activation_bytes": found.activation,
        "buffers_bytes": found.buffers,
        "allowance_bytes": found.allowance,
        "plans": {plan.name: plan.bytes for plan in found.plans},
        "fits_with": None if fitting is None else fitting.name,
    }


def _memory_text(memory: Mapping[str, Any]) -> list[str]:
    width, height = memory["size"]
    lines = _figures_text(f"{width}x{height}, batch {memory['batch']}", memory, memory["vram_gb"])
    for each in memory.get("controlled", ()):  # results that a benchmark kept may be older
        lines += _figures_text(f"with control {', '.join(each['controls'])}", each, memory["vram_gb"])
    for each in memory.get("cached", ()):
        words = ["with step caching", *([f"control {', '.join(each['controls'])}"] if each["controls"] else [])]
        lines += _figures_text(" and ".join(words), each, memory["vram_gb"])
    return [f"{'GPU memory' if number == 0 else '':12}{line}" for number, line in enumerate(lines)]


def _figures_text(asked: str, figures: Mapping[str, Any], vram_gb: float) -> list[str]:
    if "missing" in figures:
        return [f"{asked}: no estimate, {figures['missing']}"]
    fits = figures["fits_with"]
    verdict = f"does not fit {vram_gb:g} GB" if fits is None else f"fits {vram_gb:g} GB: {fits}"
    parts = " + ".join(
        f"{word} {megabytes(size)}"
        for word, size in (
            ("weights", sum(figures["weights_bytes"].values())),
            ("activations", figures["activation_bytes"]),
            ("buffers", figures["buffers_bytes"]),
            ("allowance", figures["allowance_bytes"]),
        )
    )
    plans = [f"{name}: {megabytes(size)}" for name, size in figures["plans"].items()]
    return [f"{asked}: {verdict} (an estimate)", parts, *plans]
