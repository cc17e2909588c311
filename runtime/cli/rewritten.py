"""The graphs that were rewritten for ONNX Runtime on CUDA, for `latentrt inspect`."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from latentrt.backends.onnxruntime.cuda import BUILD_OPTIONS, describe_rewritten, outdated_rewritten, rewritten_graphs
from latentrt.bundle import Bundle
from latentrt.cli.console import megabytes


def describe_rewritten_graphs(bundle: Bundle, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """One row each, as JSON values; those that nothing here can run have a `reason`. Without onnxruntime all versions
    pass."""
    graphs = [part.graph for part in bundle.components.values()]
    digests = {(graph.component, graph.digest) for graph in graphs}
    version = _installed_version()
    rows = []
    for folder in dict.fromkeys(folders):
        shared = folder != bundle.root / "engines"
        outdated = list(outdated_rewritten(folder, graphs=graphs, version=version, shared=shared))
        bad = {found.path for found, _ in outdated}
        for found in rewritten_graphs(folder):
            if found.path not in bad and (found.record.component, found.record.source) in digests:
                rows.append(describe_rewritten(found))
        rows += [describe_rewritten(found, reason) for found, reason in outdated]
    return rows


def rewritten_text(bundle: Bundle, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a report on `describe_rewritten_graphs`."""
    good = [row for row in rows if "reason" not in row]
    lines = []
    for version in dict.fromkeys(row["onnxruntime"] for row in good):
        group = [row for row in good if row["onnxruntime"] == version]
        names, size = " ".join(row["component"] for row in group), sum(row["bytes"] for row in group)
        lines.append(f"graphs      for onnxruntime {version} on CUDA: {names}, {megabytes(size)} beside the weights")
    for reason in dict.fromkeys(row["reason"] for row in rows if "reason" in row):
        names = " ".join(dict.fromkeys(row["component"] for row in rows if row.get("reason") == reason))
        lines += [
            f"outdated    onnxruntime on CUDA: {names}: {reason}",
            f"            latentrt build {bundle.root} {BUILD_OPTIONS} --prune builds them anew and removes these",
        ]
    return lines


def _installed_version() -> str | None:
    for name in ("onnxruntime-gpu", "onnxruntime"):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None
