"""A call beyond the sizes that engines were built for."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from latentrt.arrays import Shape, format_shape
from latentrt.backends.tensorrt.records import EngineRecord
from latentrt.errors import RequestError
from latentrt.graph import GraphFile


class SizeNotBuiltError(RequestError):
    """No engine of a graph covers the shapes of a call.

    Args:
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


def build_command(graph: GraphFile, like: EngineRecord) -> str:
    """The command that builds engines of the whole bundle as one of its engines was built, sizes left out."""
    options = []
    if like.variant == "tensorrt-rtx" and not any(gpu.endswith("+") for gpu in like.gpus):
        options += ["--gpus", ",".join(like.gpus)]
    if "weight_streaming" in like.options:
        options.append("--weight-streaming")
    return latentrt_build(graph, like.variant, options)


def latentrt_build(graph: GraphFile, variant: str, options: Sequence[str]) -> str:
    """The command line that builds engines of a graph's bundle, with its LoRAs."""
    loras = [word for lora in graph.loras for word in ("--lora", lora)]
    return shlex.join(["latentrt", "build", str(graph.path.parent), "--backend", variant, *options, *loras])
