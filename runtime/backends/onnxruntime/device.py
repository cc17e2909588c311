"""ONNX Runtime on a GPU: a session's work goes to the stream that all engines share, from and to memory of ours.

Where inputs and outputs lie is bound once for each size and direction of a loop. The provider captures each of these
bindings as a CUDA graph by itself, in their first call, which it executes twice before: memory is allocated then, and
cuDNN has searched its algorithms. Afterwards a call is one launch. None of this has run on a GPU (docs/gpus.md).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from latentrt.arrays import Shape, format_shape
from latentrt.backends.base import check_files, mapped_errors
from latentrt.backends.cuda.api import Cuda, OutOfDeviceMemory
from latentrt.backends.cuda.binding import Sizes
from latentrt.backends.cuda.cudart import Cudart
from latentrt.backends.cuda.device import Device
from latentrt.backends.cuda.engine import DeviceEngine
from latentrt.backends.cuda.libraries import check_cuda_libraries, load_cuda_libraries, needed_libraries, open_cudart
from latentrt.backends.onnxruntime.cuda import Found, choose_rewritten
from latentrt.backends.onnxruntime.load import check_session, load_session
from latentrt.backends.onnxruntime.session import PROVIDERS, WEIGHTS_FOLDER, Provider, make_session, settings
from latentrt.backends.onnxruntime.weights import NO_WEIGHTS, NewWeights
from latentrt.engine import Engine, EngineOptions
from latentrt.errors import BackendError, EnvironmentLacks, LatentRTError
from latentrt.graph import GraphFile
from latentrt.manifest.axes import tensor_shape

log = logging.getLogger(__name__)

MAX_GRAPHS = 64  # of one session, which frees none of them before its end
NO_GRAPH = -1  # as ONNX Runtime's `gpu_graph_id`
_MEMORY = re.compile(r"out of memory|ALLOC_FAILED|Failed to allocate memory|Available memory of", re.IGNORECASE)
_FAILURE = re.compile(r"(?:CUDA|CUBLAS|CUDNN) failure \d+: [^;]*[^; ]")
_ASKED = re.compile(r"buffer of size (\d+)")


class Captures:
    """Names for the CUDA graphs that a session captures; none any more once one has failed."""

    def __init__(self, component: str) -> None:
        self._component = component
        self._ids = count(1)
        self._on = True

    def new(self) -> int:
        """A name, or what stands for direct launches."""
        if not self._on:
            return NO_GRAPH
        name = next(self._ids)
        if name <= MAX_GRAPHS:
            return name
        self.stop(f"{MAX_GRAPHS} places of its inputs and outputs have been, and are kept")
        return NO_GRAPH

    def stop(self, why: str) -> None:
        """Makes all later launches direct ones, and says so once."""
        if self._on:
            log.warning("launches of %s are not captured as a CUDA graph: %s", self._component, why)
        self._on = False


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A session and what belongs to it.

    Args:
        weights: that it does not hold itself.
        lengths: of the axes that it was made for; none: it serves every size.
        captures: None: it cannot capture.
    """

    session: Any
    weights: NewWeights
    lengths: Mapping[str, int]
    captures: Captures | None


