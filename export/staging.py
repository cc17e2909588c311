"""A bundle in the making: beside its place, component by component, renamed when all of it is there."""

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentrt.bundle import MANIFEST, sha256_file
from latentrt.errors import BundleError, EnvironmentLacks

_DONE = ".done.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """One component: beginning (`seconds` None), done, or found done by an earlier run (`resumed`)."""

    component: str
    position: int
    count: int
    seconds: float | None = None
    bytes: int = 0
    resumed: bool = False


def check_target(output: Path, *, overwrite: bool) -> None:
    """Raises BundleError if there is something at `output` that must not be replaced."""
    if not output.exists():
        return
    if not (output / MANIFEST).is_file():
        raise BundleError(f"{output} exists and is no bundle", expected="a new path", hint="choose another")
    if not overwrite:
        raise BundleError(
            f"a bundle is at {output} already", expected="a new path", hint="choose another, or pass --overwrite"
        )


def staging_folder(output: Path) -> Path:
    """Where the bundle for `output` is made."""
    return output.with_name(output.name + ".part")


def finished(staging: Path, component: str, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a component that an earlier run completed from the same source with the same tools."""
    try:
        record: dict[str, Any] = json.loads(_record_path(staging, component).read_text())
    except (OSError, ValueError):
        return None
    present = all(
        (staging / name).is_file() and (staging / name).stat().st_size == entry["bytes"]
        for name, entry in record["files"].items()
    )
    return record if present and record["source"] == source else None


def finish(staging: Path, component: str, record: Mapping[str, Any]) -> None:
    """Writes the record that makes a component count as done."""
    write_atomically(_record_path(staging, component), record)


def complete(
    staging: Path,
    sources: Mapping[str, Mapping[str, Any]],
    write: Callable[[str], Mapping[str, Any]],
    *,
    progress: Callable[[Progress], None],
) -> dict[str, dict[str, Any]]:
    """The record of each component: that of an earlier run, or of what `write` makes now.

    Args:
        staging: the folder of the bundle in the making.
        sources: by component, JSON values that decide what is written.
        write: writes a component's files and returns its record, with `row` and `files`.
        progress: called at the beginning and at the end of each component.
    """
    records = {}
    for position, (name, source) in enumerate(sources.items()):
        event = (name, position, len(sources))
        if (record := finished(staging, name, source)) is not None:
            progress(Progress(*event, seconds=0.0, bytes=graph_bytes(staging, name), resumed=True))
        else:
            progress(Progress(*event))
            began = time.perf_counter()
            record = {"source": source, **write(name)}
            finish(staging, name, record)
            seconds = time.perf_counter() - began
            progress(Progress(*event, seconds=seconds, bytes=graph_bytes(staging, name)))
        records[name] = record
    return records


def write_manifest(staging: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the last file of a bundle; the records of the single components go, and what a killed run left half
    written."""
    for leftover in staging.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)
    write_atomically(staging / MANIFEST, manifest)
    for record in staging.glob(f"*{_DONE}"):
        record.unlink()


def write_atomically(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON beside `path`, then renames it."""
    part = path.with_name(path.name + ".tmp")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def describe_files(root: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of each file, as the manifest has them."""
    return {name: {"bytes": (root / name).stat().st_size, "sha256": sha256_file(root / name)} for name in names}


def graph_bytes(staging: Path, component: str) -> int:
    """Size of a component's graph and weights."""
    files = (staging / f"{component}.onnx", staging / f"{component}.weights")
    return sum(file.stat().st_size for file in files if file.exists())


def move_into_place(source: Path, target: Path) -> Path:
    """Moves a directory to `target`; one that is there is removed only once the new one is in its place."""
    old = target.with_name(target.name + ".old")
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return target


@contextmanager
def storage_errors(staging: Path) -> Iterator[None]:
    """Turns what the file system refuses into one of our errors."""
    try:
        yield
    except OSError as error:
        raise _storage_error(error, staging) from error


def _record_path(staging: Path, component: str) -> Path:
    return staging / f"{component}{_DONE}"


def _storage_error(error: OSError, staging: Path) -> Exception:
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(staging).free
        return EnvironmentLacks(
            f"the disk of {staging} is full ({free / 1e6:.0f} MB free)",
            expected="room for the bundle, about the size of its weights",
            hint="make room and run the same command again: it continues where it stopped",
        )
    return EnvironmentLacks(f"{staging} cannot be written ({error})", hint="check the path and its permissions")


def available_memory() -> int | None:
    """Bytes that new processes can take, on Linux; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
