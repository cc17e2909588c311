"""Checkpoint to bundle: one component after the other, beside the target, renamed when all of it is there."""

import importlib.metadata
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import latentrt
from latentrt.bundle import FORMAT, FORMAT_VERSION, Bundle
from latentrt.errors import BundleError, GateError
from latentrt.export.bundles.derived import component_record
from latentrt.export.bundles.step_graphs import step_graph_records
from latentrt.export.checkpoint.family import read_family, scheduler_config
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.checkpoint.memory import check_memory, give_back
from latentrt.export.checkpoint.own_scheduler import compare_with_own
from latentrt.export.controlnets.controlnet import ControlNet, check_together
from latentrt.export.controlnets.kinds import PLACES
from latentrt.export.convert.bake import bake_and_convert
from latentrt.export.convert.precision import FLOAT32, check_effort, parse_precision
from latentrt.export.graphs.changes import StepChanges
from latentrt.export.graphs.components import ComponentSpec, component_specs
from latentrt.export.graphs.onnx_from_torch import OPSET, export_graph
from latentrt.export.graphs.preview import fit_preview
from latentrt.export.parity.components import compare, reference_runs
from latentrt.export.parity.gates import MIN_SQNR_DB
from latentrt.export.parity.torch.pooling import record_pooling, too_costly
from latentrt.export.passes.pooling import check_poolable
from latentrt.export.references.pooling import pooled_attention
from latentrt.export.staging import (
    ExportProgress,
    check_target,
    complete,
    describe_files,
    making,
    move_into_place,
    rejected_folder,
    remove_bundle,
    reserved,
    scratch_folder,
    write_manifest,
)
from latentrt.family import Family
from latentrt.lora import Lora

log = logging.getLogger(__name__)

UNCHANGED = StepChanges()
TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")


