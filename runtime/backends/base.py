"""What all backends do alike, and so does the public fake: check, prepare on demand, run, end.

A backend is one class that fills in the three verbs of `GraphEngine`, and a function
`open_engine(graph, options)` that the registry calls.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np

from latentrt.arrays import Array, DeviceArray, Shape, Value, format_shape
from latentrt.backends.profiling.node_times import ProfiledRun
from latentrt.engine import Engine, EngineOptions, Link, Preparation
from latentrt.errors import BackendError, BundleError, LatentRTError, RequestError
from latentrt.graph import GraphFile, TensorSpec

log = logging.getLogger(__name__)


class GraphEngine(ABC):
    """An engine but for three verbs. `with` closes it. Calls of several threads wait for each other."""

    backend: str
    on_device = False

    def __init__(self, graph: GraphFile, *, options: EngineOptions | None = None) -> None:
        self.graph = graph
        self.options = options if options is not None else EngineOptions()
        residency = self.options.residency
        self.turn = threading.RLock() if residency is None else residency.turn  # pipelines may share an engine
        self._closed = False

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self.graph.inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self.graph.outputs

    def check(self, dims: Mapping[str, Shape]) -> None:
        self._check_open()
        check_dims(self.graph, dims)
        self._check(dims)

    def prepare(
        self,
        dims: Mapping[str, Shape],
        *,
        rows: Collection[str] = (),
        carry: Mapping[str, str] | None = None,
        before: Sequence[Link] = (),
    ) -> None:
        for link in before:
            link.engine.prepare(link_dims(link, dims))
        with self.turn:
            self._check_open()
            check_dims(self.graph, dims)
            self._enter()
            self._prepare(dims)

    def run(
        self,
        feed: Mapping[str, Value],
        *,
        into: Mapping[str, Array] | None = None,
        keep: Collection[str] = (),
    ) -> Mapping[str, Value]:
        destinations = into if into is not None else {}
        with self.turn:
            self._check_open()
            check_feed(self.graph, feed)
            check_destinations(self.graph, feed, destinations, keep)
            self._enter()
            self._prepare({name: feed[name].shape for name in self.inputs})
            return self._run(feed, destinations, keep)

    def sweep(
        self,
        feed: Mapping[str, Value],
        *,
        rows: Mapping[str, Array],
        carry: Mapping[str, str],
        before: Sequence[Link] = (),
    ) -> Generator[Mapping[str, Value], None, None]:
        self._check_open()
        check_sweep(self.graph, feed, rows, carry, before)
        return in_turns(self._sweep(feed, rows, carry, before), self.turn)

    def wait(self) -> None:  # noqa: B027 - an engine that finishes what it launches need not fill it in
        """Waits for what was launched: nothing, in an engine whose calls return when they are done."""

    def replace(self, other: Engine) -> None:
        other.close()

    def profiled_runs(self) -> list[ProfiledRun]:
        """Every run of an engine that was opened to note what nodes take, in order. It ends the noting."""
        raise RequestError(f"{self.backend} notes nothing of single nodes", expected="an engine opened with `profile`")

    def unload(self) -> None:
        with self.turn:
            self._release()

    def close(self) -> None:
        with self.turn:
            self._release()
            self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, dims: Mapping[str, Shape]) -> None:  # noqa: B027 - most take what the graph takes
        """Raises where these sizes, which the graph allows, cannot be had."""

    @abstractmethod
    def _prepare(self, dims: Mapping[str, Shape]) -> None:
        """Makes ready for these sizes; cheap where it is already. `dims` has been checked."""

    @abstractmethod
    def _run(self, feed: Mapping[str, Value], into: Mapping[str, Array], keep: Collection[str]) -> Mapping[str, Value]:
        """Executes for sizes just prepared; all arguments have been checked."""

    def _sweep(
        self,
        feed: Mapping[str, Value],
        rows: Mapping[str, Array],
        carry: Mapping[str, str],
        before: Sequence[Link],
    ) -> Generator[Mapping[str, Value], None, None]:
        """One run after the other; backends with a device of their own do better."""
        carried = {name: feed[name] for name in carry}
        for call in range(calls_of(rows)):
            given = {**feed, **_row(rows, call), **carried}
            for link in before:
                offered = {**given, **link.feed, **_row(link.rows, call)}
                engine = link.engine
                results = engine.run({name: offered[name] for name in engine.inputs}, keep=tuple(engine.outputs))
                given |= {name: results[output] for output, name in link.gives.items()}
            outputs = self.run(given, keep=tuple(self.outputs))
            carried = {name: outputs[output] for name, output in carry.items()}
            yield outputs

    @abstractmethod
    def _release(self) -> None:
        """Frees everything; may be called at any time, any number of times."""

    @contextmanager
    def _announced(self, action: str) -> Iterator[None]:
        """Tells the log and the caller's hook that `action` begins and ends."""
        begun = time.perf_counter()
        self._tell(action, None)
        yield
        self._tell(action, time.perf_counter() - begun)

    def _tell(self, action: str, seconds: float | None) -> None:
        event = Preparation(self.graph.component, backend=self.backend, action=action, seconds=seconds)
        log.info("%s", event)
        if self.options.notify is not None:
            self.options.notify(event)

    def _enter(self) -> None:
        if self.options.residency is not None:
            self.options.residency.enter(self.graph.component, self)

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError(f"engine '{self.graph.component}' is closed", hint="open it again")


