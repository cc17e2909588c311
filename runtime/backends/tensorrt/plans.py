"""Which of the engines built ahead of time can serve a graph here, and what to say when none can.

A plan is tied to the exact version of TensorRT and to architectures, and says so only by failing: the records beside
the plans are asked first (`latentrt.backends.tensorrt.records`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

from latentrt.arrays import Shape
from latentrt.backends.cuda.api import Gpu
from latentrt.backends.tensorrt.built_sizes import SizeNotBuiltError, latentrt_build
from latentrt.backends.tensorrt.records import BuiltEngine, Profile, built_engines
from latentrt.bundle import sha256_file
from latentrt.errors import EnvironmentLacks, IntegrityError
from latentrt.files.atomic import check_once
from latentrt.graph import GraphFile

log = logging.getLogger(__name__)

CHECKED = "checked.json"


def engine_folders(graph: GraphFile, cache_dir: Path | None) -> tuple[Path, ...]:
    """Where engines may lie: in the bundle, and in the folder of compiled graphs."""
    inside = graph.path.parent / "engines"
    return (inside,) if cache_dir is None or cache_dir == inside else (inside, cache_dir)


def find_engines(graph: GraphFile, cache_dir: Path | None, variant: str) -> list[BuiltEngine]:
    """All engines of this very graph, for whatever GPU and version."""
    return [
        built
        for folder in engine_folders(graph, cache_dir)
        for built in built_engines(folder, variant)
        if (built.record.component, built.record.graph) == (graph.component, graph.digest)
    ]


def usable_engines(
    graph: GraphFile, found: Sequence[BuiltEngine], *, variant: str, version: str, gpu: Gpu
) -> list[BuiltEngine]:
    """Those of `found` that this machine can load; EnvironmentLacks says of none what they were built for."""
    usable = [b for b in found if b.record.version == version and b.record.runs_on(gpu.capability)]
    if usable:
        return usable
    here = f"{gpu.architecture} ({gpu.name}) with {variant} {version}"
    hint = f"build it: {missing_command(graph, variant, gpu=gpu)}"
    what = f"'{graph.component}'" + (f" with {' and '.join(graph.loras)}" if graph.loras else "")
    if not found:
        raise EnvironmentLacks(f"no engine of {what} is built", expected=f"one for {here}", hint=hint)
    built = sorted({f"{'/'.join(b.record.gpus)} with {variant} {b.record.version}" for b in found})
    raise EnvironmentLacks(
        f"the engine of {what} was built for {' and '.join(built)}", expected=f"{here}, as here", hint=hint
    )


def engine_for(graph: GraphFile, usable: Sequence[BuiltEngine], dims: Mapping[str, Shape]) -> BuiltEngine:
    """Of several engines the one that covers these sizes and needs the least memory, or a SizeNotBuiltError."""
    covering = [built for built in usable if built.record.profile.covers(dims)]
    if covering:
        return min(covering, key=lambda built: _volume(built.record.profile))
    raise SizeNotBuiltError(graph, dims=dims, records=[built.record for built in usable])


def check_plan(built: BuiltEngine) -> None:
    """Raises an IntegrityError unless the plan is what was built: its size always, its bytes once for each copy."""
    record, status = built.record, built.plan.stat()
    hint = "the file is damaged: remove its folder and build the engine again"
    if status.st_size != record.plan_bytes:
        raise IntegrityError(f"{built.plan} has {status.st_size} bytes", expected=f"{record.plan_bytes}", hint=hint)
    stamp = [status.st_size, status.st_mtime_ns, record.plan_sha256]

    def check() -> None:
        found = sha256_file(built.plan)
        if found != record.plan_sha256:
            raise IntegrityError(
                f"{built.plan} has sha256 {found[:12]}...", expected=f"{record.plan_sha256[:12]}...", hint=hint
            )

    check_once(check, stamp=stamp, note=built.plan.with_name(CHECKED))


def missing_command(graph: GraphFile, variant: str, *, gpu: Gpu | None = None) -> str:
    """The command that builds this component's engine for a GPU; with LoRAs, all engines that are missing."""
    options = [] if graph.loras else ["--components", graph.component]
    # An engine of its own for Turing; the default one serves all later architectures.
    if variant == "tensorrt-rtx" and gpu is not None and gpu.capability < (8, 0):
        options += ["--gpus", gpu.architecture]
    return latentrt_build(graph, variant, options)


def _volume(profile: Profile) -> int:
    """Elements of all inputs at their largest: grows with what an engine needs."""
    return sum(prod(shape) for shape in profile.max.values())
