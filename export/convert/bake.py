"""LoRAs into a bundle for good: for engines that are built ahead of time, and for bundles that are handed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from latentrt.bundle import Bundle
from latentrt.errors import RequestError
from latentrt.export.bundles.derived import derive_bundle
from latentrt.export.bundles.step_cache import add_step_cache
from latentrt.export.bundles.step_graphs import MADE_OF_STEP
from latentrt.export.convert.merged import write_merged
from latentrt.export.convert.precision import FLOAT32, convert_bundle
from latentrt.export.staging import ExportProgress, reserved, scratch_folder
from latentrt.graph import GraphFile
from latentrt.lora import Lora, lora_sha256, merge


def bake_lora(
    source: Bundle,
    output: Path,
    lora: Sequence[Lora],
    *,
    overwrite: bool = False,
    progress: Callable[[ExportProgress], None] = lambda _: None,
) -> Bundle:
    """Writes `source` with LoRAs merged into its weights, as `latentrt.load(..., lora=...)` merges them.

    Args:
        source: in any precision; it is only read.
        lora: at least one; the manifest's rows of the components that change name them.

    Raises:
        RequestError: a file that cannot be read or does not belong to the bundle, LoRAs that change nothing, or
            `output` is the source.
        BundleError: there is something else at `output`, or the bundle's weights cannot be changed.
        EnvironmentLacks: the disk is full or not writable.
    """
    merged = merge(source, lora)
    if not merged.graphs:
        raise RequestError("no LoRA with a scale other than 0", expected="one that changes the bundle")
    named = [{"name": Path(one.path).name, "sha256": lora_sha256(Path(one.path)), "scale": one.scale} for one in lora]
    return derive_bundle(
        source,
        output,
        writers={
            name: partial(_write, source, graph, named)
            for name, graph in merged.graphs.items()
            if name not in MADE_OF_STEP  # which follow from the step
        },
        options={"lora": named},
        fields=_unjudged(source),
        overwrite=overwrite,
        progress=progress,
    )


def bake_and_convert(
    source: Bundle,
    output: Path,
    *,
    lora: Sequence[Lora],
    precision: Mapping[str, str],
    range_check: str,
    shallow_layers: int | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[ExportProgress], None] = lambda _: None,
    status: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """`bake_lora`, then `convert_bundle` on the result, which lies in `output` + `.part` meanwhile: rounded once.

    Args:
        lora: none: only the second.
        precision: by component; none but `fp32`: only the first.
        shallow_layers: before both, `add_step_cache` with these; None is not at all.
        The others: as they take them.
    """
    changes = {name: value for name, value in precision.items() if value != FLOAT32}
    if shallow_layers is not None and not lora and not changes:
        return add_step_cache(source, output, layers=shallow_layers, overwrite=overwrite, progress=progress)
    if shallow_layers is None and lora and not changes:
        return bake_lora(source, output, lora, overwrite=overwrite, progress=progress)
    with reserved(output, overwrite=overwrite):
        merged = source
        if shallow_layers is not None:
            scratch = scratch_folder(output, "step-cache")
            merged = add_step_cache(source, scratch, layers=shallow_layers, overwrite=True, progress=progress)
        if lora and not changes:
            return bake_lora(merged, output, lora, overwrite=overwrite, progress=progress)
        if lora:
            merged = bake_lora(merged, scratch_folder(output, "lora"), lora, overwrite=True, progress=progress)
        return convert_bundle(
            merged,
            output,
            precision=precision,
            range_check=range_check,
            threads=threads,
            overwrite=overwrite,
            progress=progress,
            status=status,
        )


def _unjudged(source: Bundle) -> dict[str, Any]:
    """What was measured of a bundle that is an approximation says nothing of it with a LoRA."""
    sections = {name: source.section(name) for name in ("calibration", "pooling")}
    return {name: {**found, "judged": []} for name, found in sections.items() if found is not None}


def _write(source: Bundle, graph: GraphFile, named: Sequence[dict[str, Any]], staging: Path) -> dict[str, Any]:
    """Writes graph, weights and map of keys of one component; returns its row of the manifest."""
    row = source.manifest["components"][graph.component]
    stored = write_merged(graph, staging / row["graph"])
    (staging / row["keys"]).write_bytes((source.root / row["keys"]).read_bytes())
    return {**row, "stored": stored, "lora": [*row.get("lora", ()), *named]}
