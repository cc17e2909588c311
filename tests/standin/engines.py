"""Plans of the stand-in for a bundle, with records as `latentrt build` writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from standin.tensorrt import Shape, activation_bytes, make_plan

from latentrt.backends.tensorrt.records import PLAN, RECORD, EngineRecord, Profile, engine_key
from latentrt.bundle import Bundle
from latentrt.graph import GraphFile

VERSION = "9.9.9"
SIZES: Mapping[str, tuple[int, int]] = {
    "N": (1, 8),
    "E": (1, 1),
    "B": (1, 4),
    "K": (1, 2),
    "L": (77, 231),
    "h": (8, 16),
    "w": (8, 16),
}


def build(
    bundle: Bundle,
    folder: Path,
    *,
    variant: str,
    gpus: tuple[str, ...] = ("sm80+",),
    version: str = VERSION,
    sizes: Mapping[str, tuple[int, int]] = SIZES,
    weights: int = 100_000,
    components: tuple[str, ...] = ("text_encoder", "step", "decoder"),
    streamed: bool = False,
    graphs: Mapping[str, GraphFile] | None = None,
) -> dict[str, Path]:
    """The folder of each component's engine below `folder`; `graphs` takes the place of the bundle's own."""
    return {
        name: _build_one(
            bundle,
            name,
            folder,
            variant=variant,
            gpus=gpus,
            version=version,
            sizes=sizes,
            weights=weights,
            streamed=streamed,
            graph=(graphs if graphs is not None else {}).get(name, bundle.component(name).graph),
        )
        for name in components
    }


def _build_one(
    bundle: Bundle,
    name: str,
    folder: Path,
    *,
    variant: str,
    gpus: tuple[str, ...],
    version: str,
    sizes: Mapping[str, tuple[int, int]],
    weights: int,
    streamed: bool,
    graph: GraphFile,
) -> Path:
    component = bundle.component(name)
    bounds: dict[str, tuple[Shape, Shape]] = {
        tensor: tuple(
            tuple(dim if isinstance(dim, int) else sizes[dim][end] for dim in component.dims[tensor]) for end in (0, 1)
        )
        for tensor in graph.inputs
    }
    profile = Profile(
        min={tensor: low for tensor, (low, _) in bounds.items()},
        opt={tensor: low for tensor, (low, _) in bounds.items()},
        max={tensor: high for tensor, (_, high) in bounds.items()},
    )
    plan = _plan(graph, bounds, weights, streamed)
    options = _options(sizes, set().union(*(component.dims[tensor] for tensor in graph.inputs)))
    options |= {"weight_streaming": "on"} if streamed else {}
    key = engine_key(graph, variant=variant, version=version, gpus=gpus, profile=profile, options=options)
    home = folder / variant / key
    home.mkdir(parents=True)
    (home / PLAN).write_bytes(plan)
    record = EngineRecord(
        component=name,
        graph=str(graph.digest),
        variant=variant,
        version=version,
        gpus=gpus,
        precision=component.precision,
        options=options,
        profile=profile,
        plan_bytes=len(plan),
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        weights_bytes=weights,
        activation_bytes=activation_bytes(profile.max),
        layers=1,
        types={"FLOAT": 1},
        seconds=0.1,
    )
    (home / RECORD).write_text(record.to_json())
    return home


def _options(sizes: Mapping[str, tuple[int, int]], axes: set[str | int]) -> dict[str, str]:
    """The ranges that a graph with these axes depends on, as a user writes them."""
    small, large = (f"{8 * sizes['w'][end]}x{8 * sizes['h'][end]}" for end in (0, 1))
    texts = {"B", "K", "L"} if "N" in axes else set()
    options = {"size": "h", "batch": "B", "branches": "K", "context": "L"}
    spans = {**sizes, "h": (small, large)}
    return {name: "{}..{}".format(*spans[axis]) for name, axis in options.items() if axis in axes | texts}


def _plan(graph: GraphFile, bounds: Mapping[str, tuple[Shape, Shape]], weights: int, streamed: bool) -> bytes:
    dtypes = {tensor: spec.dtype for tensor, spec in (graph.inputs | graph.outputs).items()}
    return make_plan(str(graph.path), bounds, dtypes=dtypes, weights=weights, streamed=streamed)
