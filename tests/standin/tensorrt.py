"""A stand-in for `tensorrt` and `tensorrt_rtx`: the part of their Python surface that the runtime uses.

A plan names an ONNX file. Executing it runs that file in ONNX Runtime, on the stand-in's device memory and on the
thread of the stream. What it minds: shapes within the profile, addresses that are set, aligned, alive and do not
overlap, inputs that were written, activation memory that is large enough, a launch before a capture. It overwrites the
activation memory and poisons the outputs, so that memory shared by mistake is noticed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from standin.cudart import Cudart
from standin.memory import ALIGNMENT, POISON, Memory, MisuseError

from latentrt.backends.onnxruntime.session import make_session, settings

MAGIC = b"stand-in plan\n"
CONTEXT_BYTES = 4096
Shape = tuple[int, ...]


class TensorIOMode(IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(IntEnum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class CudaGraphStrategy(IntEnum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class DynamicShapesKernelSpecializationStrategy(IntEnum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class DataType(Enum):
    FLOAT = "float32"
    HALF = "float16"
    INT64 = "int64"
    UINT8 = "uint8"


class ILogger:
    class Severity(IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None:
        self.ready = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


def make_module(cudart: Cudart, *, variant: str, version: str = "9.9.9") -> Any:
    """The module `tensorrt` or, for the variant `tensorrt-rtx`, `tensorrt_rtx`, on a device.

    `captures` counts the graphs that contexts captured by themselves, `compiled` holds what kernels were compiled for.
    """
    own = {
        "CudaGraphStrategy": CudaGraphStrategy,
        "DynamicShapesKernelSpecializationStrategy": DynamicShapesKernelSpecializationStrategy,
    }
    module = SimpleNamespace(
        __version__=version,
        ILogger=ILogger,
        TensorIOMode=TensorIOMode,
        TensorLocation=TensorLocation,
        DataType=DataType,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
        captures=0,
        profile=0,  # of a new context; -1: none
        capturable=True,  # what contexts of TensorRT for RTX say of their launches
        says_size=True,  # whether a context knows what memory its shapes need
        compiled=[],
        **(own if variant == "tensorrt-rtx" else {}),
    )
    module.Runtime = lambda logger: Runtime(cudart, module, logger)
    return module


def make_plan(
    onnx: str,
    profile: Mapping[str, tuple[Shape, Shape]],
    *,
    dtypes: Mapping[str, str],
    weights: int,
    streamed: bool = False,
) -> bytes:
    """The bytes of a plan.

    Args:
        onnx: path of the graph.
        profile: smallest and largest shape of each input.
        dtypes: of inputs and outputs.
        weights: bytes of device memory that the engine holds.
        streamed: built so that part of them can stay on the host; what a budget leaves there costs no memory here.
    """
    document = {"onnx": onnx, "profile": profile, "dtypes": dtypes, "weights": weights, "streamed": streamed}
    return MAGIC + json.dumps(document).encode()


def activation_bytes(shapes: Mapping[str, Shape]) -> int:
    """What one execution needs, in the stand-in's world."""
    return 64 * sum(math.prod(shape) for shape in shapes.values())


@cache
def session(onnx: str) -> Any:
    """Sums in the order of the backend that it is compared with."""
    return make_session(Path(onnx), settings(threads=1), precision=None)


@cache
def output_shapes(onnx: str, shapes: tuple[tuple[str, Shape], ...]) -> dict[str, Shape]:
    """Found by running on zeros."""
    model = session(onnx)
    kinds = {node.name: _numpy_name(node.type) for node in model.get_inputs()}
    results = model.run(None, {name: np.zeros(shape, kinds[name]) for name, shape in shapes})
    return {node.name: result.shape for node, result in zip(model.get_outputs(), results, strict=True)}


