"""ONNX Runtime: the reference on every CPU, and CUDA where its provider is installed.

One session serves all sizes, so that `prepare` only loads. Inputs are read where they lie; outputs are
buffers of their own, so that a kept one stays valid for as long as it is held.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnxruntime as ort

from latentrt.backends.base import GraphEngine, check_files, check_graph, mapped_errors
from latentrt.engine import Array, EngineOptions, GraphFile, Shape, Value, to_host
from latentrt.errors import BundleError, EnvironmentLacks

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_FATAL = 4  # errors arrive as exceptions; ONNX Runtime need not print them as well
_UNREADABLE = ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "NoModel")


class OnnxRuntimeEngine(GraphEngine):
    """A graph in an ONNX Runtime session."""

    backend = "onnxruntime"

    def __init__(self, graph: GraphFile, *, options: EngineOptions | None = None) -> None:
        super().__init__(graph, options=options)
        self._device = self.options.device if self.options.device is not None else "cpu"
        self._session: Any = None

    def _prepare(self, dims: Mapping[str, Shape]) -> None:
        if self._session is not None:
            return
        check_files(self.graph)
        with self._announced(f"loading {self.graph.component}"):
            session = _load(self.graph, self._device, self.options.threads)
        check_graph(
            self.graph,
            inputs=[node.name for node in session.get_inputs()],
            outputs=[node.name for node in session.get_outputs()],
        )
        self._session = session

    def _run(self, feed: Mapping[str, Value], into: Mapping[str, Array], keep: Collection[str]) -> Mapping[str, Value]:
        with mapped_errors(f"running {self.graph.component}", hint="a smaller size or batch helps if memory ran out"):
            binding = self._session.io_binding()
            for name in self.inputs:
                binding.bind_ortvalue_input(name, self._wrap(feed[name]))
            for name in self.outputs:
                if name in into:
                    binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(into[name]))
                else:
                    binding.bind_output(name, self._device if name in keep else "cpu")
            self._session.run_with_iobinding(binding)
            values = dict(zip(self.outputs, binding.get_outputs(), strict=True))
            return {name: self._unwrap(name, value, into, keep) for name, value in values.items()}

    def _wrap(self, value: Value) -> Any:
        if isinstance(value, CudaArray):
            return value.ort_value
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(to_host(value)))

    def _unwrap(self, name: str, value: Any, into: Mapping[str, Array], keep: Collection[str]) -> Value:
        if name in into:
            return into[name]
        if name in keep and self._device != "cpu":
            return CudaArray(value, dtype=self.outputs[name].dtype)
        host: Array = value.numpy()
        return host

    def _release(self) -> None:
        self._session = None


class CudaArray:
    """A kept output in GPU memory."""

    def __init__(self, ort_value: Any, *, dtype: str) -> None:
        self.ort_value = ort_value
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.shape: Shape = tuple(ort_value.shape())

    def numpy(self) -> Array:
        host: Array = self.ort_value.numpy()
        return host


def open_engine(graph: GraphFile, options: EngineOptions) -> OnnxRuntimeEngine:
    """An engine that loads on first use.

    Raises:
        EnvironmentLacks: a device whose provider this ONNX Runtime was built without.
    """
    provider = _PROVIDERS[options.device if options.device is not None else "cpu"]
    if provider not in ort.get_available_providers():
        raise EnvironmentLacks(
            f"this onnxruntime has no {provider}",
            expected=f"one of {', '.join(ort.get_available_providers())}",
            hint="install onnxruntime-gpu in place of onnxruntime, or use device='cpu'",
        )
    return OnnxRuntimeEngine(graph, options=options)


def _load(graph: GraphFile, device: str, threads: int | None) -> Any:
    ort.disable_telemetry_events()
    settings = ort.SessionOptions()
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = _FATAL
    if threads is not None:
        settings.intra_op_num_threads = threads
    with mapped_errors(f"loading {graph.path}", hint="use another backend, or report the graph"):
        try:
            return ort.InferenceSession(graph.path, settings, providers=[_PROVIDERS[device]])
        except Exception as error:
            if type(error).__name__ not in _UNREADABLE:
                raise
            raise BundleError(
                f"{graph.path} cannot be read: {error}",
                expected="an ONNX graph",
                hint="export the bundle again, or copy it whole",
            ) from error
