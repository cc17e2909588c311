"""The stand-in catches what it is there to catch, and has the names and arguments of the real thing."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from standin import tensorrt as fake_tensorrt
from standin.cudart import Cudart, Device
from standin.memory import POISON
from standin.tensorrt import ExecutionContextAllocationStrategy, ILogger, make_module, make_plan

from latentrt.backends.cuda.api import Buffer, Cuda, OutOfDeviceMemory, PinnedBuffer, Stream
from latentrt.errors import BackendError, RequestError

BYTES = 1024


@pytest.fixture
def cudart() -> Iterator[Cudart]:
    made = Cudart(Device(capacity=1 << 20))
    yield made
    for stream in made.streams.values():
        stream.stop()


@pytest.fixture
def cuda(cudart: Cudart) -> Cuda:
    return Cuda(cudart)


def filled(cuda: Cuda, stream: Stream, value: int) -> Buffer:
    """Device memory that holds one value."""
    buffer, pinned = Buffer(cuda, BYTES), PinnedBuffer(cuda, BYTES)
    pinned.array[:] = value
    stream.upload(buffer.ptr, pinned, BYTES)
    stream.synchronize()
    pinned.free()
    return buffer


def test_what_is_used_rightly_is_accepted_and_leaves_nothing(cuda: Cuda, cudart: Cudart):
    stream, pinned = Stream(cuda), PinnedBuffer(cuda, BYTES)
    first, second = filled(cuda, stream, 3), Buffer(cuda, BYTES)
    stream.copy(second.ptr, first.ptr, BYTES)
    stream.download(pinned, second.ptr, BYTES)
    stream.synchronize()
    assert (pinned.array == 3).all()
    for one in (first, second, pinned, stream):
        one.free()
        one.free()
    cudart.close()


def test_new_memory_is_poisoned_on_both_sides(cuda: Cuda, cudart: Cudart):
    assert (cudart.memory.view(Buffer(cuda, BYTES).ptr, BYTES) == POISON).all()
    assert (PinnedBuffer(cuda, BYTES).array == POISON).all()


def test_a_download_arrives_at_the_synchronisation_and_not_before(cuda: Cuda):
    stream, pinned = Stream(cuda), PinnedBuffer(cuda, BYTES)
    buffer = filled(cuda, stream, 3)
    pinned.array[:] = 7
    stream.download(pinned, buffer.ptr, BYTES)
    assert (pinned.array == POISON).all(), "what was there is gone, what comes is not there yet"
    stream.synchronize()
    assert (pinned.array == 3).all()


def test_rows_are_gathered_by_one_call(cuda: Cuda, cudart: Cudart):
    stream, pinned = Stream(cuda), PinnedBuffer(cuda, 64)
    source, to = Buffer(cuda, 64), Buffer(cuda, 32)
    pinned.array[:] = np.arange(64)
    stream.upload(source.ptr, pinned, 64)
    stream.synchronize()
    stream.copy_rows(to.ptr, source.ptr, rows=4, row_bytes=8, pitch_bytes=16)
    stream.download(pinned, to.ptr, 32)
    stream.synchronize()
    assert pinned.array[:32].tolist() == np.arange(64).reshape(4, 16)[:, :8].ravel().tolist()
    assert cudart.trace.count("copy") == 1


def test_a_graph_repeats_what_was_captured(cuda: Cuda, cudart: Cudart):
    stream, pinned = Stream(cuda), PinnedBuffer(cuda, BYTES)
    first, second = filled(cuda, stream, 3), filled(cuda, stream, 4)
    graph = stream.capture(lambda: stream.copy(second.ptr, first.ptr, BYTES))
    stream.download(pinned, second.ptr, BYTES)
    stream.synchronize()
    assert (pinned.array == 4).all(), "a capture executes nothing"
    stream.launch(graph)
    stream.download(pinned, second.ptr, BYTES)
    stream.synchronize()
    assert (pinned.array == 3).all()
    for one in (first, second, pinned, graph, stream):
        one.free()
    cudart.close()


# Each kind of misuse


def run_past_the_end(cuda: Cuda, stream: Stream) -> None:
    buffer, other = filled(cuda, stream, 1), Buffer(cuda, BYTES)
    stream.copy(other.ptr, buffer.ptr + 8, BYTES)


def use_after_free(cuda: Cuda, stream: Stream) -> None:
    buffer, other = filled(cuda, stream, 1), Buffer(cuda, BYTES)
    address = buffer.ptr
    buffer.free()
    stream.copy(other.ptr, address, BYTES)


def replay_after_free(cuda: Cuda, stream: Stream) -> None:
    buffer, other = filled(cuda, stream, 1), Buffer(cuda, BYTES)
    graph = stream.capture(lambda: stream.copy(other.ptr, buffer.ptr, BYTES))
    buffer.free()
    stream.launch(graph)
    stream.synchronize()


def free_while_busy(cuda: Cuda, stream: Stream) -> None:
    buffer, other = filled(cuda, stream, 1), Buffer(cuda, BYTES)
    stream.copy(other.ptr, buffer.ptr, BYTES)
    buffer.free()


def unpin_while_busy(cuda: Cuda, stream: Stream) -> None:
    buffer, pinned = filled(cuda, stream, 1), PinnedBuffer(cuda, BYTES)
    stream.download(pinned, buffer.ptr, BYTES)
    pinned.free()


def destroy_a_graph_while_busy(cuda: Cuda, stream: Stream) -> None:
    buffer, other = filled(cuda, stream, 1), Buffer(cuda, BYTES)
    graph = stream.capture(lambda: stream.copy(other.ptr, buffer.ptr, BYTES))
    stream.launch(graph)
    graph.free()


def change_an_upload_under_way(cuda: Cuda, stream: Stream) -> None:
    buffer, pinned = Buffer(cuda, BYTES), PinnedBuffer(cuda, BYTES)
    stream.upload(buffer.ptr, pinned, BYTES)
    pinned.array[0] = 0
    stream.synchronize()


def copy_from_ordinary_memory(cuda: Cuda, stream: Stream) -> None:
    buffer, array = Buffer(cuda, BYTES), np.zeros(BYTES, np.uint8)
    kind = cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice
    cuda.call("cudaMemcpyAsync", buffer.ptr, array.ctypes.data, BYTES, kind, next(iter(cuda.api.streams.values())))


def download_past_the_end(cuda: Cuda, stream: Stream) -> None:
    stream.download(PinnedBuffer(cuda, 8), filled(cuda, stream, 1).ptr, BYTES)


def synchronise_in_a_capture(cuda: Cuda, stream: Stream) -> None:
    stream.capture(stream.synchronize)


def allocate_in_a_capture(cuda: Cuda, stream: Stream) -> None:
    stream.capture(lambda: Buffer(cuda, BYTES))


def copy_onto_itself(cuda: Cuda, stream: Stream) -> None:
    buffer = filled(cuda, stream, 1)
    stream.copy(buffer.ptr, buffer.ptr + 8, BYTES - 8)


@pytest.mark.parametrize(
    ("misuse", "noted"),
    [
        (run_past_the_end, "run past an allocation"),
        (use_after_free, "used after it was freed"),
        (replay_after_free, "used after it was freed"),
        (free_while_busy, "freed while a stream may still use it"),
        (unpin_while_busy, "freed while a stream may still use it"),
        (destroy_a_graph_while_busy, "destroyed while a stream may still replay it"),
        (change_an_upload_under_way, "changed before its upload"),
        (copy_from_ordinary_memory, "not page-locked"),
        (download_past_the_end, "runs past page-locked memory"),
        (synchronise_in_a_capture, "synchronised during a capture"),
        (allocate_in_a_capture, "cudaMalloc during a capture"),
        (copy_onto_itself, "onto itself"),
    ],
)
def test_misuse_is_caught(misuse: Callable[[Cuda, Stream], None], noted: str, cuda: Cuda, cudart: Cudart):
    with suppress(BackendError):  # what a real device reports at once; the note is what counts
        misuse(cuda, Stream(cuda))
    assert any(noted in found for found in cudart.misuses), cudart.misuses


@pytest.mark.parametrize("kind", ["device", "page-locked", "stream", "graph"])
def test_what_is_not_freed_is_noticed(kind: str, cuda: Cuda, cudart: Cudart):
    stream = Stream(cuda)
    held = {
        "device": lambda: Buffer(cuda, BYTES),
        "page-locked": lambda: PinnedBuffer(cuda, BYTES),
        "stream": lambda: Stream(cuda),
        "graph": lambda: stream.capture(lambda: None),
    }[kind]()
    stream.free()
    assert held is not None
    with pytest.raises(AssertionError, match="still held"):
        cudart.close()
    cudart.streams.clear()


# The wrapper over it


def test_out_of_memory_says_what_was_asked_and_what_is_free(cuda: Cuda):
    with pytest.raises(OutOfDeviceMemory, match=r"0\.003 GB asked, 0\.00105 GB of 0\.00105 GB free") as caught:
        Buffer(cuda, 3_000_000)
    assert caught.value.asked_bytes == 3_000_000


def lacking(cudart: Cudart, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = cudart.cudaError_t.cudaErrorMemoryAllocation
    monkeypatch.setattr(cudart, name, lambda *_: (code, None), raising=True)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("cudaStreamCreateWithFlags", lambda cuda: Stream(cuda)),
        ("cudaGraphInstantiate", lambda cuda: Stream(cuda).capture(lambda: None)),
        ("cudaGraphLaunch", lambda cuda: (stream := Stream(cuda)).launch(stream.capture(lambda: None))),
    ],
)
def test_memory_that_other_calls_lack_is_the_same_error(
    name: str, use: Callable[[Cuda], object], cuda: Cuda, cudart: Cudart, monkeypatch: pytest.MonkeyPatch
):
    """So that room is made, and nobody is told to start a new process."""
    lacking(cudart, name, monkeypatch)
    with pytest.raises(OutOfDeviceMemory, match=rf"out of GPU memory: {name} failed.*smaller size"):
        use(cuda)
    assert cuda.failed is None


def test_page_locked_memory_is_the_hosts(cuda: Cuda, cudart: Cudart, monkeypatch: pytest.MonkeyPatch):
    lacking(cudart, "cudaHostAlloc", monkeypatch)
    with pytest.raises(BackendError, match=r"out of page-locked host memory.*on this machine") as caught:
        PinnedBuffer(cuda, BYTES)
    assert not isinstance(caught.value, OutOfDeviceMemory)


def test_a_freed_buffer_has_no_address(cuda: Cuda):
    buffer = Buffer(cuda, BYTES)
    buffer.free()
    with pytest.raises(RequestError, match="after it was freed"):
        _ = buffer.ptr


def test_failed_work_is_reported_by_the_next_synchronisation(cuda: Cuda):
    stream = Stream(cuda)
    with pytest.raises(BackendError, match=r"cudaErrorIllegalAddress \(CUDA error 700\)"):
        replay_after_free(cuda, stream)


# TensorRT


class Log(ILogger):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, severity: object, msg: str) -> None:
        self.lines.append(msg)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """y = x + x, of any length."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "double.onnx")
    return tmp_path / "double.onnx"