class Runtime:
    def __init__(self, cudart: Cudart, module: Any, logger: Any) -> None:
        assert logger.ready, "a logger's own __init__ calls that of ILogger"
        self._parts = (cudart, module, logger)

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
        cudart, module, logger = self._parts
        data = bytes(serialized_engine)
        if not data.startswith(MAGIC):
            logger.log(ILogger.Severity.ERROR, "Error Code 1: Serialization (header.magicTag failed)")
            return None
        document = json.loads(data.removeprefix(MAGIC))
        held = 1 if document["streamed"] else document["weights"]
        address = cudart.memory.allocate(held)
        if address is None:
            logger.log(ILogger.Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was too large)")
            return None
        return Engine(cudart, module, logger, document, address)


@dataclass(frozen=True)
class Recipe:
    """What a launch needs of an engine."""

    device: Memory
    onnx: str
    inputs: tuple[str, ...]
    dtypes: Mapping[str, str]
    weights: tuple[int, int]


class Engine:
    def __init__(self, cudart: Cudart, module: Any, logger: Any, document: dict[str, Any], weights: int) -> None:
        self.cudart, self.module, self.logger = cudart, module, logger
        self.onnx: str = document["onnx"]
        self.profile = {name: tuple(map(tuple, bounds)) for name, bounds in document["profile"].items()}
        self._dtypes = document["dtypes"]
        self._weights = weights
        self._total = self._budget = document["weights"]
        self.names = list(self._dtypes)
        self.recipe = Recipe(cudart.memory, self.onnx, tuple(self.profile), self._dtypes, (weights, 1))
        self.num_io_tensors = len(self.names)

    def __del__(self) -> None:
        self.cudart.memory.free(self._weights)

    def get_weight_streaming_automatic_budget(self) -> int:
        free = self.cudart.memory.capacity - self.cudart.memory.used
        return min(self._total, free // 2)

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        address = self.cudart.memory.allocate(budget)
        assert address is not None, "an automatic budget is within what is free"
        self.cudart.memory.free(self._weights)
        self._weights, self._budget = address, budget
        self.recipe = replace(self.recipe, weights=(address, 1))

    @property
    def device_memory_size_v2(self) -> int:
        return activation_bytes({name: bounds[1] for name, bounds in self.profile.items()})

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.profile else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self._dtypes[name])

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self)

    def create_execution_context(self, runtime_config: RuntimeConfig) -> Context | None:
        address = self.cudart.memory.allocate(CONTEXT_BYTES)
        if address is None:
            self.logger.log(ILogger.Severity.ERROR, "Error Code 2: OutOfMemory (createExecutionContext)")
            return None
        return Context(self, runtime_config, address)


