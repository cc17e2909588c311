"""A folder of compiled graphs that never grows past a limit and never stops a run.

Layout: `<folder>/<key>/...`, one entry a size and set of options of a component's graph; the backend writes what it
likes inside. An entry's time of change is the time of its last use.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from latentrt.graph import GraphFile

log = logging.getLogger(__name__)

LIMIT_BYTES = 8 * 2**30
TIMES_A_GRAPH = 3  # what the compiled forms of a graph may take, in its own size with weights
_KEY = re.compile(r"[0-9a-f]{32}")


class CompileCache:
    """Entries by key, the least recently used ones removed beyond `limit_bytes` in all.

    Args:
        folder: made when first used; a folder that cannot be written serves what it holds.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def entry(self, key: str) -> Path | None:
        """The folder of an entry, made if need be; None, with a warning, where nothing can be kept."""
        path = self.folder / key
        try:
            if path.is_dir() and any(path.iterdir()):
                return path
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                return path
        except OSError as error:
            log.warning("compiled graphs are not kept: cannot write to %s (%s)", self.folder, error.strerror)
            return None

    def used(self, key: str) -> None:
        """Marks an entry as the latest used one, and removes the oldest until all fit the limit."""
        try:
            if os.access(self.folder, os.W_OK):
                os.utime(self.folder / key)
                self._trim()
        except OSError as error:
            log.warning("cannot tidy the cache of compiled graphs in %s (%s)", self.folder, error.strerror)

    def _trim(self) -> None:
        trim(self.folder, limit_bytes=self.limit_bytes, pattern="*")


def compiled_entries(folder: Path, *, pattern: str = "**/*") -> dict[Path, int]:
    """The entries in or below a folder with the bytes of each, the least recently used first."""
    times: dict[Path, int] = {}
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):  # another process removes entries too
            if _KEY.fullmatch(path.name) and path.is_dir():
                times[path] = path.stat().st_mtime_ns
    return {path: _bytes_in(path) for path in sorted(times, key=times.__getitem__)}


def trim(folder: Path, *, limit_bytes: int, pattern: str = "**/*") -> None:
    """Removes the least recently used entries until the rest fit the limit; the latest one always stays."""
    entries = compiled_entries(folder, pattern=pattern)
    total = sum(entries.values())
    for path, size in list(entries.items())[:-1]:
        if total <= limit_bytes:
            return
        log.info("removing compiled graph %s (%.0f MB) from the cache", path.name, size / 1e6)
        shutil.rmtree(path, ignore_errors=True)
        total -= size


def _bytes_in(entry: Path) -> int:
    total = 0
    for path in entry.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def cache_of(graph: GraphFile, folder: Path | None, backend: str) -> CompileCache | None:
    """Where a backend keeps compiled forms of a graph; None where it is to keep none."""
    if folder is None:
        return None
    return CompileCache(folder / backend / graph.component, limit_bytes=limit_for(graph))


def limit_for(graph: GraphFile) -> int:
    """Bytes that the compiled forms of a graph may take together."""
    return min(LIMIT_BYTES, TIMES_A_GRAPH * graph_bytes(graph))


def graph_bytes(graph: GraphFile) -> int:
    """Of its file and its weights, in the types that they are computed in; a missing file counts nothing here, and is
    told of when it is read."""
    files = sum(path.stat().st_size for path in (graph.path, *graph.weights) if path.is_file())
    return files if graph.widened_bytes is None else max(files, graph.widened_bytes)


def cache_key(graph: GraphFile, *parts: str) -> str:
    """32 hexadecimal digits for a graph and everything else that its compiled form depends on."""
    lines = [graph.component, graph.digest if graph.digest is not None else _stamp(graph), *parts]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _stamp(graph: GraphFile) -> str:
    paths = [path.resolve() for path in (graph.path, *graph.weights)]
    return " ".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths)
