"""TensorRT and TensorRT for RTX: engines that `latentrt build` made, driven without leaving the device.

One implementation for two modules with nearly the same surface, `tensorrt` and `tensorrt_rtx`; the module is a
parameter, and so is the CUDA runtime. What differs: TensorRT for RTX compiles its kernels when it first meets a GPU
and a size, keeps them in a cache beside the engine, and replays its launches as CUDA graphs by itself.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from latentrt.arrays import Array, Shape, Value, format_shape
from latentrt.backends.base import GraphEngine, check_dims, check_sweep, describe_sizes, in_turns, link_dims
from latentrt.backends.tensorrt.binding import Binding, Replay, Sizes
from latentrt.backends.tensorrt.chain import Chain
from latentrt.backends.tensorrt.cuda import OutOfDeviceMemory, driver_present, gigabytes, open_cuda
from latentrt.backends.tensorrt.device import Device, DeviceTensor
from latentrt.backends.tensorrt.loaded import LoadedPlan
from latentrt.backends.tensorrt.plans import engine_for, find_engines, usable_engines
from latentrt.backends.tensorrt.records import MODULES, BuiltEngine
from latentrt.engine import Engine, EngineOptions, Link
from latentrt.environment.install import install_command
from latentrt.errors import BackendError, LatentRTError, RequestError
from latentrt.graph import GraphFile

log = logging.getLogger(__name__)

MAX_BINDINGS = 4
USUAL_CALLS = 50  # rows that `prepare` makes room for
_T = TypeVar("_T")


class TensorRtEngine(GraphEngine):
    """One graph's engine, and what the latest few sizes occupy.

    Args:
        graph: what to run.
        backend: `tensorrt` or `tensorrt-rtx`.
        device: shared with the other engines of a pipeline.
        built: the graph's engines that this machine can load.
        options: of these only `notify` means something here.
    """

    def __init__(
        self,
        graph: GraphFile,
        *,
        backend: str,
        device: Device,
        built: Sequence[BuiltEngine],
        options: EngineOptions | None = None,
    ) -> None:
        super().__init__(graph, options=options)
        self.backend = backend
        self.device = device
        self.turn = device.turn
        self._built = built
        self._loaded: LoadedPlan | None = None
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
            for engine in (self, *_engines(before)):
                if engine._loaded is not None:
                    engine._loaded.save_cache()

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
            for engine in (self, *_engines(before)):
                engine._check_idle()
            with self._chained(sizes, before) as chain:
                chain.reserve(calls)
            return chain

        on_device = [value for value in feed.values() if isinstance(value, DeviceTensor)]
        with self.turn:
            chain = self._fitting(dims, reserve, fed=on_device)
        return in_turns(self._sweep_on(chain, feed, rows), self.turn)

    def wait(self) -> None:
        with self.turn:
            self.device.synchronize()

    def _sweep_on(
        self, chain: Chain, feed: Mapping[str, Value], rows: Mapping[str, Array]
    ) -> Generator[Mapping[str, Value], None, None]:
        for engine in (self, *_engines([link for link, _ in chain.links])):
            engine._check_idle()
        chain.hold(True)
        try:
            yield from chain.sweep(feed, rows)
        finally:
            chain.hold(False)

    @contextmanager
    def _chained(self, sizes: Sizes, before: Sequence[Link]) -> Iterator[Chain]:
        """The bindings of a sweep, wired to each other; none gives way to another one of them in this context."""
        last = self._bound(sizes)
        dims = dict(sizes.dims)
        given = {name: last.place(name) for name in self.inputs}
        links: list[tuple[Link, Binding]] = []
        try:
            last.active = True
            for link, engine in zip(before, _engines(before), strict=True):
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
        dims = dict(sizes.dims)
        if self._loaded is None or not self._loaded.built.record.profile.covers(dims):
            self._load(engine_for(self.graph, self._built, dims))
        assert self._loaded is not None  # `_load` set it
        self._drop_bindings(beyond=MAX_BINDINGS - 1)
        replay = self._loaded.replay if sizes.sweeps else Replay.DIRECT
        loaded = self._loaded
        self._bindings[sizes] = Binding(
            self.device, lambda: loaded.context(replay), self.inputs, self.outputs, sizes, replay=replay
        )
        return self._bindings[sizes]

    def _load(self, built: BuiltEngine) -> None:
        if not self.idle:
            raise RequestError(f"'{self.graph.component}' is in the middle of a loop", expected="it to end first")
        self._release()
        self.device.enter(self)
        with self._announced(f"loading {self.graph.component}"):
            self._loaded = LoadedPlan(self.device, self.graph, built)

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
            log.info("%s; unloading what is not needed now", error)
        for tensor in fed:
            tensor.copy_to_host()
        self._drop_bindings(beyond=0)
        self.device.make_room(self)
        try:
            return action()
        except OutOfDeviceMemory as error:
            failure = error.with_traceback(None)  # whose frames would hold what is to be freed
        self._release()
        raise self._too_large(failure, dims) from failure

    def _too_large(self, error: OutOfDeviceMemory, dims: Mapping[str, Shape]) -> BackendError:
        free, gpu = self.device.cuda.free_bytes(), self.device.gpu
        record = engine_for(self.graph, self._built, dims).record
        room = free - record.plan_bytes
        what = f"'{self.graph.component}' for {describe_sizes(dims)}"
        if room <= 0:
            advice = f"its weights alone have {gigabytes(record.plan_bytes)}: use a bundle of lower precision"
        else:
            advice = _smaller(dims, record.profile.max, record.activation_bytes, room)
        return BackendError(
            f"{what} does not fit: {error.found}",
            expected=f"room on {gpu.name}: {gigabytes(free)} of {gigabytes(gpu.total_bytes)} are free with the other "
            "engines unloaded",
            hint=f"{advice}, or end other programs on the GPU",
        )

    def _release(self) -> None:
        if self._loaded is None and not self._bindings:
            self.device.leave(self)
            return
        try:
            if self.device.cuda.failed is None:
                self.device.synchronize()
                if self._loaded is not None:
                    self._loaded.save_cache()
        finally:
            for binding in self._bindings.values():
                binding.free()
            self._bindings.clear()
            self._loaded = None
            self.device.leave(self)


def _engines(links: Sequence[Link]) -> list[TensorRtEngine]:
    """Of links.

    Raises:
        RequestError: one of another backend.
    """
    engines = [link.engine for link in links if isinstance(link.engine, TensorRtEngine)]
    if len(engines) != len(links):
        raise RequestError("a link of another backend", expected="engines that were opened together")
    return engines


def open_engines(
    graphs: Sequence[GraphFile], options: EngineOptions, backend: str, beside: Engine | None = None
) -> dict[str, Engine]:
    """An engine for each graph, by component, on one device, that of `beside` if it is given. Nothing is loaded yet.

    Raises:
        EnvironmentLacks: no GPU, a driver that is too old, or no engine that this machine can load.
        BackendError: the module cannot be imported.
    """
    if isinstance(beside, TensorRtEngine):
        return open_on(beside.device, graphs, options, backend)
    name = MODULES[backend]
    try:
        trt = import_module(name)
    except ImportError as error:
        raise BackendError(
            f"{name} cannot be imported: {error}", hint=f"install it with: {install_command(backend)}"
        ) from error
    return open_on(Device(trt, open_cuda()), graphs, options, backend)


def open_on(device: Device, graphs: Sequence[GraphFile], options: EngineOptions, backend: str) -> dict[str, Engine]:
    """As `open_engines`, on a device that is given."""
    engines: dict[str, Engine] = {}
    for graph in graphs:
        found = find_engines(graph, options.cache_dir, backend)
        version = str(device.trt.__version__)
        built = usable_engines(graph, found, variant=backend, version=version, gpu=device.gpu)
        engines[graph.component] = TensorRtEngine(graph, backend=backend, device=device, built=built, options=options)
    return engines


def obstacle(graphs: Sequence[GraphFile], cache_dir: Path | None, backend: str) -> str | None:
    """Why this backend cannot run these graphs here, or None if it can. Cheap where nothing is built."""
    for graph in graphs:
        if not find_engines(graph, cache_dir, backend):
            return f"no engine of '{graph.component}' is built"
    if not driver_present():
        return "no NVIDIA driver"
    try:
        open_engines(graphs, EngineOptions(cache_dir=cache_dir), backend)
    except LatentRTError as error:
        return str(error)
    return None


def _smaller(dims: Mapping[str, Shape], largest: Mapping[str, Shape], activation_bytes: int | None, room: int) -> str:
    """What might fit, if activations grow with the first input."""
    name, shape = next(iter(dims.items()))
    share = 1.0
    for length, most in zip(shape, largest[name], strict=True):
        share *= length / most
    fitting = 0 if activation_bytes is None else int(shape[0] * room / max(1.0, activation_bytes * share))
    if 1 <= fitting < shape[0]:
        return f"a batch of {fitting} instead of {shape[0]} should fit"
    return f"use a smaller size than {format_shape(shape)}" + (" or batch" if shape[0] > 1 else "")
