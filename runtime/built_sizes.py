"""A request beyond the sizes that engines were built for, said in the words of `latentrt build`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from latentrt.arrays import Shape, format_shape
from latentrt.bundle import Bundle
from latentrt.conditioning import distinct
from latentrt.engines import EngineRecord
from latentrt.errors import RequestError
from latentrt.graph import GraphFile
from latentrt.plan import Plan

_OPTIONS = ("size", "batch", "branches", "context")


class SizeNotBuiltError(RequestError):
    """No engine of a graph covers the shapes of a call.

    Args:
        graph: whose engines they are.
        dims: shape of each of its inputs in the call.
        records: of the engines that are there, at least one.
    """

    def __init__(self, graph: GraphFile, *, dims: Mapping[str, Shape], records: Sequence[EngineRecord]) -> None:
        self.graph = graph
        self.dims = dims
        self.records = records
        name = next(name for name in graph.inputs if not records[0].profile.covers({name: dims[name]}))
        profiles = [record.profile for record in records]
        ranges = dict.fromkeys(f"{format_shape(p.min[name])} to {format_shape(p.max[name])}" for p in profiles)
        super().__init__(
            f"no engine of '{graph.component}' is built for {name} {format_shape(dims[name])}",
            expected=" or ".join(ranges),
            hint=f"build one: {build_command(graph, records[0])}, with the sizes that you need",
        )


@contextmanager
def said_as_options(bundle: Bundle, plan: Plan | None = None) -> Iterator[None]:
    """Raises a `SizeNotBuiltError` again as a RequestError that names sizes as a user writes them.

    Args:
        bundle: that is being run.
        plan: of the requests, for what a graph's own inputs do not tell; None where there are none.
    """
    try:
        yield
    except SizeNotBuiltError as error:
        asked = _options(_asked(bundle, error, plan))
        built = dict.fromkeys(_options(record.options) for record in error.records)
        if not asked or not all(built):
            raise
        raise RequestError(
            f"no engine of '{error.graph.component}' is built for {asked}",
            expected=" or ".join(built),
            hint=f"build one: {build_command(error.graph, error.records[0])} {asked}",
        ) from error


def build_command(graph: GraphFile, like: EngineRecord) -> str:
    """The command that builds engines of the whole bundle as one of its engines was built, sizes left out."""
    words = ["latentrt", "build", str(graph.path.parent), "--backend", like.flavour]
    if like.flavour == "tensorrt-rtx" and not any(gpu.endswith("+") for gpu in like.gpus):
        words += ["--gpus", ",".join(like.gpus)]
    if "weight_streaming" in like.options:
        words.append("--weight-streaming")
    return shlex.join([*words, *(word for lora in graph.loras for word in ("--lora", lora))])


def _options(values: Mapping[str, object]) -> str:
    return " ".join(f"--{name} {values[name]}" for name in _OPTIONS if name in values)


def _asked(bundle: Bundle, error: SizeNotBuiltError, plan: Plan | None) -> dict[str, object]:
    """What the call amounts to. A text tower is told only how many chunks it is to encode."""
    family, axes = bundle.family, bundle.component(error.graph.component).dims
    lengths = {axis: n for name, shape in error.dims.items() for axis, n in zip(axes[name], shape, strict=True)}
    found: dict[str, object] = {}
    if plan is not None:
        width, height = plan.size
        found = {"size": f"{width}x{height}", "batch": len(plan.tracks), "branches": plan.branches}
        if "N" in lengths:
            texts = len(distinct(plan.texts()))
            found["context"] = family.towers[0].length * (lengths["N"] // texts)
    if "h" in lengths:
        found["size"] = f"{lengths['w'] * family.vae_factor}x{lengths['h'] * family.vae_factor}"
    return found | {option: lengths[axis] for option, axis in _AXES.items() if axis in lengths}


_AXES = {"batch": "B", "branches": "K", "context": "L"}