def in_turns(
    outputs: Generator[Mapping[str, Value], None, None], turn: AbstractContextManager[Any]
) -> Generator[Mapping[str, Value], None, None]:
    """The same loop, each of its calls within `turn`."""
    try:
        while True:
            with turn:
                out = next(outputs, None)
            if out is None:
                return
            yield out
    finally:
        with turn:
            outputs.close()


def check_dims(graph: GraphFile, dims: Mapping[str, Shape]) -> None:
    """Raises RequestError unless `dims` names every input with a shape that it allows."""
    _check_names(graph.component, "input", dims, graph.inputs)
    for name, spec in graph.inputs.items():
        if not spec.accepts(tuple(dims[name])):
            raise RequestError(
                f"input '{name}' of '{graph.component}' has shape {list(dims[name])}", expected=str(spec)
            )


def check_feed(graph: GraphFile, feed: Mapping[str, Value]) -> None:
    """Raises RequestError unless `feed` holds every input in its dtype and a shape that it allows."""
    _check_names(graph.component, "input", feed, graph.inputs)
    for name, spec in graph.inputs.items():
        value = feed[name]
        if not isinstance(value, np.ndarray | DeviceArray):
            raise RequestError(
                f"input '{name}' of '{graph.component}' is a {type(value).__name__}",
                expected=f"a numpy array, {spec}",
            )
        if value.dtype != np.dtype(spec.dtype):
            raise RequestError(
                f"input '{name}' of '{graph.component}' is {value.dtype}",
                expected=str(spec),
                hint="convert it",
            )
    check_dims(graph, {name: feed[name].shape for name in graph.inputs})


def check_sweep(
    graph: GraphFile,
    feed: Mapping[str, Value],
    rows: Mapping[str, Array],
    carry: Mapping[str, str],
    before: Sequence[Link] = (),
) -> None:
    """Raises RequestError unless `feed` and the first of `rows` make a feed, `carry` joins outputs to inputs that
    can take them, and the links `before` find all their inputs and give what the graph takes."""
    if len({len(values) for values in rows.values()}) != 1 or not calls_of(rows):
        counts = ", ".join(f"{name} {len(values)}" for name, values in rows.items())
        raise RequestError(f"rows of a sweep of '{graph.component}': {counts}", expected="one number of calls")
    if both := rows.keys() & feed.keys():
        raise RequestError(f"input {_names(both)} in both `feed` and `rows`", expected="one of them")
    if unknown := set(carry.values()) - graph.outputs.keys():
        raise RequestError(f"unknown output {_names(unknown)} of '{graph.component}'", expected=_names(graph.outputs))
    if unfed := carry.keys() - feed.keys():
        raise RequestError(f"no first value for {_names(unfed)} of '{graph.component}'", expected="one in `feed`")
    for name, output in carry.items():
        if graph.inputs[name].dtype != graph.outputs[output].dtype:
            raise RequestError(f"output '{output}' as input '{name}'", expected=graph.inputs[name].dtype)
    given = {**feed, **_row(rows, 0)}
    check_feed(graph, given)
    for link in before:
        if any(len(values) != calls_of(rows) for values in link.rows.values()):
            raise RequestError(f"rows of a link of '{graph.component}'", expected=f"{calls_of(rows)}, as of the sweep")
        if missing := link.engine.inputs.keys() - {*given, *link.feed, *link.rows}:
            raise RequestError(f"no value for {_names(missing)} of a link", expected="its own or one of the sweep")
        if unknown := link.gives.keys() - link.engine.outputs.keys():
            raise RequestError(f"unknown output {_names(unknown)} of a link", expected=_names(link.engine.outputs))
        if strange := set(link.gives.values()) - graph.inputs.keys():
            raise RequestError(f"a link gives {_names(strange)} to '{graph.component}'", expected=_names(graph.inputs))


