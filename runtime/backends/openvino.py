"""OpenVINO: the fast CPU path.

It is fast on fixed shapes, so that the graph is compiled once for each set of sizes. Two are held, for each has a copy
of the weights in its own layout; the least recently used one is dropped. The precision is always stated: its own
default silently becomes bf16 where the CPU has it. Inputs are read where they lie; outputs are written straight into
the arrays that are returned, so that a kept one stays valid for as long as it is held.

What is mapped of the files of weights leaves memory once it is packed.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.arrays import Array, Shape, Value, to_host
from latentrt.backends.base import GraphEngine, check_files, check_graph, describe_sizes, mapped_errors
from latentrt.backends.cache import cache_key, cache_of, graph_bytes
from latentrt.backends.host_memory import give_back, release_mapped
from latentrt.backends.openvino_blob import BLOB, compile_into, compiled_from
from latentrt.backends.openvino_weights import mark_widening, override, round_to_bf16
from latentrt.backends.processor import has_int8_products
from latentrt.backends.profiling.node_times import ProfiledRun
from latentrt.backends.profiling.openvino import Compiled, compiled_nodes, graph_work, latest_run
from latentrt.engine import EngineOptions
from latentrt.environment.privacy import not_installed
from latentrt.errors import BundleError, EnvironmentLacks, RequestError
from latentrt.graph import GraphFile, TensorSpec

with not_installed("openvino_telemetry"):
    import openvino as ov

log = logging.getLogger(__name__)

MAX_COMPILED = 2
MAX_COMPILED_BYTES = 4 * 2**30
_PRECISION = {"fp32": "f32", "bf16": "bf16"}


@dataclass(frozen=True, slots=True, eq=False)
class _Compiled:
    """A graph for one set of sizes, and the mapped file that it reads."""

    request: Any
    file: Any


class OpenVinoEngine(GraphEngine):
    """A graph and its compiled forms for the latest few sizes."""

    backend = "openvino"

    def __init__(self, graph: GraphFile, *, options: EngineOptions | None = None) -> None:
        super().__init__(graph, options=options)
        self._cache = cache_of(graph, self.options.cache_dir, self.backend)
        self._model: Any = None
        self._requests: OrderedDict[tuple[Shape, ...], _Compiled] = OrderedDict()
        self._nodes: dict[tuple[Shape, ...], Compiled] = {}  # of profiles alone
        self._runs: list[ProfiledRun] = []

    def profiled_runs(self) -> list[ProfiledRun]:
        return self._runs if self.options.profile else super().profiled_runs()

    def _prepare(self, dims: Mapping[str, Shape]) -> None:
        sizes = self._sizes(dims)
        if sizes in self._requests:
            self._requests.move_to_end(sizes)
            return
        # Room is made first: old and new together may be more than memory holds.
        while len(self._requests) >= self._most:
            self._requests.popitem(last=False)
        self._requests[sizes] = self._compile({name: tuple(dims[name]) for name in self.inputs})

    @property
    def _most(self) -> int:
        """Compiled forms to hold: one where memory is limited."""
        return _copies_that_fit(self.graph) if self.options.residency is None else 1

    def _compile(self, dims: Mapping[str, Shape]) -> _Compiled:
        check_files(self.graph)
        config = self._config()
        parts = ov.__version__, _processor(), repr(sorted(config.items())), repr(sorted(dims.items()))
        key = cache_key(self.graph, *parts)
        entry = self._cache.entry(key) if self._cache is not None else None
        what = f"{self.graph.component} for {describe_sizes(dims)}"
        action = f"compiling {what}, the first use of this size"
        if entry is not None and (entry / BLOB).is_file():
            action = f"loading {what}"
        hint = "use backend='onnxruntime', or a smaller size or batch if memory ran out"
        with self._announced(action), mapped_errors(f"compiling {what}", hint=hint):
            compiled, file = self._compiled(dims, config, entry)
            request = compiled.create_infer_request()
            give_back()
            if self.options.profile:
                self._nodes[self._sizes(dims)] = compiled_nodes(compiled, graph_work(self._reshaped(dims)))
        if self._cache is not None and entry is not None:
            self._cache.used(key)
        return _Compiled(request, file)

    def _compiled(self, dims: Mapping[str, Shape], config: Mapping[str, Any], entry: Path | None) -> tuple[Any, Any]:
        """The graph for these sizes as the cache has it or anew, and the mapped file that it reads."""
        compiled, file = compiled_from(_core(), config, entry)
        if compiled is not None:
            return compiled, file
        compiled = compile_into(_core(), self._packable(dims), config, entry)
        release_mapped(self.graph.weights)
        if self._rounded and entry is not None and (entry / BLOB).is_file():
            # It holds the rounded weights beside the packed ones; what is read from the file does not.
            del compiled
            compiled, file = compiled_from(_core(), config, entry)
            if compiled is None:
                compiled = compile_into(_core(), self._reshaped(dims), config, None)
        return compiled, file

    @property
    def _rounded(self) -> bool:
        """Whether weights are rounded before OpenVINO does it: for what is kept, which loads sooner."""
        return self.options.compute == "bf16" and self._cache is not None

    def _packable(self, dims: Mapping[str, Shape]) -> Any:
        """The graph for these sizes, with weights as they are to be packed."""
        model = self._reshaped(dims)
        if self._rounded:
            round_to_bf16(model)
            release_mapped(self.graph.weights)
        return model

    def _reshaped(self, dims: Mapping[str, Shape]) -> Any:
        """The graph for these sizes."""
        if self._model is None:
            self._model = _read(self.graph)
        model = self._model.clone()
        model.reshape({name: list(shape) for name, shape in dims.items()})
        return model

    def _config(self) -> dict[str, Any]:
        compute = self.options.compute if self.options.compute is not None else "fp32"
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISION[compute],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if self.options.threads is not None:
            config["INFERENCE_NUM_THREADS"] = self.options.threads
        if self.options.profile:
            config["PERF_COUNT"] = True
        return config

    def _run(self, feed: Mapping[str, Value], into: Mapping[str, Array], keep: Collection[str]) -> Mapping[str, Value]:
        sizes = self._sizes({name: feed[name].shape for name in self.inputs})
        request = self._requests[sizes].request
        with mapped_errors(f"running {self.graph.component}", hint="use backend='onnxruntime'"):
            # A request does not hold the memory of its tensors: these names do, until it is done.
            tensors = {name: _shared(feed[name]) for name in self.inputs}
            for name, tensor in tensors.items():
                request.set_tensor(name, tensor)
            fixed = {name: self._destination(request, name, into) for name in self.outputs}
            began = time.perf_counter()
            request.infer()
            if self.options.profile:
                taken_ms = 1e3 * (time.perf_counter() - began)
                self._runs.append(ProfiledRun(latest_run(request, self._nodes[sizes]), taken_ms))
            return {
                name: array if array is not None else _fetched(request, name, into) for name, array in fixed.items()
            }

    def _destination(self, request: Any, name: str, into: Mapping[str, Array]) -> Array | None:
        """The array that an output is written to; None where its shape depends on the values."""
        port = request.get_compiled_model().output(name)
        if not port.partial_shape.is_static:
            return None
        array = into[name] if name in into else np.empty(tuple(port.shape), self.outputs[name].dtype)
        request.set_tensor(port, ov.Tensor(array, shared_memory=True))
        return array

    def _sizes(self, dims: Mapping[str, Shape]) -> tuple[Shape, ...]:
        return tuple(tuple(dims[name]) for name in self.inputs)

    def _release(self) -> None:
        loaded = bool(self._requests)
        self._requests.clear()
        self._model = None
        if loaded:
            give_back()


def open_engine(graph: GraphFile, options: EngineOptions) -> OpenVinoEngine:
    """An engine that reads and compiles on first use."""
    if options.compute == "bf16" and "BF16" not in capabilities():
        raise EnvironmentLacks(
            "this CPU has no bf16 arithmetic",
            expected="AVX512-BF16 or AMX",
            hint="use compute='fp32', or an int8 bundle for speed",
        )
    if graph.precision == "int8" and not has_int8_products():
        log.warning(
            "this processor has no int8 products (VNNI): OpenVINO rounds the weights of %s once more, which cost 6 to"
            " 8 dB where it was measured; backend='onnxruntime' computes them as they are",
            graph.component,
        )
    return OpenVinoEngine(graph, options=options)


def capabilities() -> tuple[str, ...]:
    """What OpenVINO can compute in on this CPU, such as `FP32` and `BF16`."""
    return tuple(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


@cache
def _processor() -> str:
    """What compiled forms depend on of this machine."""
    return f"{_core().get_property('CPU', 'FULL_DEVICE_NAME')} {' '.join(capabilities())}"


@cache
def _core() -> Any:
    with mapped_errors("starting OpenVINO", hint="reinstall openvino, or use backend='onnxruntime'"):
        return ov.Core()


def _read(graph: GraphFile) -> Any:
    with mapped_errors(
        f"reading {graph.path}",
        error=BundleError,
        expected="an ONNX graph",
        hint="export the bundle again, or copy it whole",
    ):
        model = _core().read_model(graph.path)
        override(model, graph.overrides)
        mark_widening(model)
        inputs, outputs = _names(model.inputs, graph.inputs), _names(model.outputs, graph.outputs)
    check_graph(
        graph,
        inputs=inputs,
        outputs=outputs,
    )
    return model


def _names(ports: Any, promised: Mapping[str, TensorSpec]) -> list[str]:
    """A name for each port: of its several names the one that the manifest uses."""
    return [next((n for n in port.get_names() if n in promised), port.any_name) for port in ports]


def _copies_that_fit(graph: GraphFile) -> int:
    """How many compiled forms to hold: each has a copy of the weights in its own layout."""
    return max(1, min(MAX_COMPILED, MAX_COMPILED_BYTES // graph_bytes(graph)))


def _fetched(request: Any, name: str, into: Mapping[str, Array]) -> Array:
    """A copy of an output whose shape was not known before the run."""
    found: Array = request.get_tensor(name).data
    if name not in into:
        return found.copy()
    if into[name].shape != found.shape:
        raise RequestError(f"`into` array for '{name}' is {list(into[name].shape)}", expected=str(list(found.shape)))
    into[name][...] = found
    return into[name]


def _shared(value: Value) -> Any:
    """A tensor on the memory of `value`; a copy only where OpenVINO cannot share it."""
    return ov.Tensor(np.require(to_host(value), requirements=["C", "W"]), shared_memory=True)