class Bench:
    """An engine of `onnx_file` for lengths 4 to 64, a context of it, and memory; ready but for what a test changes."""

    def __init__(self, cudart: Cudart, onnx_file: Path) -> None:
        self.cuda, self.log = Cuda(cudart), Log()
        plan = make_plan(str(onnx_file), {"x": ((4,), (64,))}, dtypes={"x": "float32", "y": "float32"}, weights=1000)
        module = make_module(cudart, variant="tensorrt")
        self.engine = module.Runtime(self.log).deserialize_cuda_engine(plan)
        config = self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(ExecutionContextAllocationStrategy.USER_MANAGED)
        self.context = self.engine.create_execution_context(config)
        self.stream = Stream(self.cuda)
        self.x, self.y, self.scratch = (filled(self.cuda, self.stream, 0) for _ in range(3))
        self.context.set_input_shape("x", (16,))
        self.place(x=self.x.ptr, y=self.y.ptr)
        self.context.set_device_memory(self.scratch.ptr, BYTES)

    def place(self, **addresses: int) -> None:
        for name, address in addresses.items():
            assert self.context.set_tensor_address(name, address)

    def execute(self) -> bool:
        done = self.context.execute_async_v3(self.stream.handle)
        self.stream.synchronize()
        return done


def test_an_engine_computes_what_its_graph_says(cudart: Cudart, onnx_file: Path):
    bench = Bench(cudart, onnx_file)
    values = np.arange(16, dtype=np.float32)
    cudart.memory.view(bench.x.ptr, 64)[:] = values.view(np.uint8)
    assert bench.execute()
    assert np.array_equal(cudart.memory.view(bench.y.ptr, 64).view(np.float32), 2 * values)
    assert (cudart.memory.view(bench.scratch.ptr, BYTES) == POISON).all(), "activations are overwritten"
    assert cudart.misuses == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b.context.set_input_shape("x", (65,)), "not within"),
        (lambda b: b.context.set_tensor_address("x", b.x.ptr + 4), "setTensorAddress"),
        (lambda b: (b.context.set_device_memory(b.scratch.ptr, 8), b.execute())[1], "too little device memory"),
        (lambda b: (b.context.addresses.clear(), b.execute())[1], "not specified"),
    ],
)
def test_what_tensorrt_refuses_is_refused(change: Callable[[Bench], bool], said: str, cudart: Cudart, onnx_file: Path):
    bench = Bench(cudart, onnx_file)
    assert change(bench) is False
    assert said in bench.log.lines[-1]


