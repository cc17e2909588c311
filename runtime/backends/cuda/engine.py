"""What the backends of a GPU do alike: sizes bound once, loops that stay on the device, room where it is short."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from latentrt.arrays import Array, Shape, Value
from latentrt.backends.base import GraphEngine, check_dims, check_sweep, describe_sizes, in_turns, link_dims
from latentrt.backends.cuda.api import OutOfDeviceMemory, gigabytes
from latentrt.backends.cuda.binding import Binding, Launcher, Sizes
from latentrt.backends.cuda.chain import Chain
from latentrt.backends.cuda.device import Device, DeviceTensor
from latentrt.engine import EngineOptions, Link
from latentrt.errors import BackendError, RequestError, without_frames
from latentrt.graph import GraphFile

log = logging.getLogger(__name__)

MAX_BINDINGS = 4
USUAL_CALLS = 50  # rows that `prepare` makes room for
_T = TypeVar("_T")


class DeviceEngine(GraphEngine):
    """One graph on a GPU, and what the latest few sizes occupy. A backend fills in how it is loaded and launched.

    Args:
        graph: what to run.
        device: shared with the other engines of a pipeline.
        options: how; None is every default.
    """

    on_device = True

    def __init__(self, graph: GraphFile, *, device: Device, options: EngineOptions | None = None) -> None:
        super().__init__(graph, options=options)
        self.device = device
        self.turn = device.turn
        self._bindings: OrderedDict[Sizes, Binding] = OrderedDict()

    @property
    def idle(self) -> bool:
        """Whether no loop is under way."""
        return not any(binding.active for binding in self._bindings.values())

    def prepare(
        self,
        dims: Mapping[str, Shape],
        *,
        rows: Collection[str] = (),
        carry: Mapping[str, str] | None = None,
        before: Sequence[Link] = (),
    ) -> None:
        self._check_open()
        check_dims(self.graph, dims)
        sizes = Sizes.of(dims, rows=rows, carry=carry if carry is not None else {})

        def warm() -> None:
            with self._chained(sizes, before) as chain:
                chain.reserve(USUAL_CALLS)
                if not chain.warmed:
                    with self._announced(f"warming up {self.graph.component} for {describe_sizes(dims)}"):
                        chain.warm()

        with self.turn:
            self._fitting(dims, warm)
            for engine in (self, *self._engines(before)):
                engine._keep()

    def run(
        self,
        feed: Mapping[str, Value],
        *,
        into: Mapping[str, Array] | None = None,
        keep: Collection[str] = (),
    ) -> Mapping[str, Value]:
        dims = {name: value.shape for name, value in feed.items() if hasattr(value, "shape")}
        on_device = [value for value in feed.values() if isinstance(value, DeviceTensor)]
        run = super().run
        with self.turn:
            return self._fitting(dims, lambda: run(feed, into=into, keep=keep), fed=on_device)

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
        dims = {name: tuple(value.shape) for name, value in feed.items()}
        dims |= {name: tuple(values.shape[1:]) for name, values in rows.items()}
        sizes = Sizes.of(dims, rows=rows, carry=carry)
        calls = len(next(iter(rows.values())))

        def reserve() -> Chain:
            for engine in (self, *self._engines(before)):
                engine._check_idle()
            with self._chained(sizes, before) as chain:
                chain.reserve(calls)
            return chain

        on_device = [value for value in feed.values() if isinstance(value, DeviceTensor)]
        with self.turn:
            chain = self._fitting(dims, reserve, fed=on_device)
        return in_turns(self._sweep_on(chain, feed, rows, dims), self.turn)

    def wait(self) -> None:
        with self.turn:
            self.device.synchronize()

    def _sweep_on(
        self, chain: Chain, feed: Mapping[str, Value], rows: Mapping[str, Array], dims: Mapping[str, Shape]
    ) -> Generator[Mapping[str, Value], None, None]:
        """The first call may ask for memory, as all launches that have not been prepared, and can be begun again."""
        for engine in (self, *self._engines([link for link, _ in chain.links])):
            engine._check_idle()
        chain.hold(True)

        def begin() -> tuple[Mapping[str, Value], Generator[Mapping[str, Value], None, None]]:
            calls = chain.sweep(feed, rows)
            return next(calls), calls

        on_device = [value for value in feed.values() if isinstance(value, DeviceTensor)]
        try:
            first, calls = self._fitting(dims, begin, fed=on_device)
            yield first
            yield from calls
        except OutOfDeviceMemory as error:  # in a later call, when the state that came before is gone
            failure = without_frames(error)
        else:
            return
        finally:
            chain.hold(False)
        self.device.make_room(self)
        self._release()
        raise self._too_large(failure, dims) from failure

    @contextmanager
    def _chained(self, sizes: Sizes, before: Sequence[Link]) -> Iterator[Chain]:
        """The bindings of a sweep, wired to each other; none gives way to another one of them in this context."""
        last = self._bound(sizes)
        dims = dict(sizes.dims)
        given = {name: last.place(name) for name in self.inputs}
        links: list[tuple[Link, Binding]] = []
        try:
            last.active = True
            for link, engine in zip(before, self._engines(before), strict=True):
                own = {*link.feed, *link.rows}
                reads = {name: given[name] for name in engine.inputs if name not in own}
                binding = engine._bound(Sizes.of(link_dims(link, dims), rows=link.rows, carry={}, reads=reads))
                binding.active = True
                links.append((link, binding))
                given |= {name: binding.place(output) for output, name in link.gives.items()}
            last.take({name: given[name] for link in before for name in link.gives.values()})
            yield Chain(last, links)
        finally:
            Chain(last, links).hold(False)

    def _check_idle(self) -> None:
        if not self.idle:
            raise RequestError(f"'{self.graph.component}' is in the middle of a loop", expected="one at a time")

    def _prepare(self, dims: Mapping[str, Shape]) -> None:
        self._bound(Sizes.of(dims, carry={}))

    def _run(self, feed: Mapping[str, Value], into: Mapping[str, Array], keep: Collection[str]) -> Mapping[str, Value]:
        binding = self._bindings[Sizes.of({name: feed[name].shape for name in self.inputs}, carry={})]
        for name, array in into.items():
            if array.shape != binding.shapes[name]:
                raise RequestError(
                    f"`into` array for '{name}' is {list(array.shape)}", expected=str(list(binding.shapes[name]))
                )
        results = binding.run(feed)
        wanted = {name: tensor for name, tensor in results.items() if name not in keep}
        fetched = self.device.fetch(wanted)
        for name, array in into.items():
            array[...] = fetched[name]
        return {name: into[name] if name in into else fetched.get(name, results[name]) for name in self.outputs}

    def _bound(self, sizes: Sizes) -> Binding:
        """The binding for these sizes, made if need be; the plan that covers them is loaded."""
        if sizes in self._bindings:
            self._bindings.move_to_end(sizes)
            return self._bindings[sizes]
        if not self._serves(sizes):
            if not self.idle:
                raise RequestError(f"'{self.graph.component}' is in the middle of a loop", expected="it to end first")
            self._release()
            self.device.enter(self)
            with self._announced(f"loading {self.graph.component}"):
                self._load(sizes)
        self._drop_bindings(beyond=MAX_BINDINGS - 1)
        self._bindings[sizes] = Binding(self.device, lambda: self._launcher(sizes), self.inputs, self.outputs, sizes)
        return self._bindings[sizes]

    def _drop_bindings(self, *, beyond: int) -> None:
        """Frees the least recently used ones, but none in a loop."""
        for sizes in [sizes for sizes, binding in self._bindings.items() if not binding.active]:
            if len(self._bindings) <= beyond:
                return
            self.device.synchronize()
            self._bindings.pop(sizes).free()

    def _fitting(self, dims: Mapping[str, Shape], action: Callable[[], _T], *, fed: Sequence[DeviceTensor] = ()) -> _T:
        """What `action` returns; where memory is too small, the pipeline's other engines make room for a second try.

        Raises:
            BackendError: it is too small even so. The engine is unloaded, and can be used again.
        """
        try:
            return action()
        except OutOfDeviceMemory as error:
            log.info("%s; unloading what is not needed now", str(error))  # a record would hold the frames
        for tensor in fed:
            tensor.copy_to_host()
        self._drop_bindings(beyond=0)
        self.device.make_room(self)
        try:
            return action()
        except OutOfDeviceMemory as error:
            failure = without_frames(error)
        self._release()
        raise self._too_large(failure, dims) from failure

    def _too_large(self, error: OutOfDeviceMemory, dims: Mapping[str, Shape]) -> BackendError:
        free, gpu = self.device.cuda.free_bytes(), self.device.gpu
        return BackendError(
            f"'{self.graph.component}' for {describe_sizes(dims)} does not fit: {error.found}",
            expected=f"room on {gpu.name}: {gigabytes(free)} of {gigabytes(gpu.total_bytes)} are free with the other "
            "engines unloaded",
            hint=f"{self._advice(dims, free)}, or end other programs on the GPU",
        )

    def _release(self) -> None:
        if not self._loaded and not self._bindings:
            self.device.leave(self)
            return
        try:
            if self.device.cuda.failed is None:
                self.device.synchronize()
                self._keep()
        finally:
            for binding in self._bindings.values():
                binding.free()
            self._bindings.clear()
            self._drop()
            self.device.leave(self)

    def _engines(self, links: Sequence[Link]) -> list[DeviceEngine]:
        """Of links.

        Raises:
            RequestError: one that is not on this device.
        """
        engines = [link.engine for link in links if isinstance(link.engine, DeviceEngine)]
        if len(engines) != len(links) or any(engine.device is not self.device for engine in engines):
            raise RequestError("a link of another backend", expected="engines that were opened together")
        return engines

    @property
    @abstractmethod
    def _loaded(self) -> bool:
        """Whether anything of the graph is on the device."""

    @abstractmethod
    def _serves(self, sizes: Sizes) -> bool:
        """Whether what is loaded can be launched for these."""

    @abstractmethod
    def _load(self, sizes: Sizes) -> None:
        """Loads what can; nothing is loaded now."""

    @abstractmethod
    def _launcher(self, sizes: Sizes) -> Launcher:
        """A launcher for one direction of a binding of these sizes."""

    def _keep(self) -> None:
        """Saves for other processes what was compiled here."""

    @abstractmethod
    def _drop(self) -> None:
        """Forgets what was loaded. The device is done with it."""

    @abstractmethod
    def _advice(self, dims: Mapping[str, Shape], free_bytes: int) -> str:
        """What to try where these sizes do not fit beside nothing else."""
