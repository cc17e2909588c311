"""The seam between the pipeline and whatever executes a graph: an `Engine` and what goes in and out of it.

`latentrt.backends` opens engines, `latentrt.testing` has one that needs no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from latentrt.errors import BundleError
from latentrt.initializers import Initializer
from latentrt.weights import Weight

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int, ...]


@runtime_checkable
class DeviceArray(Protocol):
    """An output that stayed on the device: feed it back, or fetch it with `numpy()`."""

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def numpy(self) -> Array:
        """The values on the host, waiting for the device where that is needed."""

    def slot(self, index: int) -> Value:
        """`[:, index]`: a view on the device, or on the host where a backend has none."""


Value: TypeAlias = Array | DeviceArray


def to_host(value: Value) -> Array:
    """The values of an output as a numpy array, wherever they live; no copy if they are on the host."""
    return value if isinstance(value, np.ndarray) else value.numpy()


def slot(value: Value, index: int) -> Value:
    """`value[:, index]`, where it lies."""
    return value[:, index] if isinstance(value, np.ndarray) else value.slot(index)


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
        initializers: by name; format and shape stay.
        fill: writes the values into an array for each, of the format's `stored_dtype`.
    """

    initializers: Mapping[str, Initializer]
    fill: Callable[[Mapping[str, Array]], None]


@dataclass(frozen=True, slots=True)
class GraphFile:
    """One component's graph on disk, as the manifest describes it.

    Args:
        component: its name in messages, such as `step`.
        path: the `.onnx` file; external weights lie next to it, as the graph names them.
        inputs, outputs: what the manifest promises; checked against the graph when it is loaded.
        weights: files of external weights. Their sizes decide how many compiled copies fit in memory.
        digest: changes when graph, weights or overrides change, and keys the cache of compiled graphs; None takes
            paths, sizes and times of change of the files.
        precision: number format of the network, such as `bf16`; None is not known.
        overrides: what stands in place of the files' initializers when the graph is loaded.
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

    def new_weights(self) -> Iterator[tuple[str, Weight]]:
        """The values of `overrides` by name, made one after the other."""
        for override in self.overrides:
            made = {name: place.empty() for name, place in override.initializers.items()}
            override.fill({name: weight.values for name, weight in made.items()})
            yield from made.items()


@dataclass(frozen=True, slots=True)
class Preparation:
    """A wait that a user should hear about: a graph being loaded or compiled.

    `seconds` is None when it begins and the time it took when it is done.
    """

    component: str
    _: KW_ONLY
    backend: str
    action: str
    seconds: float | None = None

    def __str__(self) -> str:
        text = f"{self.action} ({self.backend})"
        return text if self.seconds is None else f"{text}: done in {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What a user may choose about execution; None is the backend's default.

    Args:
        device: `cpu` or `cuda`.
        compute: arithmetic of a float32 graph, `fp32` or `bf16`.
        threads: threads within one run.
        cache_dir: folder for compiled graphs; None compiles anew in every process.
        notify: called at the beginning and at the end of every load and compilation.
    """

    device: str | None = None
    compute: str | None = None
    threads: int | None = None
    cache_dir: Path | None = None
    notify: Callable[[Preparation], None] | None = None


class Engine(Protocol):
    """One graph, ready to run. An engine serves one thread at a time."""

    @property
    def backend(self) -> str:
        """Name of the backend behind it."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...

    def prepare(
        self,
        dims: Mapping[str, Shape],
        *,
        rows: Collection[str] = (),
        carry: Mapping[str, str] | None = None,
    ) -> None:
        """Loads, compiles and allocates for these sizes, so that the next run of them does not wait.

        Args:
            dims: the shape of every input.
            rows, carry: names of the inputs that change within the sweeps to come, and what they feed back; without
                them it prepares for runs.

        Raises:
            RequestError: a size that the graph does not allow, or a closed engine.
            BundleError: a graph that cannot be read.
            BackendError: the backend failed on a graph that can be read.
        """

    def run(
        self,
        feed: Mapping[str, Value],
        *,
        into: Mapping[str, Array] | None = None,
        keep: Collection[str] = (),
    ) -> Mapping[str, Value]:
        """Executes the graph once and waits for it.

        Args:
            feed: every input. The engine may read arrays in place during the call; it never writes them.
            into: host arrays that receive outputs: C-contiguous, of the output's dtype and shape, sharing
                no memory with the feed. They are returned under their names.
            keep: outputs that stay on the device, to be fed to the next run. Such an output is valid until the
                end of the next run: after that the backend may reuse its memory. Copy it
                (`to_host(value).copy()`) to hold it longer.

        Returns:
            Every output: a numpy array of its own, or what `keep` and `into` say.

        Raises:
            RequestError: names, dtypes or shapes that the graph does not take, or a closed engine.
            BundleError: a graph that cannot be read.
            BackendError: the backend failed.
        """

    def sweep(
        self, feed: Mapping[str, Value], *, rows: Mapping[str, Array], carry: Mapping[str, str]
    ) -> Generator[Mapping[str, Value], None, None]:
        """Runs the graph once for each row, feeding outputs back. Leaving the loop early is fine.

        Args:
            feed: the inputs that stand for all calls, and the first value of each carried one. None of them may
                change before the loop ends.
            rows: the inputs that change, each [calls, ...]: row i goes to call i.
            carry: input -> the output that becomes it in the next call.

        Yields:
            The outputs after each launch. On a device they stay there and may still be being computed: reading one
            waits. They are valid until the next call is asked for, the last ones until the engine is used again.

        Raises:
            As `run`; what is wrong with the arguments, at once.
        """

    def wait(self) -> None:
        """Returns when everything that has been launched is done.

        Raises:
            BackendError: some of it failed.
        """

    def replace(self, other: Engine) -> None:
        """Closes `other`, an engine of the same component, and takes from it what saves loading that again."""

    def unload(self) -> None:
        """Frees what the graph occupies, kept outputs included; the next run or `prepare` loads it again."""

    def close(self) -> None:
        """Unloads for good. Closing twice is fine."""


def format_shape(shape: Shape) -> str:
    """`2x4x64x64`, for messages."""
    return "x".join(str(n) for n in shape) if shape else "scalar"