@pytest.mark.parametrize(
    ("change", "noted"),
    [
        (lambda b: b.place(y=b.x.ptr), "shares memory"),
        (lambda b: b.context.set_device_memory(b.x.ptr, BYTES), "shares memory"),
        (lambda b: b.context.set_device_memory(b.scratch.ptr, 2 * BYTES), "run past an allocation"),
        (lambda b: b.y.free(), "used after it was freed"),
        (lambda b: b.place(x=Buffer(b.cuda, BYTES).ptr), "never written"),
    ],
)
def test_a_launch_on_wrong_memory_is_noted(
    change: Callable[[Bench], object], noted: str, cudart: Cudart, onnx_file: Path
):
    bench = Bench(cudart, onnx_file)
    change(bench)
    with pytest.raises(BackendError, match="CUDA error 700"):
        bench.execute()
    assert any(noted in found for found in cudart.misuses), cudart.misuses


def test_a_capture_needs_a_launch_in_the_same_shapes_before(cudart: Cudart, onnx_file: Path):
    bench = Bench(cudart, onnx_file)
    with pytest.raises(BackendError):
        bench.stream.capture(lambda: bench.context.execute_async_v3(bench.stream.handle))
    assert "before a launch" in bench.log.lines[-1]
    assert bench.execute()
    bench.stream.capture(lambda: bench.context.execute_async_v3(bench.stream.handle))
    bench.context.set_input_shape("x", (8,))
    with pytest.raises(BackendError):
        bench.stream.capture(lambda: bench.context.execute_async_v3(bench.stream.handle))


