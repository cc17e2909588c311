"""A bundle in the making: beside its place, component by component, renamed when all of it is there."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentrt.bundle import MANIFEST, sha256_file
from latentrt.concurrency.locks import lock_target
from latentrt.errors import BundleError
from latentrt.files.atomic import storage_errors, written_beside

_DONE = ".done.json"
_ASIDE = ".{}.old"
_ROOM = "room for the bundle, about the size of its weights"
_AGAIN = "make room and run the same command again: it continues where it stopped"


@dataclass(frozen=True, slots=True)
class ExportProgress:
    """One component: beginning (`seconds` None), done, or found done by an earlier run (`resumed`)."""

    component: str
    position: int
    count: int
    seconds: float | None = None
    bytes: int = 0
    resumed: bool = False


def check_target(output: Path, *, overwrite: bool) -> None:
    """Raises BundleError if there is something at `output` that must not be replaced."""
    place = Path(os.path.realpath(output))
    if place.is_symlink():
        raise BundleError(f"{output} is a link that leads in a circle", expected="a new path", hint="choose another")
    if not output.exists():
        return
    if not (output / MANIFEST).is_file():
        raise BundleError(f"{output} exists and is no bundle", expected="a new path", hint="choose another")
    if not overwrite:
        raise BundleError(
            f"a bundle is at {output} already", expected="a new path", hint="choose another, or pass --overwrite"
        )
    if Path.cwd().is_relative_to(place):
        raise BundleError(f"{output} is the folder that this runs in", expected="another one", hint="leave it first")


@contextmanager
def reserved(output: Path, *, overwrite: bool) -> Iterator[None]:
    """Keeps other processes from making a bundle at `output`. One that a killed run had put aside is back.

    Args:
        output: the bundle's directory; a link is followed.

    Raises:
        BundleError: there is something that must not be replaced.
        InUseError: another process makes a bundle there.
        EnvironmentLacks: the place is not writable.
    """
    check_target(output, overwrite=overwrite)
    with lock_target(output):
        with storage_errors(output):
            _recover(Path(os.path.realpath(output)))
        check_target(output, overwrite=overwrite)
        yield


@contextmanager
def making(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """The folder in which the bundle for `output` is made, `reserved`. What an interrupted run left in it stays.

    Raises:
        BundleError, InUseError: as `reserved`.
        EnvironmentLacks: the disk is full or not writable, also within the block.
    """
    staging = staging_folder(output)
    with reserved(output, overwrite=overwrite), storage_errors(staging, room=_ROOM, again=_AGAIN):
        staging.mkdir(parents=True, exist_ok=True)
        (staging / MANIFEST).unlink(missing_ok=True)  # of a bundle that was all but in its place
        yield staging


def staging_folder(output: Path) -> Path:
    """Where the bundle for `output` is made."""
    return _beside(output, "{}.part")


def rejected_folder(output: Path) -> Path:
    """Where a bundle is kept that fails its gates."""
    return _beside(output, "{}.rejected")


def scratch_folder(output: Path, stage: str) -> Path:
    """Where something lies that the bundle for `output` is made from. It goes when the manifest is written."""
    return staging_folder(output) / stage


def _beside(output: Path, name: str) -> Path:
    place = Path(os.path.realpath(output))
    return place.with_name(name.format(place.name))


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
    progress: Callable[[ExportProgress], None],
) -> dict[str, dict[str, Any]]:
    """The record of each component: that of an earlier run, or of what `write` makes now.

    Args:
        sources: by component, JSON values that decide what is written.
        write: writes a component's files and returns its record, with `row` and `files`.
    """
    records = {}
    for position, (name, source) in enumerate(sources.items()):
        event = (name, position, len(sources))
        if (record := finished(staging, name, source)) is not None:
            progress(ExportProgress(*event, seconds=0.0, bytes=graph_bytes(staging, name), resumed=True))
        else:
            progress(ExportProgress(*event))
            _record_path(staging, name).unlink(missing_ok=True)  # of files that are now written anew
            began = time.perf_counter()
            record = {"source": source, **write(name)}
            finish(staging, name, record)
            seconds = time.perf_counter() - began
            progress(ExportProgress(*event, seconds=seconds, bytes=graph_bytes(staging, name)))
        records[name] = record
    return records


def write_manifest(staging: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the last file of a bundle. What is no file of it goes: the records of the single components, and what was
    left by a killed run or by one with other components."""
    names = {*manifest["files"], MANIFEST}
    write_atomically(staging / MANIFEST, manifest)
    for path in sorted(staging.rglob("*"), reverse=True):  # what is within a folder before it
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # files of the bundle are in it
                path.rmdir()
        elif path.relative_to(staging).as_posix() not in names:
            path.unlink()


def write_atomically(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON beside `path`, then renames it."""
    with written_beside(path, durable=True) as beside, beside.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)


def describe_files(root: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of each file, as the manifest has them."""
    return {name: {"bytes": (root / name).stat().st_size, "sha256": sha256_file(root / name)} for name in names}


def graph_bytes(staging: Path, component: str) -> int:
    """Size of a component's graph and weights."""
    files = (staging / f"{component}.onnx", staging / f"{component}.weights")
    return sum(file.stat().st_size for file in files if file.exists())


def move_into_place(source: Path, target: Path) -> Path:
    """Moves a bundle to `target`; one that is there is removed only once the new one is in its place."""
    place = Path(os.path.realpath(target))
    old = _beside(target, _ASIDE)
    check_target(place, overwrite=True)
    remove_bundle(old)
    if place.exists():
        place.rename(old)
    try:
        source.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    with suppress(OSError):  # the next run does it
        remove_bundle(old)
    return target


def _recover(place: Path) -> None:
    """Ends what a killed `move_into_place` began: the old bundle goes, or is back where the new one did not come."""
    old = _beside(place, _ASIDE)
    if (old / MANIFEST).is_file() and not place.exists():
        old.rename(place)
    remove_bundle(old)


def remove_bundle(folder: Path) -> None:
    """Removes a bundle, its manifest first: half a one is none."""
    if folder.is_dir():
        (folder / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _record_path(staging: Path, component: str) -> Path:
    return staging / f"{component}{_DONE}"


def available_memory() -> int | None:
    """Bytes that new processes can take, on Linux; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
