"""TensorRT and TensorRT for RTX: engines that `latentrt build` made, driven without leaving the device.

One implementation for two modules with nearly the same surface, `tensorrt` and `tensorrt_rtx`; the module is a
parameter, and so is the CUDA runtime. What differs: TensorRT for RTX compiles its kernels when it first meets a GPU
and a size, keeps them in a cache beside the engine, and replays its launches as CUDA graphs by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from latentrt.arrays import Shape, format_shape
from latentrt.backends.cuda.api import driver_present, gigabytes, open_cuda
from latentrt.backends.cuda.binding import Sizes
from latentrt.backends.cuda.engine import DeviceEngine
from latentrt.backends.tensorrt.context import BoundContext, Replay
from latentrt.backends.tensorrt.device import TensorRtDevice
from latentrt.backends.tensorrt.loaded import LoadedPlan
from latentrt.backends.tensorrt.plans import engine_for, find_engines, usable_engines
from latentrt.backends.tensorrt.records import MODULES, BuiltEngine
from latentrt.engine import Engine, EngineOptions
from latentrt.environment.install import install_command
from latentrt.errors import BackendError, LatentRTError
from latentrt.graph import GraphFile


class TensorRtEngine(DeviceEngine):
    """One graph's engine.

    Args:
        built: the graph's engines that this machine can load.
        options: of these only `notify` means something here.
    """

    device: TensorRtDevice

    def __init__(
        self,
        graph: GraphFile,
        *,
        backend: str,
        device: TensorRtDevice,
        built: Sequence[BuiltEngine],
        options: EngineOptions | None = None,
    ) -> None:
        super().__init__(graph, device=device, options=options)
        self.backend = backend
        self._built = built
        self._plan: LoadedPlan | None = None

    @property
    def _loaded(self) -> bool:
        return self._plan is not None

    def _check(self, dims: Mapping[str, Shape]) -> None:
        engine_for(self.graph, self._built, dims)

    def _serves(self, sizes: Sizes) -> bool:
        return self._plan is not None and self._plan.built.record.profile.covers(dict(sizes.dims))

    def _load(self, sizes: Sizes) -> None:
        self._plan = LoadedPlan(self.device, self.graph, engine_for(self.graph, self._built, dict(sizes.dims)))

    def _launcher(self, sizes: Sizes) -> BoundContext:
        assert self._plan is not None  # `_load` set it
        replay = self._plan.replay if sizes.sweeps else Replay.DIRECT
        return BoundContext(self.device, self._plan.context(replay), dict(sizes.dims), replay=replay)

    def _keep(self) -> None:
        if self._plan is not None:
            self._plan.save_cache()

    def _drop(self) -> None:
        self._plan = None

    def _advice(self, dims: Mapping[str, Shape], free_bytes: int) -> str:
        record = engine_for(self.graph, self._built, dims).record
        room = free_bytes - record.plan_bytes
        if room <= 0:
            return f"its weights alone have {gigabytes(record.plan_bytes)}: use a bundle of lower precision"
        return _smaller(dims, record.profile.max, record.activation_bytes, room)


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
    return open_on(TensorRtDevice(trt, open_cuda()), graphs, options, backend)


def open_on(
    device: TensorRtDevice, graphs: Sequence[GraphFile], options: EngineOptions, backend: str
) -> dict[str, Engine]:
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
