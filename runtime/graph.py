"""A component's graph on disk, what goes in and out of it, and what stands in place of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from latentrt.arrays import Array, Shape, format_shape
from latentrt.errors import BundleError
from latentrt.weights.dtypes import Weight
from latentrt.weights.onnx_initializers import Initializer


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What one input or output of a graph holds.

    Args:
        dtype: name of a numpy dtype, such as `float32`.
        dims: length of each axis; None where it is chosen per call.
        min, opt, max: smallest, usual and largest shape, for backends that compile for a range. Inputs
            outside `min`..`max` are refused by every backend.
    """

    dtype: str
    dims: tuple[int | None, ...]
    _: KW_ONLY
    min: Shape | None = None
    opt: Shape | None = None
    max: Shape | None = None

    def __post_init__(self) -> None:
        for name, shape in (("min", self.min), ("opt", self.opt), ("max", self.max)):
            if shape is not None and len(shape) != len(self.dims):
                raise BundleError(
                    f"{name} shape {shape} of a tensor of rank {len(self.dims)}",
                    expected="one length an axis",
                )

    def accepts(self, shape: Shape) -> bool:
        """Whether `shape` has the right rank, fixed lengths and range."""
        low = self.min if self.min is not None else (0,) * len(self.dims)
        high = self.max if self.max is not None else shape
        return len(shape) == len(self.dims) and all(
            want in (None, got) and lo <= got <= hi
            for want, got, lo, hi in zip(self.dims, shape, low, high, strict=True)
        )

    def __str__(self) -> str:
        text = f"{self.dtype} [{', '.join('*' if d is None else str(d) for d in self.dims)}]"
        bounds = [f"{word} {format_shape(s)}" for word, s in (("from", self.min), ("to", self.max)) if s is not None]
        return " ".join([text, *bounds])


@dataclass(frozen=True, slots=True, eq=False)
class Override:
    """New values of initializers, which are made together.

    Args:
        initializers: by name; shapes stay, and so does the format that the nodes of the graph read.
        fill: writes the values into an array for each, of that format's `stored_dtype`.
    """

    initializers: Mapping[str, Initializer]
    fill: Callable[[Mapping[str, Array]], None]


@dataclass(frozen=True, slots=True)
class GraphFile:
    """One component's graph on disk, as the manifest describes it.

    Args:
        path: the `.onnx` file; external weights lie next to it, as the graph names them.
        inputs, outputs: what the manifest promises; checked against the graph when it is loaded.
        weights: files of external weights. Their sizes decide how many compiled copies fit in memory.
        digest: changes when graph, weights or overrides change, and keys the cache of compiled graphs; None takes
            paths, sizes and times of change of the files.
        precision: number format of the network, such as `bf16`; None is not known.
        overrides: what stands in place of the files' initializers when the graph is loaded.
        widened_bytes: what the weights take in the types that the graph computes in, where files hold narrower ones;
            None: as much as the files.
        loras: what the overrides add, each as `FILE:SCALE`, for messages and records.
    """

    component: str
    _: KW_ONLY
    path: Path
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    weights: tuple[Path, ...] = ()
    digest: str | None = None
    precision: str | None = None
    overrides: tuple[Override, ...] = ()
    loras: tuple[str, ...] = ()
    widened_bytes: int | None = None

    def new_weights(self) -> Iterator[tuple[str, Weight]]:
        """The values of `overrides` by name, made one after the other."""
        for override in self.overrides:
            made = {name: place.empty() for name, place in override.initializers.items()}
            override.fill({name: weight.values for name, weight in made.items()})
            yield from made.items()