def export_bundle(
    checkpoint: Checkpoint,
    output: Path,
    *,
    family: Family | None = None,
    controlnets: Sequence[ControlNet] = (),
    shallow_layers: int | None = None,
    pool_attention: bool = False,
    min_sqnr: float | None = None,
    check: bool = True,
    overwrite: bool = False,
    progress: Callable[[ExportProgress], None] = lambda _: None,
    status: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Exports a checkpoint in float32 and returns the finished bundle.

    The work is done in `output` + `.part`; a run that was interrupted continues there with the components that
    are missing. A bundle whose parity gate fails is kept as `output` + `.rejected`.

    Args:
        output: the bundle's directory; must not exist unless `overwrite`.
        family: its row; None reads it from the checkpoint.
        controlnets: for its denoiser.
        shallow_layers: for step caching, how many of the denoiser's outermost layers shallow calls compute
            (`latentrt.export.passes.features.add_features`); None is without.
        pool_attention: pool keys and values of the denoiser's largest self-attentions
            (`latentrt.export.passes.pooling`), and measure what that costs.
        min_sqnr: dB that the network with pooled attention must keep, in each branch; None is 25.
        check: compare every component with torch through ONNX Runtime and write the result to the manifest; a step
            with pooled attention with torch that pools as well.
        status: called with a line before each piece of what pooled attention is judged by.

    Raises:
        BundleError: there is something else at `output`.
        CheckpointError: a checkpoint or a ControlNet that cannot be exported, or that do not belong together.
        EnvironmentLacks: the disk is full or not writable, or a part does not fit into memory; `InUseError`, another
            process makes a bundle there.
        RequestError: pooled attention of a denoiser that has none to pool.
        GateError: a component is not equal to torch's, or pooled attention costs more than `min_sqnr` allows.
    """
    check_target(output, overwrite=overwrite)  # before anything is read
    family = read_family(checkpoint) if family is None else family
    specs = component_specs(checkpoint, family)
    if pool_attention:
        check_poolable(checkpoint.network)
    _check_parts(checkpoint, family, specs, controlnets)
    own = compare_with_own(scheduler_config(checkpoint), family.noise, steps=family.defaults.steps)
    if own.differs is not None and family.defaults.sampler == own.sampler:
        log.warning("%s", own.text)
    with making(output, overwrite=overwrite) as staging:
        source = {"files": checkpoint.fingerprint(), "tools": _tool_versions(), "parity": check}
        writers = {spec.name: partial(_export_component, spec, staging, check=check) for spec in specs}
        writers |= {net.component: partial(_export_control, net, family, staging, check=check) for net in controlnets}
        origins = {net.name: net.provenance() for net in controlnets}
        sources: dict[str, dict[str, Any]] = dict.fromkeys(writers, source)
        sources |= {net.component: {**source, **origins[net.name]} for net in controlnets}
        changes = StepChanges(shallow_layers, pool_attention)
        if changes != UNCHANGED:
            writers["step"] = partial(writers["step"], changes=changes)
            sources["step"] = {**source, **asdict(changes)}
        records = complete(staging, sources, lambda name: writers[name](), progress=progress)
        records |= step_graph_records(staging, records)
        _write_manifest(checkpoint, family, records, {**source, "scheduler": own.row()}, staging, origins)
        failed = [row for record in records.values() for row in record.get("parity", []) if not row["passed"]]
        if failed:
            raise _rejection(failed, move_into_place(staging, rejected_folder(output)))
        if pool_attention and check:
            costly = record_pooling(checkpoint, Bundle.open(staging), controlnets, min_sqnr=min_sqnr, status=status)
            if costly:
                raise too_costly(costly, move_into_place(staging, rejected_folder(output)))
        return Bundle.open(move_into_place(staging, output))


def _check_parts(
    checkpoint: Checkpoint, family: Family, specs: Sequence[ComponentSpec], controlnets: Sequence[ControlNet]
) -> None:
    """Raises what stands against an export before anything of gigabytes is read."""
    for net in controlnets:
        net.check(family, checkpoint.network, PLACES[checkpoint.network](checkpoint.config(checkpoint.network)))
    check_together({}, controlnets)
    optional = [each.component for each in family.text_encoders if each.optional]
    check_memory(checkpoint, dict.fromkeys(spec.part for spec in specs), optional=optional)


def _rejection(failed: Sequence[Mapping[str, Any]], rejected: Path) -> GateError:
    return GateError(
        f"{failed[0]['component']} differs from torch by {failed[0]['worst']:.2e} in {failed[0]['case']}",
        expected=f"at most {failed[0]['limit']:.0e}",
        hint=f"{len(failed)} comparisons failed; the bundle is kept as {rejected}",
    )


def export_at_precision(
    checkpoint: Checkpoint,
    output: Path,
    *,
    precision: str,
    family: Family | None = None,
    controlnets: Sequence[ControlNet] = (),
    shallow_layers: int | None = None,
    pool_attention: bool = False,
    min_sqnr: float | None = None,
    range_check: str = "quick",
    check: bool = True,
    overwrite: bool = False,
    lora: Sequence[Lora] = (),
    progress: Callable[[ExportProgress], None] = lambda _: None,
    status: Callable[[str], None] = lambda _: None,
) -> tuple[Bundle, list[dict[str, Any]]]:
    """Exports in float32 and converts that bundle, which lies in `output` + `.part` meanwhile.

    Args:
        precision: as `latentrt.export.convert.precision.parse_precision` takes it; `fp32` converts nothing.
        range_check: as `convert_bundle` takes it.
        lora: merged into the float32 weights.
        The others: as `export_bundle` takes them.

    Returns:
        The bundle, and how its float32 form compared with torch.

    Raises:
        As `export_bundle` and `convert_bundle`.
    """
    family = read_family(checkpoint) if family is None else family
    names = [spec.name for spec in component_specs(checkpoint, family)]
    names += [net.component for net in controlnets]
    chosen = parse_precision(precision, names)
    check_effort(range_check)
    export = partial(
        export_bundle,
        checkpoint,
        family=family,
        controlnets=controlnets,
        shallow_layers=shallow_layers,
        pool_attention=pool_attention,
        min_sqnr=min_sqnr,
        check=check,
        progress=progress,
        status=status,
    )
    changes = StepChanges(shallow_layers, pool_attention)
    if set(chosen.values()) == {FLOAT32} and not lora:
        bundle = export(output, overwrite=overwrite)
        return bundle, bundle.manifest["parity"]
    with reserved(output, overwrite=overwrite):
        scratch = scratch_folder(output, FLOAT32)
        whole = _float32_bundle(checkpoint, family, scratch, controlnets, check, changes, min_sqnr, export)
        bundle = bake_and_convert(
            whole,
            output,
            lora=lora,
            precision=chosen,
            range_check=range_check,
            overwrite=overwrite,
            progress=progress,
            status=status,
        )
    return bundle, whole.manifest["parity"]


def _float32_bundle(
    checkpoint: Checkpoint,
    family: Family,
    path: Path,
    controlnets: Sequence[ControlNet],
    check: bool,
    changes: StepChanges,
    min_sqnr: float | None,
    export: Callable[..., Bundle],
) -> Bundle:
    """The float32 bundle that an interrupted run left at `path`, or a new one."""
    try:
        found = Bundle.open(path)
    except BundleError:  # none, or what is left of one
        remove_bundle(path)
    else:
        provenance = found.section("provenance")
        same = (provenance["checkpoint"]["sha256"], provenance["tools"], found.manifest.get("controlnets", {})) == (
            checkpoint.fingerprint(),
            _tool_versions(),
            {net.name: net.provenance() for net in controlnets},
        )
        made = StepChanges.of(found.manifest["components"]["step"])
        gate = MIN_SQNR_DB if min_sqnr is None else min_sqnr
        judged = (found.section("pooling") or {}).get("exam", {"min_sqnr": gate})["min_sqnr"]
        if same and (found.family, bool(found.manifest["parity"]), made, judged) == (family, check, changes, gate):
            return found
    return export(path, overwrite=True)


def _export_component(
    spec: ComponentSpec, staging: Path, *, check: bool, changes: StepChanges = UNCHANGED
) -> dict[str, Any]:
    """Writes one component's graph, weights and map of keys, and returns its record."""
    path = staging / f"{spec.name}.onnx"
    part = spec.load()
    module = spec.wrap(part)
    graph = export_graph(
        module,
        inputs=spec.inputs,
        outputs=spec.outputs,
        path=path,
        prefix=spec.prefix,
        finish=changes.apply,
    )
    channels = spec.inputs["latent"].example.shape[1] if spec.name == "decoder" else None
    preview = None if channels is None else fit_preview(module, channels=channels)
    with pooled_attention(part) if changes.pooled else nullcontext():
        runs = reference_runs(spec.refer(part), spec.inputs) if check else []
    del module, part
    give_back()  # the engine below needs the memory
    row = graph.describe(path, part=spec.part) | changes.row(path)
    parity = compare(spec.name, graph.file(spec.name, path), runs) if runs else []
    give_back()  # and so does the next component
    return component_record(row | {"parity": [each.row(spec.name) for each in parity]}, staging) | {"preview": preview}


def _export_control(net: ControlNet, family: Family, staging: Path, *, check: bool) -> dict[str, Any]:
    return component_record(net.write(staging, family, check=check), staging)


def _write_tokenizers(checkpoint: Checkpoint, family: Family, staging: Path) -> list[str]:
    """Those of the text encoders that the checkpoint has; returns their files."""
    names = [each.tokenizer for each in family.text_encoders if each.component in checkpoint.parts]
    for path in (staging / name for name in names):
        path.parent.mkdir(exist_ok=True)
        path.write_text(checkpoint.tokenizer(path.parent.name).backend_tokenizer.to_str(), encoding="utf-8")
    return names


def _write_manifest(
    checkpoint: Checkpoint,
    family: Family,
    records: Mapping[str, dict[str, Any]],
    source: Mapping[str, Any],
    staging: Path,
    controlnets: Mapping[str, Any],
) -> None:
    files = {name: entry for record in records.values() for name, entry in record["files"].items()}
    files |= describe_files(staging, _write_tokenizers(checkpoint, family, staging))
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "family": family.to_dict(),
        "components": {name: record["row"] for name, record in records.items()},
        "preview": records["decoder"]["preview"],
        "provenance": {
            "checkpoint": {"source": checkpoint.source, "sha256": source["files"]},
            "tools": source["tools"],
            "scheduler": source["scheduler"],
            "opset": OPSET,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        "controlnets": dict(controlnets),
        "calibration": None,
        **({"pooling": {"judged": []}} if any("pooled_attention" in each["row"] for each in records.values()) else {}),
        "parity": [row for record in records.values() for row in record.get("parity", [])],
        "files": dict(sorted(files.items())),
    }
    write_manifest(staging, manifest)


def _tool_versions() -> dict[str, str]:
    versions = {tool: importlib.metadata.version(tool) for tool in TOOLS}
    return {"latentrt": latentrt.__version__, "python": platform.python_version(), **versions}
