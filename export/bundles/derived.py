"""A bundle made from a bundle: some components written anew, everything else copied."""

import importlib.metadata
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import latentrt
from latentrt.bundle import MANIFEST, Bundle, sha256_file
from latentrt.errors import RequestError
from latentrt.export.bundles.step_graphs import MADE_OF_STEP, step_graph_records
from latentrt.export.staging import ExportProgress, complete, describe_files, making, move_into_place, write_manifest

TOOLS = ("onnx", "onnx-ir", "onnxruntime", "numpy", "ml_dtypes")

# Writes a component's files into the folder given and returns its row of the manifest, perhaps with `parity`: how it
# compared with torch.
Writer = Callable[[Path], Mapping[str, Any]]


def derive_bundle(
    source: Bundle,
    output: Path,
    *,
    writers: Mapping[str, Writer],
    options: Mapping[str, Any],
    fields: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Callable[[ExportProgress], None] = lambda _: None,
) -> Bundle:
    """Makes a bundle beside `output` and moves it there; an interrupted run goes on with the components missing.

    Args:
        output: the new bundle's directory; must not exist unless `overwrite`.
        writers: by component; those that are not named are copied, new ones are added. `step-control` and the graphs
            of shallow calls are made from the step that results.
        options: JSON values that decide what the writers write; other ones start anew.
        fields: of the manifest, instead of the source's.
        progress: called at the beginning and at the end of each component.

    Raises:
        BundleError: there is something else at `output`.
        InUseError: another process makes a bundle at `output`.
        RequestError: `output` is the source.
        EnvironmentLacks: the disk is full or not writable.
    """
    if output.exists() and output.resolve() == source.root.resolve():
        raise RequestError(f"{output} is the bundle itself", expected="another path", hint="a bundle is never changed")
    if alone := MADE_OF_STEP & writers.keys():
        raise RequestError(f"{min(alone)} by itself", expected="step, from which it is made")
    with making(output, overwrite=overwrite) as staging:
        key = {"options": dict(options), "tools": tool_versions()}
        kept = [name for name in source.components if name not in MADE_OF_STEP]
        digests = {name: source.components[name].graph.digest for name in kept}
        added = {name: None for name in writers if name not in kept}
        records = complete(
            staging,
            {name: {"digest": digest, **key} for name, digest in (digests | added).items()},
            lambda name: _component(source, name, writers.get(name), staging),
            progress=progress,
        )
        records |= step_graph_records(staging, records)
        _write_rest(source, records, {} if fields is None else fields, staging)
        return Bundle.open(move_into_place(staging, output))


def component_files(row: Mapping[str, Any]) -> list[str]:
    """Paths of a component's files within its bundle, from its row of the manifest."""
    return [row["graph"], *row["weights"], *([row["keys"]] if "keys" in row else [])]


def component_record(row: Mapping[str, Any], staging: Path) -> dict[str, Any]:
    """The record of a component whose files were just written; `parity` in its row is how it compared with torch."""
    row = dict(row)
    parity = row.pop("parity", [])
    return {"row": row, "parity": parity, "files": describe_files(staging, component_files(row))}


def tool_versions() -> dict[str, str]:
    """Of what takes part in making a bundle from a bundle."""
    return {"latentrt": latentrt.__version__, **{tool: importlib.metadata.version(tool) for tool in TOOLS}}


def _component(source: Bundle, name: str, writer: Writer | None, staging: Path) -> dict[str, Any]:
    if writer is not None:
        return component_record(writer(staging), staging)
    row = source.manifest["components"][name]
    return {"row": row, "files": _copied(source, component_files(row), staging)}


def _write_rest(
    source: Bundle, records: Mapping[str, Mapping[str, Any]], fields: Mapping[str, Any], staging: Path
) -> None:
    """Copies what is no component, and writes the manifest. What compared the old components with torch says
    nothing of new ones."""
    old = source.manifest
    theirs = {name for row in old["components"].values() for name in component_files(row)}
    files = {name: entry for record in records.values() for name, entry in record["files"].items()}
    files |= _copied(source, [name for name in old["files"] if name not in theirs], staging)
    same = {name for name, record in records.items() if record["row"] == old["components"].get(name)}
    parity = [row for row in source.section("parity") or [] if row["component"] in same]
    derivation = {
        "manifest": sha256_file(source.root / MANIFEST),
        "tools": tool_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    manifest = {
        **old,
        "components": {name: record["row"] for name, record in records.items()},
        "provenance": {**source.section("provenance"), "derived_from": derivation},
        "parity": [*parity, *(row for record in records.values() for row in record.get("parity", []))],
        **fields,
        "files": dict(sorted(files.items())),
    }
    write_manifest(staging, manifest)


def _copied(source: Bundle, names: Sequence[str], staging: Path) -> dict[str, Any]:
    """Copies bytes, and no links: ONNX refuses weights with more than one name."""
    for name in names:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.root / name, staging / name)
    return {name: source.manifest["files"][name] for name in names}