class RuntimeConfig:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.engine.cudart.device.name)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """What was compiled, for one GPU."""

    def __init__(self, gpu: str) -> None:
        self.gpu = gpu
        self.kernels: set[str] = set()

    def serialize(self) -> bytes:
        return json.dumps([self.gpu, sorted(self.kernels)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        try:
            gpu, kernels = json.loads(blob)
        except ValueError:
            return False
        if gpu == self.gpu:
            self.kernels |= set(kernels)
        return bool(gpu == self.gpu)


@dataclass
class Context:
    engine: Engine
    config: RuntimeConfig
    own_memory: int
    shapes: dict[str, Shape] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    memory: tuple[int, int] = (0, 0)
    launched: bool = False  # since a shape changed
    captured: object = None

    def __post_init__(self) -> None:
        module = self.engine.module
        self.active_optimization_profile: int = module.profile
        if hasattr(module, "CudaGraphStrategy"):
            streams = self.engine.cudart.streams  # a function that held the context would keep its memory
            self.is_stream_capturable = lambda stream: module.capturable and stream in streams

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.active_optimization_profile = profile_index
        return profile_index == 0 and stream_handle in self.engine.cudart.streams

    def __del__(self) -> None:
        self.engine.cudart.memory.free(self.own_memory)

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        if self.active_optimization_profile < 0:
            return self._refuse("setInputShape: no optimization profile is active")
        low, high = self.engine.profile[name]
        if len(shape) != len(low) or not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            return self._refuse(f"setInputShape: {name} {shape} is not within {low} and {high}")
        self.launched = self.launched and self.shapes.get(name) == tuple(shape)
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        if name in self.shapes:
            return self.shapes[name]
        return output_shapes(self.engine.onnx, tuple(sorted(self.shapes.items())))[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine.names or memory % ALIGNMENT:
            return self._refuse(f"setTensorAddress: {name} at {memory:#x}")
        self.addresses[name] = memory
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.shapes.keys() == self.engine.profile.keys(), "all input shapes come first"
        return activation_bytes(self.shapes) if self.engine.module.says_size else 0

    def set_device_memory(self, memory: int, size: int) -> None:
        self.memory = (memory, size)

    def execute_async_v3(self, stream_handle: int) -> bool:
        if self.config.strategy is not ExecutionContextAllocationStrategy.USER_MANAGED:
            return self._refuse("this stand-in has no memory of its own")
        if missing := [n for n in self.engine.names if n not in self.addresses or not self.get_tensor_shape(n)]:
            return self._refuse(f"enqueueV3: not specified: {missing}")
        if self.memory[1] < activation_bytes(self.shapes):
            return self._refuse("enqueueV3: too little device memory")
        cudart = self.engine.cudart
        stream = cudart.stream(stream_handle)
        if stream.captured is not None and not self.launched:
            stream.capture_failed = True
            return self._refuse("enqueueV3 in a capture before a launch in these shapes")
        if stream.captured is None:
            cudart.trace.append("execute")
        self._note_compilation()
        self._note_capture()
        self.launched = True
        shapes, addresses, memory = dict(self.shapes), dict(self.addresses), self.memory
        results = output_shapes(self.engine.onnx, tuple(sorted(shapes.items())))
        recipe = self.engine.recipe  # not the engine: what is captured keeps nothing alive
        stream.put(lambda: execute(recipe, shapes | results, addresses, memory))
        return True

    def _note_compilation(self) -> None:
        cache, kernel = self.config.cache, f"{self.engine.onnx} {sorted(self.shapes.items())}"
        if cache is not None and kernel not in cache.kernels:
            cache.kernels.add(kernel)
            self.engine.module.compiled.append(kernel)

    def _note_capture(self) -> None:
        state = (sorted(self.shapes.items()), sorted(self.addresses.items()), self.memory)
        if self.config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE and state != self.captured:
            self.captured = state
            self.engine.module.captures += 1

    def _refuse(self, why: str) -> bool:
        self.engine.logger.log(ILogger.Severity.ERROR, why)
        return False


def execute(recipe: Recipe, shapes: Mapping[str, Shape], addresses: Mapping[str, int], memory: tuple[int, int]) -> None:
    """What the device does for one launch.

    Raises:
        MisuseError: of the memory.
    """
    device = recipe.device
    device.view(*recipe.weights)
    scratch = device.view(*memory)
    views = {}
    for name, dtype in recipe.dtypes.items():
        views[name] = device.view(addresses[name], math.prod(shapes[name]) * np.dtype(dtype).itemsize)
    inputs = {name: views[name] for name in recipe.inputs}
    outputs = {name: view for name, view in views.items() if name not in inputs}
    for name, view in (*outputs.items(), ("activations", scratch)):
        if shared := [other for other, seen in views.items() if other != name and np.shares_memory(view, seen)]:
            raise MisuseError(f"'{name}' shares memory with {shared}")
    if unwritten := [name for name, view in inputs.items() if len(view) and (view == POISON).all()]:
        raise MisuseError(f"inputs {unwritten} were never written")
    feed = {name: view.copy().view(recipe.dtypes[name]).reshape(shapes[name]) for name, view in inputs.items()}
    scratch[:] = POISON
    for view in outputs.values():
        view[:] = POISON
    results = session(recipe.onnx).run(list(outputs), feed)
    for view, result in zip(outputs.values(), results, strict=True):
        view[:] = np.ascontiguousarray(result).reshape(-1).view(np.uint8)


def _numpy_name(kind: str) -> str:
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32"}.get(inner, inner)
