"""Checkpoint to bundle: one component after the other, beside the target, renamed when all of it is there."""

import errno
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

import latentrt
from latentrt.bundle import FORMAT, FORMAT_VERSION, MANIFEST, Bundle, sha256_file
from latentrt.errors import BundleError, EnvironmentLacks, GateError
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.components import ComponentSpec, component_specs
from latentrt.export.family import read_family
from latentrt.export.onnx_from_torch import OPSET, Graph, export_graph
from latentrt.export.parity.components import Parity, compare, reference_runs
from latentrt.export.preview import fit_preview
from latentrt.family import Family

TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")


@dataclass(frozen=True, slots=True)
class Progress:
    """One component: beginning (`seconds` None), done, or found done by an earlier run (`resumed`)."""

    component: str
    position: int
    count: int
    seconds: float | None = None
    bytes: int = 0
    resumed: bool = False


def export_bundle(
    checkpoint: Checkpoint,
    output: Path,
    *,
    check: bool = True,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Bundle:
    """Exports a checkpoint in float32 and returns the finished bundle.

    The work is done in `output` + `.part`; a run that was interrupted continues there with the components that
    are missing. A bundle whose parity gate fails is kept as `output` + `.rejected`.

    Args:
        checkpoint: what to export.
        output: the bundle's directory; must not exist unless `overwrite`.
        check: compare every component with torch through ONNX Runtime and write the result to the manifest.
        overwrite: replace a bundle that is there.
        progress: called at the beginning and at the end of each component.

    Raises:
        BundleError: there is something else at `output`.
        CheckpointError: a checkpoint that cannot be exported.
        EnvironmentLacks: the disk is full or not writable.
        GateError: a component is not equal to torch's.
    """
    _check_target(output, overwrite)
    family = read_family(checkpoint)
    staging = output.with_name(output.name + ".part")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        source = {"files": checkpoint.fingerprint(), "tools": _tool_versions(), "parity": check}
        specs = component_specs(checkpoint, family)
        records = {}
        for position, spec in enumerate(specs):
            event = (spec.name, position, len(specs))
            if (record := _finished(staging, spec, source)) is not None:
                progress(Progress(*event, seconds=0.0, bytes=_graph_bytes(staging, spec.name), resumed=True))
            else:
                progress(Progress(*event))
                began = time.perf_counter()
                record = _export_component(spec, staging, source, check=check)
                seconds = time.perf_counter() - began
                progress(Progress(*event, seconds=seconds, bytes=_graph_bytes(staging, spec.name)))
            records[spec.name] = record
        _write_tokenizers(checkpoint, family, staging)
        _write_manifest(checkpoint, family, records, source, staging)
    except OSError as error:
        raise _storage_error(error, staging) from error
    failed = [row for record in records.values() for row in record["parity"] if not row["passed"]]
    if failed:
        rejected = _replace(staging, output.with_name(output.name + ".rejected"))
        raise GateError(
            f"{failed[0]['component']} differs from torch by {failed[0]['worst']:.2e} in {failed[0]['case']}",
            expected=f"at most {failed[0]['limit']:.0e}",
            hint=f"{len(failed)} comparisons failed; the bundle is kept as {rejected}",
        )
    return Bundle.open(_replace(staging, output))


def _check_target(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not (output / MANIFEST).is_file():
        raise BundleError(f"{output} exists and is no bundle", expected="a new path", hint="choose another")
    if not overwrite:
        raise BundleError(
            f"a bundle is at {output} already", expected="a new path", hint="choose another, or pass --overwrite"
        )


def _export_component(spec: ComponentSpec, staging: Path, source: Mapping[str, Any], *, check: bool) -> dict[str, Any]:
    """Writes one component's graph, weights and map of keys, and last its record, which makes it count as done."""
    path = staging / f"{spec.name}.onnx"
    module = spec.build()
    graph = export_graph(module, inputs=spec.inputs, outputs=spec.outputs, path=path, prefix=spec.prefix)
    preview = _preview(spec, module)
    runs = reference_runs(spec.name, module, spec.inputs) if check else []
    del module  # the engine below needs the memory
    keys = {name: {"key": key, "transposed": transposed} for name, (key, transposed) in graph.keys.items()}
    (staging / f"{spec.name}.keys.json").write_text(json.dumps(keys, indent=1, sort_keys=True))
    row = _component_row(spec, graph, staging)
    parity = compare(spec.name, path, runs) if runs else []
    record = {
        "source": source,
        "row": row,
        "preview": preview,
        "parity": [_parity_row(result) for result in parity],
        "files": _describe_files(staging, [row["graph"], *row["weights"], row["keys"]]),
    }
    _write_atomically(_record_path(staging, spec.name), record)
    return record


def _preview(spec: ComponentSpec, module: nn.Module) -> list[list[float]] | None:
    if spec.name != "decoder":
        return None
    return fit_preview(module, channels=spec.inputs["latent"].example.shape[1])


def _component_row(spec: ComponentSpec, graph: Graph, staging: Path) -> dict[str, Any]:
    weights = f"{spec.name}.weights"
    return {
        "graph": f"{spec.name}.onnx",
        "weights": [weights] if (staging / weights).exists() else [],
        "keys": f"{spec.name}.keys.json",
        "checkpoint_part": spec.part,
        "precision": "fp32",
        "parameters": graph.parameters,
        "inputs": {name: {"dtype": dtype, "dims": list(dims)} for name, (dtype, dims) in graph.inputs.items()},
        "outputs": {name: {"dtype": dtype, "dims": list(dims)} for name, (dtype, dims) in graph.outputs.items()},
    }


def _finished(staging: Path, spec: ComponentSpec, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a component that an earlier run completed from the same source with the same tools."""
    try:
        record: dict[str, Any] = json.loads(_record_path(staging, spec.name).read_text())
    except (OSError, ValueError):
        return None
    present = all(
        (staging / name).is_file() and (staging / name).stat().st_size == entry["bytes"]
        for name, entry in record["files"].items()
    )
    return record if present and record["source"] == source else None


def _write_tokenizers(checkpoint: Checkpoint, family: Family, staging: Path) -> None:
    for tower in family.towers:
        path = staging / tower.tokenizer
        path.parent.mkdir(exist_ok=True)
        path.write_text(checkpoint.tokenizer().backend_tokenizer.to_str(), encoding="utf-8")


def _write_manifest(
    checkpoint: Checkpoint,
    family: Family,
    records: Mapping[str, dict[str, Any]],
    source: Mapping[str, Any],
    staging: Path,
) -> None:
    """The last file of a bundle; afterwards the records of the single components are gone."""
    files = {name: entry for record in records.values() for name, entry in record["files"].items()}
    files |= _describe_files(staging, [tower.tokenizer for tower in family.towers])
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "family": family.to_dict(),
        "components": {name: record["row"] for name, record in records.items()},
        "preview": records["decoder"]["preview"],
        "provenance": {
            "checkpoint": {"source": checkpoint.source, "sha256": source["files"]},
            "tools": source["tools"],
            "opset": OPSET,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        "calibration": None,
        "parity": [row for record in records.values() for row in record["parity"]],
        "files": dict(sorted(files.items())),
    }
    _write_atomically(staging / MANIFEST, manifest)
    for name in records:
        _record_path(staging, name).unlink()


def _parity_row(result: Parity) -> dict[str, Any]:
    return {
        "component": result.component,
        "case": result.case,
        "backend": result.backend,
        "worst": result.worst,
        "limit": result.limit,
        "passed": result.passed,
    }


def _describe_files(root: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    return {name: {"bytes": (root / name).stat().st_size, "sha256": sha256_file(root / name)} for name in names}


def _graph_bytes(staging: Path, name: str) -> int:
    files = (staging / f"{name}.onnx", staging / f"{name}.weights")
    return sum(file.stat().st_size for file in files if file.exists())


def _record_path(staging: Path, name: str) -> Path:
    return staging / f"{name}.done.json"


def _write_atomically(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_name(path.name + ".tmp")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _replace(source: Path, target: Path) -> Path:
    """Moves a directory to `target`; one that is there is removed only once the new one is in its place."""
    old = target.with_name(target.name + ".old")
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


def _tool_versions() -> dict[str, str]:
    versions = {tool: importlib.metadata.version(tool) for tool in TOOLS}
    return {"latentrt": latentrt.__version__, "python": platform.python_version(), **versions}


def _storage_error(error: OSError, staging: Path) -> Exception:
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(staging).free
        return EnvironmentLacks(
            f"the disk of {staging} is full ({free / 1e6:.0f} MB free)",
            expected="room for the bundle, about the size of the checkpoint in float32",
            hint="make room and run the same command again: it continues where it stopped",
        )
    return EnvironmentLacks(f"{staging} cannot be written ({error})", hint="check the path and its permissions")