def link_dims(link: Link, dims: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shape of every input of a link, in a sweep whose inputs have these shapes."""
    own = {name: tuple(value.shape) for name, value in link.feed.items()}
    own |= {name: tuple(values.shape[1:]) for name, values in link.rows.items()}
    return {name: own[name] if name in own else tuple(dims[name]) for name in link.engine.inputs}


def check_destinations(
    graph: GraphFile, feed: Mapping[str, Value], into: Mapping[str, Array], keep: Collection[str]
) -> None:
    """Raises RequestError unless `into` and `keep` name distinct outputs and `into` can take them."""
    unknown = (into.keys() | set(keep)) - graph.outputs.keys()
    if unknown:
        raise RequestError(f"unknown output {_names(unknown)} of '{graph.component}'", expected=_names(graph.outputs))
    if both := into.keys() & set(keep):
        raise RequestError(f"output {_names(both)} in both `into` and `keep`", expected="one of them")
    hosted = [value for value in feed.values() if isinstance(value, np.ndarray)]
    for name, array in into.items():
        spec = graph.outputs[name]
        if array.dtype != np.dtype(spec.dtype) or not spec.accepts(array.shape):
            raise RequestError(f"`into` array for '{name}' is {array.dtype} {list(array.shape)}", expected=str(spec))
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise RequestError(f"`into` array for '{name}'", expected="C-contiguous and writeable")
        if any(np.may_share_memory(array, value) for value in hosted):
            raise RequestError(f"`into` array for '{name}' shares memory with an input", expected="its own")


def check_files(graph: GraphFile) -> None:
    """Raises BundleError unless the graph and its external weights are there."""
    for path in (graph.path, *graph.weights):
        if not path.is_file():
            raise BundleError(f"{path} is missing", hint="export the bundle again, or copy it whole")


def check_graph(graph: GraphFile, *, inputs: Collection[str], outputs: Collection[str]) -> None:
    """Raises BundleError unless a loaded graph has the inputs and outputs that the manifest promises."""
    for kind, found, promised in (("inputs", inputs, graph.inputs), ("outputs", outputs, graph.outputs)):
        if set(found) != promised.keys():
            raise BundleError(
                f"{graph.path.name} has the {kind} {_names(found)}",
                expected=f"{_names(promised)}, as the manifest says",
                hint="export the bundle again",
            )


@contextmanager
def mapped_errors(
    doing: str,
    *,
    error: type[LatentRTError] = BackendError,
    expected: str | None = None,
    hint: str | None = None,
) -> Iterator[None]:
    """Turns any exception of a backend into one of ours; the last line of its text, the one that says most, is kept."""
    try:
        yield
    except LatentRTError:
        raise
    except Exception as exc:
        lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
        detail = lines[-1] if lines else type(exc).__name__
        raise error(f"{doing} failed: {detail}", expected=expected, hint=hint) from exc


def _row(rows: Mapping[str, Array], call: int) -> dict[str, Value]:
    return {name: values[call] for name, values in rows.items()}


def calls_of(rows: Mapping[str, Array]) -> int:
    return len(next(iter(rows.values())))


def _check_names(component: str, kind: str, found: Mapping[str, object], known: Mapping[str, object]) -> None:
    if unknown := found.keys() - known.keys():
        raise RequestError(f"unknown {kind} {_names(unknown)} of '{component}'", expected=_names(known))
    if missing := known.keys() - found.keys():
        raise RequestError(f"no value for {kind} {_names(missing)} of '{component}'", expected=_names(known))


def _names(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) if names else "none"


def describe_sizes(dims: Mapping[str, Shape]) -> str:
    """The sizes of a call in a few characters, for messages: those of its first input."""
    name, shape = next(iter(dims.items()))
    return f"{name} {format_shape(shape)}"
