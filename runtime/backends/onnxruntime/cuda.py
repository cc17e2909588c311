"""Graphs that `latentrt build` rewrote for ONNX Runtime's CUDA provider: the one of a graph, or why there is none.

Layout: `<folder>/onnxruntime-cuda/<key>/graph.onnx`, and beside it `graph.json`, a `RewrittenGraph`. Weights stay in
the bundle's own files, which the graph names.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from latentrt.arrays import Shape
from latentrt.errors import BundleError
from latentrt.graph import GraphFile
from latentrt.manifest.json_rules import check, read_json

FOLDER = "onnxruntime-cuda"
GRAPH = "graph.onnx"
RECORD = "graph.json"
RECORD_VERSION = 1
BUILD_OPTIONS = "--backend onnxruntime --device cuda"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewrittenGraph:
    """What is known of one.

    Args:
        component: the graph that it was made of, such as `step`.
        onnxruntime: major and minor version of the one whose operators it has: no other one takes it.
        channels_last: whether the provider should lay convolutions out so.
        dims: name or length of each axis, by input; lengths are set for the names when it is loaded.
        changes: how many places each pass changed.
    """

    component: str
    source: str
    onnxruntime: str
    recipe: int
    precision: str
    channels_last: bool
    dims: Mapping[str, tuple[str | int, ...]]
    changes: Mapping[str, int]
    bytes: int
    sha256: str

    def to_json(self) -> str:
        """The text of `graph.json`."""
        return json.dumps({"record_version": RECORD_VERSION, **asdict(self)}, indent=1)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Inverse of `to_json`; a BundleError for a file that is unreadable, malformed, or of another version."""
        row = read_json(path)
        check(row, "rewritten", file=path)
        if row.pop("record_version") != RECORD_VERSION:
            raise BundleError(f"{path} is a record of another version", expected=f"version {RECORD_VERSION}")
        fields = {name: row[name] for name in cls.__slots__}
        return cls(**{**fields, "dims": {name: tuple(dims) for name, dims in fields["dims"].items()}})

    def lengths(self, shapes: Mapping[str, Shape]) -> dict[str, int]:
        """The length of each named axis in inputs of these shapes."""
        return {
            axis: length
            for name, dims in self.dims.items()
            for axis, length in zip(dims, shapes[name], strict=True)
            if isinstance(axis, str)
        }


@dataclass(frozen=True, slots=True)
class Found:
    """A record and the graph that it describes."""

    record: RewrittenGraph
    path: Path


def rewritten_key(graph: GraphFile, *, onnxruntime: str, recipe: int) -> str:
    """32 hexadecimal digits that change with anything that a rewritten graph depends on."""
    parts = [graph.component, graph.digest, onnxruntime, recipe]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def rewritten_graphs(folder: Path) -> Iterator[Found]:
    """The finished ones below `folder`, by key; unreadable records are logged and left out."""
    for path in sorted((folder / FOLDER).glob(f"*/{RECORD}")):
        try:
            yield Found(RewrittenGraph.read(path), path.with_name(GRAPH))
        except BundleError as error:
            log.warning("%s is not the record of a graph (%s)", path, error.found)


def choose_rewritten(graph: GraphFile, cache_dir: Path | None, version: str) -> Found | None:
    """The rewritten graph to run in the place of `graph`; None, with a word in the log, where there is none.

    Args:
        cache_dir: where graphs may lie, beside the bundle's own folder.
        version: of the onnxruntime that is to run it.
    """
    folders = dict.fromkeys(each for each in (graph.path.parent / "engines", cache_dir) if each is not None)
    own = [
        found for folder in folders for found in rewritten_graphs(folder) if found.record.component == graph.component
    ]
    command = f"latentrt build {graph.path.parent} {BUILD_OPTIONS}"
    if graph.overrides:
        log.warning(
            "%s runs as exported: graphs for CUDA do not take LoRAs; convert the bundle with them", graph.component
        )
        return None
    obstacles = [obstacle(found, graph, version) for found in own]
    fitting = [found for found, why in zip(own, obstacles, strict=True) if why is None]
    if fitting:
        return fitting[0]
    why = f" ({obstacles[-1]})" if obstacles else ""
    log.warning("%s runs as exported, a faster graph for CUDA can be built%s: %s", graph.component, why, command)
    return None


def obstacle(found: Found, graph: GraphFile, version: str | None) -> str | None:
    """Why a rewritten graph is not for this one, or this onnxruntime; None: it is. A version of None is not known."""
    record = found.record
    if record.source != graph.digest:
        return "the one that is there was made of another graph"
    if version is not None and minor(version) != record.onnxruntime:
        return f"the one that is there is for onnxruntime {record.onnxruntime}, and {version} is installed"
    if record.dims.keys() != graph.inputs.keys() or not _whole(found):
        return "the one that is there is damaged"
    return None


def minor(version: str) -> str:
    """`1.31` of `1.31.1`."""
    return ".".join(version.split(".")[:2])


def outdated_rewritten(
    folder: Path, *, graphs: Sequence[GraphFile], version: str | None, shared: bool
) -> Iterator[tuple[Found, str]]:
    """Rewritten graphs that are of no use here any more, and why.

    Args:
        version: of onnxruntime as it is installed; None is not known.
        shared: other bundles keep graphs in `folder` too, so that those of unknown graphs are theirs.
    """
    known = {graph.component: graph for graph in graphs}
    for found in rewritten_graphs(folder):
        graph = known.get(found.record.component)
        if graph is None or graph.digest != found.record.source:
            if not shared:
                yield found, "its graph is not in the bundle"
        elif (why := obstacle(found, graph, version)) is not None:
            yield found, why


def describe_rewritten(found: Found, reason: str | None = None) -> dict[str, Any]:
    """For reports, as JSON values."""
    record = found.record
    row = {
        "component": record.component,
        "onnxruntime": record.onnxruntime,
        "precision": record.precision,
        "folder": str(found.path.parent),
        "bytes": record.bytes,
        "changes": dict(record.changes),
    }
    return row if reason is None else {**row, "reason": reason}


def _whole(found: Found) -> bool:
    try:
        return hashlib.sha256(found.path.read_bytes()).hexdigest() == found.record.sha256
    except OSError:
        return False
