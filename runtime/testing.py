"""A fake engine, so that code around an engine can be tested without a model or a backend."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.backends.base import GraphEngine
from latentrt.engine import Array, EngineOptions, GraphFile, Shape, TensorSpec, Value, to_host
from latentrt.errors import BackendError, RequestError

Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a fake engine: copies of what it was fed, and the names of kept outputs."""

    feed: Mapping[str, Array]
    keep: tuple[str, ...]


class FakeArray:
    """A kept output of a fake engine: like device memory, it is no numpy array and is reused in time."""

    def __init__(self, values: Array) -> None:
        self._values: Array | None = values
        self.shape: Shape = values.shape
        self.dtype: np.dtype[Any] = values.dtype

    def numpy(self) -> Array:
        """A copy of the values.

        Raises:
            RequestError: the engine has run too often since, and a real one would have reused the memory.
        """
        if self._values is None:
            raise RequestError(
                "a kept output is used after its memory was reused",
                expected="use during the next run, or before it",
                hint="copy it with to_host(value).copy() to hold it longer",
            )
        return self._values.copy()

    def expire(self) -> None:
        self._values = None


class FakeEngine(GraphEngine):
    """An engine that calls a Python function; it checks its arguments exactly as the real ones do.

    It holds callers to the strictest reading of the contract: a kept output expires after the next run.

    Args:
        inputs, outputs: what it claims to take and give.
        function: maps a feed of numpy arrays to all outputs.
        component: its name in messages.

    Attributes:
        calls: one `Call` a run, oldest first.
        prepared: the sizes that were prepared anew, oldest first; `unload` forgets which are ready.
    """

    backend = "fake"

    def __init__(
        self,
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
        function: Function,
        *,
        component: str = "fake",
        options: EngineOptions | None = None,
    ) -> None:
        path = Path(f"{component}.onnx")
        super().__init__(GraphFile(component, path=path, inputs=inputs, outputs=outputs), options=options)
        self.function = function
        self.calls: list[Call] = []
        self.prepared: list[Mapping[str, Shape]] = []
        self._ready: list[Mapping[str, Shape]] = []
        self._kept: list[FakeArray] = []

    def _prepare(self, dims: Mapping[str, Shape]) -> None:
        sizes = {name: tuple(shape) for name, shape in dims.items()}
        if sizes not in self._ready:
            with self._announced(f"preparing {self.graph.component}"):
                self._ready.append(sizes)
                self.prepared.append(sizes)

    def _run(self, feed: Mapping[str, Value], into: Mapping[str, Array], keep: Collection[str]) -> Mapping[str, Value]:
        arrays = {name: to_host(value).copy() for name, value in feed.items()}
        self.calls.append(Call(arrays, tuple(keep)))
        results = self._checked(self.function(arrays))
        self._expire()
        returned: dict[str, Value] = {}
        for name, array in results.items():
            if name in into:
                into[name][...] = array
                returned[name] = into[name]
            elif name in keep:
                self._kept.append(FakeArray(array))
                returned[name] = self._kept[-1]
            else:
                returned[name] = array
        return returned

    def _checked(self, results: Mapping[str, Array]) -> Mapping[str, Array]:
        """The results, copied, if they are what the fake claims to give."""
        if results.keys() != self.outputs.keys():
            raise BackendError(
                f"the function of fake '{self.graph.component}' returned {sorted(results)}",
                expected=str(sorted(self.outputs)),
            )
        for name, spec in self.outputs.items():
            array = results[name]
            if array.dtype != np.dtype(spec.dtype) or not spec.accepts(array.shape):
                raise BackendError(
                    f"the function of fake '{self.graph.component}' returned '{name}' as {array.dtype} "
                    f"{list(array.shape)}",
                    expected=str(spec),
                )
        return {name: results[name].copy() for name in self.outputs}

    def _expire(self) -> None:
        for value in self._kept:
            value.expire()
        self._kept.clear()

    def _release(self) -> None:
        self._expire()
        self._ready.clear()
