"""The compiled graphs of a bundle, which backends keep unasked: shown by `inspect`, removed by `build --prune`."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentrt.backends import BACKENDS
from latentrt.backends.cache import compiled_entries
from latentrt.bundle import Bundle
from latentrt.cli.console import megabytes
from latentrt.errors import EnvironmentLacks
from latentrt.loading import compiled_folder

_COMPILING = tuple(row.name for row in BACKENDS if not row.prebuilt)


def describe_compiled(bundle: Bundle, cache_dir: Path | None = None) -> list[dict[str, Any]]:
    """One row a folder, as JSON values: the backend, how many compiled graphs lie there, their bytes."""
    rows = []
    for backend, folder in _folders(bundle, cache_dir):
        entries = compiled_entries(folder)
        if entries:
            size = sum(entries.values())
            rows.append({"backend": backend, "folder": str(folder), "graphs": len(entries), "bytes": size})
    return rows


def compiled_text(bundle: Bundle, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a report on `describe_compiled`."""
    lines = []
    for row in rows:
        lines += [
            f"compiled    {row['backend']}: {row['graphs']} graphs, {megabytes(row['bytes'])} in {row['folder']}",
            f"            latentrt build {bundle.root} --backend {row['backend']} --prune removes them",
        ]
    return lines


def prune_compiled(bundle: Bundle, backend: str, cache_dir: Path | None = None) -> list[dict[str, Any]]:
    """Removes what `describe_compiled` shows of a backend, and returns it."""
    rows = [row for row in describe_compiled(bundle, cache_dir) if row["backend"] == backend]
    for row in rows:
        for entry in compiled_entries(Path(row["folder"])):
            try:
                shutil.rmtree(entry)
            except OSError as error:
                raise EnvironmentLacks(
                    f"{entry} cannot be removed ({error.strerror})", hint="check the permissions of the folder"
                ) from error
    return rows


def _folders(bundle: Bundle, cache_dir: Path | None) -> Iterator[tuple[str, Path]]:
    """Where they are put by default, where they may lie inside the bundle, and where the user says."""
    places = [compiled_folder(bundle), bundle.root / "engines", cache_dir]
    for place in dict.fromkeys(place for place in places if place is not None):
        yield from ((backend, place / backend) for backend in _COMPILING if (place / backend).is_dir())
