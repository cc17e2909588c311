"""A bundle's graphs rewritten for ONNX Runtime's CUDA provider; each counts once its record is written."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import onnx_ir as ir

from latentrt.backends import backend_row
from latentrt.backends.base import mapped_errors
from latentrt.backends.onnxruntime.cuda import (
    FOLDER,
    GRAPH,
    RECORD,
    Found,
    RewrittenGraph,
    obstacle,
    outdated_rewritten,
    rewritten_key,
)
from latentrt.bundle import Bundle, Component
from latentrt.concurrency.locks import lock_target
from latentrt.errors import BundleError, RequestError
from latentrt.export.engines.folder import chosen_components, is_shared, remove_finished
from latentrt.export.passes.cuda import ONNXRUNTIME, RECIPE, for_cuda
from latentrt.files.atomic import remove_parts, storage_errors, write_whole


@dataclass(frozen=True, slots=True)
class FinishedGraph:
    """A finished graph, and whether an earlier run had made it."""

    found: Found
    _: KW_ONLY
    seconds: float
    reused: bool


def rewrite_graphs(
    bundle: Bundle,
    *,
    folder: Path,
    components: Sequence[str] | None = None,
    progress: Callable[[FinishedGraph], None] = lambda _: None,
) -> list[FinishedGraph]:
    """Makes the graphs that are missing in `folder`, and returns all that were asked for. Needs neither a GPU nor
    onnxruntime.

    Args:
        bundle: whose graphs to rewrite; their weights stay where they are.
        folder: where engines are kept, `engines` in the bundle or another.

    Raises:
        RequestError: unknown names, or graphs in bf16, which the CUDA provider has no kernels for.
        BundleError: a graph that cannot be read.
        EnvironmentLacks: no room to write.
        InUseError: another process makes one of them.
    """
    finished = []
    for component in _components(bundle, components):
        finished.append(_finish(component, folder))
        progress(finished[-1])
    return finished


def prune_rewritten(bundle: Bundle, *, folder: Path) -> list[tuple[Found, str]]:
    """Removes graphs of other graphs than the bundle's, of other versions of onnxruntime than the one that the passes
    write for, and damaged ones; returns them and why."""
    graphs = [part.graph for part in bundle.components.values()]
    shared = is_shared(folder, bundle)
    outdated = list(outdated_rewritten(folder, graphs=graphs, version=ONNXRUNTIME, shared=shared))
    for found, _ in outdated:
        remove_finished(found.path.parent, RECORD)
    return outdated


def _components(bundle: Bundle, names: Sequence[str] | None) -> list[Component]:
    parts, lacks = chosen_components(bundle, names), backend_row("onnxruntime").lacks["cuda"]
    for part in parts:
        if (why := lacks.get(part.precision)) is not None:
            raise RequestError(
                f"{part.name} is in {part.precision}, which onnxruntime on CUDA cannot run: {why}",
                expected="fp16 or fp32",
                hint="latentrt convert BUNDLE -o OTHER --precision fp16, of the float32 bundle",
            )
    return parts


def _finish(component: Component, folder: Path) -> FinishedGraph:
    began = time.perf_counter()
    home = folder / FOLDER / rewritten_key(component.graph, onnxruntime=ONNXRUNTIME, recipe=RECIPE)
    if (record := _finished(home, component)) is not None:
        return FinishedGraph(Found(record, home / GRAPH), seconds=0.0, reused=True)
    with lock_target(home), storage_errors(home, room="room for a graph without its weights"):
        if (record := _finished(home, component)) is not None:  # meanwhile, by another process
            return FinishedGraph(Found(record, home / GRAPH), seconds=0.0, reused=True)
        home.mkdir(parents=True, exist_ok=True)
        remove_parts(home)
        (home / RECORD).unlink(missing_ok=True)  # of a graph that is gone or damaged
        data, record = _rewrite(component)
        write_whole(home / GRAPH, data, durable=True)
        write_whole(home / RECORD, record.to_json().encode(), durable=True)
    return FinishedGraph(Found(record, home / GRAPH), seconds=time.perf_counter() - began, reused=False)


def _rewrite(component: Component) -> tuple[bytes, RewrittenGraph]:
    graph = component.graph
    with mapped_errors(f"reading {graph.path}", error=BundleError, expected="an ONNX graph", hint="export it again"):
        model = ir.load(graph.path)
    changes = for_cuda(model)
    data = ir.to_proto(model).SerializeToString(deterministic=True)
    record = RewrittenGraph(
        component=component.name,
        source=str(graph.digest),
        onnxruntime=ONNXRUNTIME,
        recipe=RECIPE,
        precision=component.precision,
        channels_last=changes["GroupNorm"] > 0,
        dims={name: tuple(component.dims[name]) for name in graph.inputs},
        changes=changes,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return data, record


def _finished(home: Path, component: Component) -> RewrittenGraph | None:
    """The record of a graph that is there in full, and is this component's."""
    try:
        found = Found(RewrittenGraph.read(home / RECORD), home / GRAPH)
    except BundleError:
        return None
    return found.record if obstacle(found, component.graph, ONNXRUNTIME) is None else None
