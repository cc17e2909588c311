"""What the nodes of a bundle's graphs take on a backend, by their types."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from latentrt.backends import open_engines
from latentrt.backends.base import GraphEngine
from latentrt.backends.profiling.node_times import NodeTime, Product, ProfiledRun
from latentrt.bench.peak import Peak
from latentrt.bench.runner import Workload, make_images
from latentrt.bundle import Bundle
from latentrt.engine import Engine
from latentrt.errors import RequestError
from latentrt.loading import loop_graphs
from latentrt.pipeline import Pipeline

LONGEST = 20  # nodes that are listed one by one
WARMUPS = 1  # where none are asked for

Profile = dict[str, Any]


def profile_bundle(
    bundle: Bundle, workload: Workload, *, backend: str, compute: str | None, progress: Callable[[str], None]
) -> list[Profile]:
    """A profile of each component that making pictures runs, each the mean of the runs after a warm-up.

    Args:
        progress: hears what is going on.

    Raises:
        RequestError: a backend that says nothing of single nodes.
    """
    encoder = [bundle.component("encoder").graph] if "encoder" in bundle.components else []  # of inpainting models
    graphs = [*loop_graphs(bundle), *encoder]
    engines = open_engines(graphs, backend=backend, compute=compute, threads=workload.threads, profile=True)
    warmups = WARMUPS if workload.warmup is None else workload.warmup
    with Pipeline(bundle, engines) as pipe:
        progress("loading")
        pipe.prepare(size=workload.size, images=workload.batch, guided=workload.guidance > 1)
        for turn in range(warmups + workload.repeat):
            progress(f"run {turn + 1} of {warmups + workload.repeat}")
            make_images(pipe, workload)
        turns = warmups + workload.repeat
        found = {name: _profiled_runs(engine) for name, engine in engines.items()}
    measured = {name: runs[len(runs) * warmups // turns :] for name, runs in found.items()}
    return [summed(runs, component=name, backend=backend) for name, runs in measured.items() if runs]


def _profiled_runs(engine: Engine) -> list[ProfiledRun]:
    if not isinstance(engine, GraphEngine):
        raise RequestError(f"{engine.backend} says nothing of single nodes", expected="openvino or onnxruntime")
    return engine.profiled_runs()


def summed(runs: Sequence[ProfiledRun], *, component: str, backend: str) -> Profile:
    """The mean of the runs: by type of node and precision, and the longest nodes."""
    types: dict[tuple[str, str, Product | None], list[NodeTime]] = {}
    nodes: dict[str, list[NodeTime]] = {}
    for node in (node for run in runs for node in run.nodes):
        product = None if node.work is None else node.work.product
        types.setdefault((node.type, node.precision, product), []).append(node)
        nodes.setdefault(node.name, []).append(node)
    nodes_ms = sum(node.ms for run in runs for node in run.nodes) / len(runs)

    def row(group: Sequence[NodeTime]) -> dict[str, Any]:
        ms = sum(node.ms for node in group) / len(runs)
        gflop = sum(node.work.flops for node in group if node.work is not None) / len(runs) / 1e9
        rate = gflop / (ms / 1e3) if gflop and ms else None
        return {"ms": ms, "share": ms / nodes_ms, "gflop": gflop, "gflops": rate}

    by_type = [
        {"type": kind, "precision": precision, "product": product, "nodes": round(len(group) / len(runs)), **row(group)}
        for (kind, precision, product), group in types.items()
    ]
    single = [
        {"name": name, "type": group[0].type, "precision": group[0].precision, **row(group)}
        for name, group in nodes.items()
    ]
    return {
        "component": component,
        "backend": backend,
        "runs": len(runs),
        "run_ms": statistics.fmean(run.ms for run in runs),
        "nodes_ms": nodes_ms,
        "gflop": sum(each["gflop"] for each in by_type),
        "types": sorted(by_type, key=lambda each: -each["ms"]),
        "longest": sorted(single, key=lambda each: -each["ms"])[:LONGEST],
    }


def with_peaks(profile: Profile, peaks: Mapping[tuple[Product, str], Peak]) -> Profile:
    """The profile with each type's share of the machine's peak, and what its products alone would take at that; None
    where a peak is not known."""
    types = [row | {"share_of_peak": _share(row, peaks)} for row in profile["types"]]
    shares = [(row["ms"], row["share_of_peak"]) for row in types if row["gflop"]]
    known = all(share is not None for _, share in shares)
    return profile | {"types": types, "peak_ms": sum(ms * share for ms, share in shares) if known else None}


def _share(row: Mapping[str, Any], peaks: Mapping[tuple[Product, str], Peak]) -> float | None:
    peak = peaks.get((row["product"], row["precision"]))
    return None if peak is None or row["gflops"] is None else float(row["gflops"] / peak.gflops)


def peak_precisions(profiles: Sequence[Profile]) -> list[str]:
    """In which products were computed."""
    return sorted({row["precision"] for profile in profiles for row in profile["types"] if row["gflop"]})
