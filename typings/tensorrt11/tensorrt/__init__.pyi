"""Of tensorrt-cu13-bindings==11.4.0.106, by benchmarks/make_typings.py: what is used of it, without texts."""

import typing
from typing import Any

__version__: str

class DataType:
    BF16: typing.ClassVar[DataType]
    BOOL: typing.ClassVar[DataType]
    E8M0: typing.ClassVar[DataType]
    FLOAT: typing.ClassVar[DataType]
    FP4: typing.ClassVar[DataType]
    FP8: typing.ClassVar[DataType]
    HALF: typing.ClassVar[DataType]
    INT32: typing.ClassVar[DataType]
    INT4: typing.ClassVar[DataType]
    INT64: typing.ClassVar[DataType]
    INT8: typing.ClassVar[DataType]
    UINT8: typing.ClassVar[DataType]
    @property
    def itemsize(self) -> Any: ...
    @property
    def name(self) -> str: ...

class IHostMemory:
    @property
    def dtype(self) -> DataType: ...
    @property
    def nbytes(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

class LayerType:
    ACTIVATION: typing.ClassVar[LayerType]
    ASSERTION: typing.ClassVar[LayerType]
    ATTENTION_INPUT: typing.ClassVar[LayerType]
    ATTENTION_OUTPUT: typing.ClassVar[LayerType]
    CAST: typing.ClassVar[LayerType]
    CONCATENATION: typing.ClassVar[LayerType]
    CONDITION: typing.ClassVar[LayerType]
    CONDITIONAL_INPUT: typing.ClassVar[LayerType]
    CONDITIONAL_OUTPUT: typing.ClassVar[LayerType]
    CONSTANT: typing.ClassVar[LayerType]
    CONVOLUTION: typing.ClassVar[LayerType]
    CUMULATIVE: typing.ClassVar[LayerType]
    DECONVOLUTION: typing.ClassVar[LayerType]
    DEQUANTIZE: typing.ClassVar[LayerType]
    DIST_COLLECTIVE: typing.ClassVar[LayerType]
    DYNAMIC_QUANTIZE: typing.ClassVar[LayerType]
    EINSUM: typing.ClassVar[LayerType]
    ELEMENTWISE: typing.ClassVar[LayerType]
    FILL: typing.ClassVar[LayerType]
    GATHER: typing.ClassVar[LayerType]
    GRID_SAMPLE: typing.ClassVar[LayerType]
    IDENTITY: typing.ClassVar[LayerType]
    ITERATOR: typing.ClassVar[LayerType]
    KV_CACHE_UPDATE: typing.ClassVar[LayerType]
    LOOP_OUTPUT: typing.ClassVar[LayerType]
    LRN: typing.ClassVar[LayerType]
    MATRIX_MULTIPLY: typing.ClassVar[LayerType]
    MOE: typing.ClassVar[LayerType]
    NMS: typing.ClassVar[LayerType]
    NON_ZERO: typing.ClassVar[LayerType]
    NORMALIZATION: typing.ClassVar[LayerType]
    ONE_HOT: typing.ClassVar[LayerType]
    PADDING: typing.ClassVar[LayerType]
    PARAMETRIC_RELU: typing.ClassVar[LayerType]
    PLUGIN: typing.ClassVar[LayerType]
    PLUGIN_V2: typing.ClassVar[LayerType]
    PLUGIN_V3: typing.ClassVar[LayerType]
    POOLING: typing.ClassVar[LayerType]
    QUANTIZE: typing.ClassVar[LayerType]
    RAGGED_SOFTMAX: typing.ClassVar[LayerType]
    RECURRENCE: typing.ClassVar[LayerType]
    REDUCE: typing.ClassVar[LayerType]
    RESIZE: typing.ClassVar[LayerType]
    REVERSE_SEQUENCE: typing.ClassVar[LayerType]
    ROTARY_EMBEDDING: typing.ClassVar[LayerType]
    SCALE: typing.ClassVar[LayerType]
    SCATTER: typing.ClassVar[LayerType]
    SELECT: typing.ClassVar[LayerType]
    SHAPE: typing.ClassVar[LayerType]
    SHUFFLE: typing.ClassVar[LayerType]
    SLICE: typing.ClassVar[LayerType]
    SOFTMAX: typing.ClassVar[LayerType]
    SQUEEZE: typing.ClassVar[LayerType]
    TOPK: typing.ClassVar[LayerType]
    TRIP_LIMIT: typing.ClassVar[LayerType]
    UNARY: typing.ClassVar[LayerType]
    UNSQUEEZE: typing.ClassVar[LayerType]
    @property
    def name(self) -> str: ...

class ITensor:
    broadcast_across_batch: bool
    location: Any
    name: str
    shape: Any
    @property
    def dtype(self) -> DataType: ...

class ILayer:
    metadata: str
    name: str
    def get_input(self, index: typing.SupportsInt) -> ITensor: ...
    def get_output(self, index: typing.SupportsInt) -> ITensor: ...
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...
    @property
    def type(self) -> LayerType: ...

class IAttention:
    causal: bool
    causal_kind: Any
    decomposable: bool
    key_value_form: Any
    key_value_lengths: ITensor
    mask: ITensor
    metadata: str
    name: str
    norm_op: Any
    normalization_quantize_scale: ITensor
    normalization_quantize_to_type: DataType
    query_form: Any
    query_lengths: ITensor
    def get_input(self, index: typing.SupportsInt) -> ITensor: ...
    def get_output(self, index: typing.SupportsInt) -> ITensor: ...
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...

class IAttentionBoundaryLayer(ILayer):
    @property
    def attention(self) -> IAttention: ...

class INetworkDefinition:
    error_recorder: Any
    name: str
    def get_input(self, index: typing.SupportsInt) -> ITensor: ...
    def get_layer(self, index: typing.SupportsInt) -> ILayer: ...
    def get_output(self, index: typing.SupportsInt) -> ITensor: ...
    @property
    def builder(self) -> Any: ...
    @property
    def num_inputs(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_outputs(self) -> int: ...

class ILogger:
    class Severity:
        ERROR: typing.ClassVar[ILogger.Severity]
        INFO: typing.ClassVar[ILogger.Severity]
        INTERNAL_ERROR: typing.ClassVar[ILogger.Severity]
        VERBOSE: typing.ClassVar[ILogger.Severity]
        WARNING: typing.ClassVar[ILogger.Severity]
        @property
        def name(self) -> str: ...
    ERROR: typing.ClassVar[ILogger.Severity]
    INFO: typing.ClassVar[ILogger.Severity]
    INTERNAL_ERROR: typing.ClassVar[ILogger.Severity]
    VERBOSE: typing.ClassVar[ILogger.Severity]
    WARNING: typing.ClassVar[ILogger.Severity]
    def __init__(self) -> None: ...
    def log(self, severity: ILogger.Severity, msg: str) -> None: ...

class IOptimizationProfile:
    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None: ...

class IProgressMonitor:
    def __init__(self) -> None: ...

class ExecutionContextAllocationStrategy:
    ON_PROFILE_CHANGE: typing.ClassVar[ExecutionContextAllocationStrategy]
    STATIC: typing.ClassVar[ExecutionContextAllocationStrategy]
    USER_MANAGED: typing.ClassVar[ExecutionContextAllocationStrategy]
    @property
    def name(self) -> str: ...

class IRuntimeConfig:
    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy=...) -> None: ...

class IExecutionContext:
    debug_sync: bool
    enqueue_emits_profile: bool
    error_recorder: Any
    name: str
    nvtx_verbosity: Any
    profiler: Any
    temporary_allocator: Any
    unfused_tensors_debug_state: bool
    def execute_async_v3(self, stream_handle: typing.SupportsInt) -> bool: ...
    def get_tensor_shape(self, name: str) -> Any: ...
    def set_device_memory(self, memory: typing.SupportsInt, size: typing.SupportsInt) -> None: ...
    def set_input_shape(self, *arguments: Any, **named: Any) -> Any: ...
    def set_optimization_profile_async(self, profile_index: typing.SupportsInt, stream_handle: typing.SupportsInt) -> bool: ...
    def set_tensor_address(self, name: str, memory: typing.SupportsInt) -> bool: ...
    def update_device_memory_size_for_shapes(self) -> int: ...
    @property
    def active_optimization_profile(self) -> int: ...
    @property
    def engine(self) -> Any: ...

class TensorLocation:
    DEVICE: typing.ClassVar[TensorLocation]
    HOST: typing.ClassVar[TensorLocation]
    @property
    def name(self) -> str: ...

class TensorIOMode:
    INPUT: typing.ClassVar[TensorIOMode]
    NONE: typing.ClassVar[TensorIOMode]
    OUTPUT: typing.ClassVar[TensorIOMode]
    @property
    def name(self) -> str: ...

class ICudaEngine:
    error_recorder: Any
    @typing.overload
    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy=...) -> IExecutionContext: ...
    @typing.overload
    def create_execution_context(self, runtime_config: IRuntimeConfig=...) -> IExecutionContext: ...
    def create_runtime_config(self) -> IRuntimeConfig: ...
    def get_tensor_dtype(self, name: str) -> DataType: ...
    def get_tensor_location(self, name: str) -> TensorLocation: ...
    def get_tensor_mode(self, name: str) -> TensorIOMode: ...
    def get_tensor_name(self, index: typing.SupportsInt) -> str: ...
    def get_tensor_shape(self, name: str) -> Any: ...
    def get_weight_streaming_automatic_budget(self) -> int: ...
    def serialize(self) -> IHostMemory: ...
    @property
    def device_memory_size_v2(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def num_io_tensors(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def weight_streaming_budget_v2(self) -> int: ...
    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, arg1: typing.SupportsInt) -> bool: ...

class BuilderFlag:
    DEBUG: typing.ClassVar[BuilderFlag]
    DIRECT_IO: typing.ClassVar[BuilderFlag]
    DISABLE_COMPILATION_CACHE: typing.ClassVar[BuilderFlag]
    DISABLE_TIMING_CACHE: typing.ClassVar[BuilderFlag]
    DISTRIBUTIVE_INDEPENDENCE: typing.ClassVar[BuilderFlag]
    EDITABLE_TIMING_CACHE: typing.ClassVar[BuilderFlag]
    ERROR_ON_TIMING_CACHE_MISS: typing.ClassVar[BuilderFlag]
    EXCLUDE_LEAN_RUNTIME: typing.ClassVar[BuilderFlag]
    GPU_FALLBACK: typing.ClassVar[BuilderFlag]
    MONITOR_MEMORY: typing.ClassVar[BuilderFlag]
    REFIT: typing.ClassVar[BuilderFlag]
    REFIT_IDENTICAL: typing.ClassVar[BuilderFlag]
    REFIT_INDIVIDUAL: typing.ClassVar[BuilderFlag]
    SAFETY_SCOPE: typing.ClassVar[BuilderFlag]
    SPARSE_WEIGHTS: typing.ClassVar[BuilderFlag]
    STRICT_NANS: typing.ClassVar[BuilderFlag]
    STRIP_PLAN: typing.ClassVar[BuilderFlag]
    TF32: typing.ClassVar[BuilderFlag]
    VERSION_COMPATIBLE: typing.ClassVar[BuilderFlag]
    WEIGHT_STREAMING: typing.ClassVar[BuilderFlag]
    @property
    def name(self) -> str: ...

class ITimingCache:
    def serialize(self) -> IHostMemory: ...
    def update(self, key: Any, value: Any) -> bool: ...

class IBuilderConfig:
    build_route: str
    default_device_type: Any
    engine_capability: Any
    hardware_compatibility_level: Any
    profiling_verbosity: Any
    progress_monitor: IProgressMonitor
    remote_auto_tuning_config: str
    runtime_platform: Any
    tiling_optimization_level: Any
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...
    def clear_flag(self, flag: BuilderFlag) -> None: ...
    def create_timing_cache(self, serialized_timing_cache: Any) -> ITimingCache: ...
    def get_timing_cache(self) -> ITimingCache: ...
    def set_flag(self, flag: BuilderFlag) -> None: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...

class Builder:
    error_recorder: Any
    def __init__(self, logger: ILogger) -> None: ...
    def build_serialized_network(self, *arguments: Any, **named: Any) -> Any: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_network(self, flags: typing.SupportsInt=...) -> INetworkDefinition: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...

class Runtime:
    dla_workspace_allocation_strategy: Any
    engine_host_code_allowed: bool
    error_recorder: Any
    temporary_directory: str
    def __init__(self, logger: ILogger) -> None: ...
    def deserialize_cuda_engine(self, *arguments: Any, **named: Any) -> Any: ...

class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None: ...
    def clear_flag(self, flag: Any) -> None: ...
    def get_error(self, index: typing.SupportsInt) -> Any: ...
    def parse_from_file(self, model: str) -> bool: ...
    def set_flag(self, flag: Any) -> None: ...
    @property
    def num_errors(self) -> int: ...

class ParserError:
    def desc(self) -> str: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...