class OnnxRuntimeCudaEngine(DeviceEngine):
    """A graph in a session of ONNX Runtime's CUDA provider.

    Args:
        device: shared with the other engines of a pipeline.
        rewritten: the graph in its place that was made for CUDA; a session of it serves one size.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        graph: GraphFile,
        *,
        device: Device,
        options: EngineOptions | None = None,
        rewritten: Found | None = None,
    ) -> None:
        super().__init__(graph, device=device, options=options)
        self._rewritten = rewritten
        self._made: _Loaded | None = None
        self._uncapturable = False

    @property
    def _loaded(self) -> bool:
        return self._made is not None

    def _serves(self, sizes: Sizes) -> bool:
        if self._made is None or (sizes.sweeps and self._made.captures is None and not self._uncapturable):
            return False
        return self._made.lengths == self._lengths(sizes)

    def _load(self, sizes: Sizes) -> None:
        check_files(self.graph)
        graphs = sizes.sweeps and not self._uncapturable
        try:
            self._made = self._session(self._lengths(sizes), graphs=graphs)
        except OutOfDeviceMemory:
            raise
        except LatentRTError as error:
            if not graphs:
                raise
            said = str(error)
        if self._made is None:
            self._made = self._session(self._lengths(sizes), graphs=False)
            self._uncapturable = True
            log.warning("calls of %s are launched one kernel at a time: %s", self.graph.component, said)
        check_session(self.graph, self._made.session)

    def _launcher(self, sizes: Sizes) -> BoundSession:
        assert self._made is not None  # `_load` set it
        captures = self._made.captures if sizes.sweeps else None
        return BoundSession(self.device, self.graph, self._made, dict(sizes.dims), captures=captures)

    def _drop(self) -> None:
        self._made = None

    def _advice(self, dims: Mapping[str, Shape], free_bytes: int) -> str:
        shape = next(iter(dims.values()))
        return f"use a smaller size or batch than {format_shape(shape)}, or a bundle of lower precision"

    def _lengths(self, sizes: Sizes) -> dict[str, int]:
        return {} if self._rewritten is None else self._rewritten.record.lengths(dict(sizes.dims))

    def _session(self, lengths: Mapping[str, int], *, graphs: bool) -> _Loaded:
        """Raises OutOfDeviceMemory, BackendError, BundleError or EnvironmentLacks."""
        options, found = settings(threads=self.options.threads), self._rewritten
        provider = Provider(
            device="cuda",
            channels_last=found is not None and found.record.channels_last,
            stream=self.device.stream.handle,
            graphs=graphs,
        )
        weights = NO_WEIGHTS
        with memory_errors(f"loading {self.graph.component}"):
            if found is None:
                session, weights = load_session(self.graph, options, provider=provider)
            else:
                session = _load_rewritten(self.graph, found, lengths, options, provider)
        check_started(session)
        return _Loaded(session, weights, lengths, Captures(self.graph.component) if graphs else None)


class BoundSession:
    """One direction of a binding: addresses, and how a call of them is launched.

    Args:
        captures: None: each call launches every kernel.
    """

    def __init__(
        self,
        device: Device,
        graph: GraphFile,
        loaded: _Loaded,
        dims: Mapping[str, Shape],
        *,
        captures: Captures | None,
    ) -> None:
        self._device = device
        self._graph = graph
        self._session = loaded.session
        self._weights = loaded.weights
        self._dims = dims
        self._captures = captures
        self._graph_id: int | None = None
        self._launched = False
        self._binding = self._session.io_binding()
        lengths: dict[str, int] = {}
        for node in self._session.get_inputs():
            lengths |= {axis: n for axis, n in zip(node.shape, dims[node.name], strict=True) if isinstance(axis, str)}
        self._shapes = {node.name: tensor_shape(node.shape, lengths) for node in self._session.get_outputs()}

    def output_shape(self, name: str) -> Shape:
        """Of an output, for the sizes of the inputs."""
        return self._shapes[name]

    def place(self, addresses: Mapping[str, int]) -> None:
        """Sets where inputs and outputs lie. A captured launch keeps the addresses that it has."""
        with mapped_errors(f"binding {self._graph.component}"):
            for name, address in addresses.items():
                is_input = name in self._graph.inputs
                spec = (self._graph.inputs if is_input else self._graph.outputs)[name]
                bind = self._binding.bind_input if is_input else self._binding.bind_output
                shape = self._dims[name] if is_input else self._shapes[name]
                bind(name, "cuda", 0, np.dtype(spec.dtype), shape, address)

    def launch(self) -> None:
        """Puts one execution on the stream: the first time with what a capture needs before it."""
        if self._graph_id is None:
            self._graph_id = self._captures.new() if self._captures is not None else NO_GRAPH
        try:
            self._run(self._graph_id)
        except OutOfDeviceMemory:
            self._graph_id = None  # which has executed without being captured: a second try takes another name
            raise
        except LatentRTError as error:
            if self._captures is None or self._launched or self._graph_id == NO_GRAPH:
                raise
            self._device.synchronize()  # which fails if it was the GPU that failed
            self._captures.stop(str(error))
            self._graph_id = NO_GRAPH
            self._run(NO_GRAPH)
        self._launched = True

    def free(self) -> None:
        """Forgets what was captured: the next launch captures anew. The session frees it with itself."""
        self._graph_id, self._launched = None, False

    def _run(self, graph_id: int) -> None:
        with memory_errors(f"running {self._graph.component}"):
            self._session.run_with_iobinding(self._binding, _run_options(graph_id))


def open_on_gpu(graphs: Sequence[GraphFile], options: EngineOptions, beside: Engine | None) -> dict[str, Engine]:
    """As `onnxruntime.open_engines`, with CUDA."""
    device = beside.device if isinstance(beside, OnnxRuntimeCudaEngine) else Device(open_cuda())
    return {
        graph.component: OnnxRuntimeCudaEngine(
            graph,
            device=device,
            options=options,
            rewritten=choose_rewritten(graph, options.cache_dir, ort.__version__),
        )
        for graph in graphs
    }


def open_cuda() -> Cuda:
    """The CUDA runtime that the provider uses."""
    return Cuda(_cudart())


def check_started(session: Any) -> None:
    """Raises EnvironmentLacks where a session fell back to the CPU."""
    if PROVIDERS["cuda"] not in session.get_providers():
        raise EnvironmentLacks(
            f"onnxruntime could not start its {PROVIDERS['cuda']} and took {', '.join(session.get_providers())}",
            expected="a GPU, its driver, and the CUDA and cuDNN libraries that this onnxruntime was built for",
            hint="see its log with -v, or use device='cpu'",
        )


@contextmanager
def memory_errors(doing: str) -> Iterator[None]:
    """Maps errors of ONNX Runtime; those of memory apart, as `OutOfDeviceMemory`, so that room can be made."""
    try:
        with mapped_errors(doing):
            yield
    except LatentRTError as error:
        text = str(error.__cause__ if error.__cause__ is not None else error)
        failure = _FAILURE.search(text)
        if _MEMORY.search(text) is not None:
            asked = _ASKED.search(text)
            raise OutOfDeviceMemory(
                f"out of GPU memory while {doing}: {failure[0] if failure is not None else error.found}",
                asked_bytes=int(asked[1]) if asked is not None else 0,
            ) from error
        if failure is not None:  # without the places in ONNX Runtime's source
            raise BackendError(f"{doing} failed: {failure[0]}", hint="a failed GPU needs a new process") from error
        raise


@cache
def _cudart() -> Cudart:
    """Once a process."""
    provider = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    if provider.is_file():
        check_cuda_libraries(needed_libraries(provider), who=f"onnxruntime {ort.__version__}")
    load_cuda_libraries()
    ort.preload_dlls(directory="")  # what is left, beside onnxruntime itself
    return open_cudart(provider)


@cache
def _run_options(graph_id: int) -> Any:
    """Of a call that is only launched: nobody waits for it there."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options


def _load_rewritten(
    graph: GraphFile, rewritten: Found, lengths: Mapping[str, int], options: Any, provider: Provider
) -> Any:
    """A session for one size; the weights lie where those of the plain graph do."""
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry(WEIGHTS_FOLDER, str(graph.path.parent.resolve()))
    for axis, length in lengths.items():
        options.add_free_dimension_override_by_name(axis, length)
    hint = f"remove {rewritten.path.parent}, which brings the plain graph back, and report it"
    with mapped_errors(f"loading {rewritten.path}", hint=hint):
        return make_session(rewritten.path.read_bytes(), options, precision=graph.precision, provider=provider)