def test_bytes_that_are_no_plan_and_weights_that_do_not_fit_give_no_engine(cudart: Cudart, onnx_file: Path):
    log = Log()
    runtime = make_module(cudart, variant="tensorrt").Runtime(log)
    assert runtime.deserialize_cuda_engine(b"no plan") is None
    assert runtime.deserialize_cuda_engine(make_plan(str(onnx_file), {}, dtypes={}, weights=1 << 30)) is None
    assert "magicTag" in log.lines[0]
    assert "OutOfMemory" in log.lines[1]


# Faithful in its surface

CALLS = [name for name in vars(Cudart) if name.startswith("cuda") and callable(getattr(Cudart, name))]


def parameters(name: str) -> list[str]:
    code = getattr(Cudart, name).__code__
    return list(code.co_varnames[1 : code.co_argcount])


@pytest.mark.parametrize("name", [name for name in CALLS if not isinstance(getattr(Cudart, name), type)])
def test_cuda_calls_have_the_real_names_and_arguments(name: str):
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    signature = re.search(rf"{name}\((.*?)\)", getattr(real, name).__doc__)
    assert signature is not None
    found = [part.split(":")[0].split()[-1] for part in signature[1].split(",") if part.strip()]
    assert parameters(name) == found


@pytest.mark.parametrize("kind", ["cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode"])
def test_cuda_enumerations_have_the_real_values(kind: str):
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    for member in getattr(Cudart, kind):
        assert int(getattr(getattr(real, kind), member.name)) == int(member)
    assert real.cudaStreamNonBlocking == Cudart.cudaStreamNonBlocking


@pytest.mark.parametrize(
    ("real", "standin"),
    [
        ("Runtime", fake_tensorrt.Runtime),
        ("ICudaEngine", fake_tensorrt.Engine),
        ("IExecutionContext", fake_tensorrt.Context),
        ("IRuntimeConfig", fake_tensorrt.RuntimeConfig),
        ("IRuntimeCache", fake_tensorrt.RuntimeCache),
        ("ILogger", fake_tensorrt.ILogger),
    ],
)
def test_tensorrt_methods_have_the_real_names_and_arguments(real: str, standin: type):
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    methods = [name for name, value in vars(standin).items() if callable(value) and not name.startswith("_")]
    assert methods or real == "RuntimeCache"
    for name in methods:
        if isinstance(getattr(standin, name), type):
            continue
        text = getattr(getattr(trt, real), name).__doc__
        code = getattr(standin, name).__code__
        found = [
            set(re.findall(r"[(, ](\w+): ", signature)) - {"self"} for signature in re.findall(r"\(self.*\)", text)
        ]
        assert set(code.co_varnames[1 : code.co_argcount]) in found, f"{name}: {found}"


@pytest.mark.parametrize(
    "kind",
    [
        "TensorIOMode",
        "TensorLocation",
        "ExecutionContextAllocationStrategy",
        "CudaGraphStrategy",
        "DynamicShapesKernelSpecializationStrategy",
    ],
)
def test_tensorrt_enumerations_have_the_real_names(kind: str):
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    members = {member.name: int(member) for member in getattr(fake_tensorrt, kind)}
    assert members == {name: int(value) for name, value in getattr(trt, kind).__members__.items()}


def test_attributes_that_are_set_exist_in_the_real_modules():
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    for name in ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"):
        assert hasattr(trt.IRuntimeConfig, name)
    assert importlib.import_module("tensorrt_rtx").__version__
    assert {member.name for member in fake_tensorrt.DataType} <= set(trt.DataType.__members__)
