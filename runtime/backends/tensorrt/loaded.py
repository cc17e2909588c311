"""A plan in GPU memory, and the execution contexts that it makes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from latentrt.backends.base import check_graph
from latentrt.backends.tensorrt.context import Replay
from latentrt.backends.tensorrt.device import TensorRtDevice
from latentrt.backends.tensorrt.module import TensorRtRtx
from latentrt.backends.tensorrt.plans import check_plan
from latentrt.backends.tensorrt.records import BuiltEngine
from latentrt.errors import BackendError, BundleError
from latentrt.files.atomic import write_if_possible
from latentrt.graph import GraphFile, TensorSpec

if TYPE_CHECKING:
    import tensorrt
    import tensorrt_rtx

log = logging.getLogger(__name__)

RUNTIME_CACHE = "runtime.cache"
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


class LoadedPlan:
    """A deserialised engine. Dropping it frees its weights.

    Raises:
        IntegrityError: the file is not what was built.
        BundleError: other inputs or outputs than the graph's.
        OutOfDeviceMemory, BackendError: it cannot be loaded.
    """

    def __init__(self, device: TensorRtDevice, graph: GraphFile, built: BuiltEngine) -> None:
        check_plan(built)
        self.built = built
        self._device = device
        streamed = "weight_streaming" in built.record.options
        self._engine = device.load(built.plan, weights_bytes=0 if streamed else built.record.plan_bytes)
        self._check_io(graph)
        if streamed:  # all on the device where that has room, by TensorRT's own estimate
            self._engine.weight_streaming_budget_v2 = self._engine.get_weight_streaming_automatic_budget()
        own = hasattr(device.trt, "CudaGraphStrategy")
        self.replay = Replay.OWN_GRAPH if own else Replay.CUDA_GRAPH
        self._configs: dict[Replay, tensorrt.IRuntimeConfig] = {}
        self._cache: tensorrt_rtx.IRuntimeCache | None = None
        self._cache_bytes = b""

    def context(self, replay: Replay) -> tensorrt.IExecutionContext:
        """A new execution context that leaves activation memory to its user."""
        if replay not in self._configs:
            self._configs[replay] = self._config(replay)
        context = self._engine.create_execution_context(self._configs[replay])
        if context is None:
            raise self._device.failure(f"making a context for '{self.built.record.component}'")
        return context

    def save_cache(self) -> None:
        """Keeps the kernels that TensorRT for RTX compiled here beside the plan, if there are new ones."""
        if self._cache is None:
            return
        data = bytes(self._cache.serialize())
        if data != self._cache_bytes:
            write_if_possible(self.built.plan.with_name(RUNTIME_CACHE), data)
            self._cache_bytes = data

    def _config(self, replay: Replay) -> tensorrt.IRuntimeConfig:
        trt, config = self._device.trt, self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.replay is Replay.OWN_GRAPH:
            rtx, own = cast(TensorRtRtx, trt), cast("tensorrt_rtx.IRuntimeConfig", config)
            strategy = rtx.CudaGraphStrategy
            captured = replay is Replay.OWN_GRAPH
            own.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if captured else strategy.DISABLED
            # Each context keeps to one size, so that its kernels are compiled for it, once, and kept.
            own.dynamic_shapes_kernel_specialization_strategy = rtx.DynamicShapesKernelSpecializationStrategy.EAGER
            own.set_runtime_cache(self._runtime_cache(own))
        return config

    def _runtime_cache(self, config: tensorrt_rtx.IRuntimeConfig) -> tensorrt_rtx.IRuntimeCache:
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            path = self.built.plan.with_name(RUNTIME_CACHE)
            try:
                data = path.read_bytes()
            except OSError:
                return self._cache
            if self._cache.deserialize(data):
                self._cache_bytes = data
            else:
                log.info("%s is of another GPU, driver or version: kernels are compiled anew", path)
        return self._cache

    def _check_io(self, graph: GraphFile) -> None:
        """Compares names and dtypes with the graph's."""
        trt, engine = self._device.trt, self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        check_graph(graph, inputs=inputs, outputs=[name for name in names if name not in inputs])
        specs: Mapping[str, TensorSpec] = {**graph.inputs, **graph.outputs}
        for name in names:
            found = _DTYPES.get(engine.get_tensor_dtype(name).name, engine.get_tensor_dtype(name).name)
            if found != specs[name].dtype:
                raise BundleError(
                    f"'{name}' of the engine of '{graph.component}' is {found}",
                    expected=specs[name].dtype,
                    hint="build the engine again",
                )
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise BackendError(
                    f"the engine of '{graph.component}' reads '{name}' on the host",
                    expected="inputs and outputs on the device",
                    hint="report the graph",
                )
