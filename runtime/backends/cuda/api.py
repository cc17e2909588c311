"""The few calls of the CUDA runtime that the TensorRT backends make: memory, one stream, copies, graphs.

The API is a parameter: `cuda.bindings.runtime`, imported by `open_cuda` and not before, or what takes its place in
tests. Lifetimes are explicit: whoever allocates frees.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latentrt.environment.install import install_command
from latentrt.errors import BackendError, EnvironmentLacks, RequestError

ALIGNMENT = 256  # of cudaMalloc, and what TensorRT asks of activation memory
_DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class OutOfDeviceMemory(BackendError):  # noqa: N818 - as the tree names its conditions
    """An allocation that the GPU could not serve. `asked_bytes` is its size."""

    def __init__(self, found: str, *, asked_bytes: int, hint: str | None = None) -> None:
        super().__init__(found, hint=hint)
        self.asked_bytes = asked_bytes


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: its name, its compute capability, (8, 9) for sm89, and its memory."""

    name: str
    capability: tuple[int, int]
    total_bytes: int

    @property
    def architecture(self) -> str:
        """`sm89`."""
        return f"sm{self.capability[0]}{self.capability[1]}"


class Buffer:
    """Device memory, aligned to `ALIGNMENT`, until `free`."""

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        self._cuda = cuda
        self.nbytes = nbytes
        self._ptr: int | None = cuda.allocate(nbytes)

    @property
    def ptr(self) -> int:
        """The device address.

        Raises:
            RequestError: the memory has been freed.
        """
        if self._ptr is None:
            raise RequestError("device memory is used after it was freed", hint="copy what is to outlive its engine")
        return self._ptr

    def free(self) -> None:
        """Gives the memory back, waiting for nothing: synchronise first. Freeing twice is fine."""
        if self._ptr is not None:
            ptr, self._ptr = self._ptr, None
            self._cuda.release("cudaFree", ptr)


class PinnedBuffer:
    """Page-locked host memory, the only host memory that asynchronous copies take. `array` is uint8 [nbytes]."""

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        self._cuda = cuda
        self._freed = False
        self.nbytes = nbytes
        self.ptr = int(cuda.call("cudaHostAlloc", nbytes, 0))
        self.array: npt.NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self.ptr))

    def free(self) -> None:
        """Gives the memory back; `array` is empty from then on. Freeing twice is fine."""
        if not self._freed:
            self._freed, self.nbytes, self.array = True, 0, np.empty(0, np.uint8)
            self._cuda.release("cudaFreeHost", self.ptr)


class CudaGraph:
    """Recorded work that `Stream.launch` replays, at the addresses with which it was recorded."""

    def __init__(self, cuda: Cuda, executable: Any) -> None:
        self._cuda = cuda
        self.executable = executable

    def free(self) -> None:
        """Destroys it. Freeing twice is fine."""
        if self.executable is not None:
            executable, self.executable = self.executable, None
            self._cuda.release("cudaGraphExecDestroy", executable)


class Stream:
    """A queue of work on the device, in order. All but `synchronize` return at once."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._handle: Any = cuda.call("cudaStreamCreateWithFlags", cuda.api.cudaStreamNonBlocking)

    @property
    def handle(self) -> int:
        """As TensorRT takes it."""
        return int(self._handle)

    def synchronize(self) -> None:
        """Waits until all work so far is done.

        Raises:
            BackendError: some of it failed.
        """
        self._cuda.call("cudaStreamSynchronize", self._handle)

    def upload(self, to: int, source: PinnedBuffer, nbytes: int, *, at: int = 0) -> None:
        """From byte `at` of `source` to a device address. `source` may not change before the stream has done it."""
        self._copy(to, source.ptr + at, nbytes, "HostToDevice")

    def download(self, to: PinnedBuffer, source: int, nbytes: int, *, at: int = 0) -> None:
        """From a device address to byte `at` of `to`, which holds it once the stream has been synchronised."""
        self._copy(to.ptr + at, source, nbytes, "DeviceToHost")

    def copy(self, to: int, source: int, nbytes: int) -> None:
        """From device to device."""
        self._copy(to, source, nbytes, "DeviceToDevice")

    def copy_rows(self, to: int, source: int, *, rows: int, row_bytes: int, pitch_bytes: int) -> None:
        """`rows` pieces of `row_bytes`, `pitch_bytes` apart at the source and adjacent at the destination, on the
        device."""
        kind = self._cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._cuda.call("cudaMemcpy2DAsync", to, row_bytes, source, pitch_bytes, row_bytes, rows, kind, self._handle)

    def zero(self, to: int, nbytes: int) -> None:
        """Fills device memory with zeros."""
        self._cuda.call("cudaMemsetAsync", to, 0, nbytes, self._handle)

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """Records what `work` puts on this stream, without executing it."""
        cuda = self._cuda
        mode = cuda.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda.call("cudaStreamBeginCapture", self._handle, mode)
        try:
            work()
        except BaseException:
            cuda.api.cudaStreamEndCapture(self._handle)  # its own error says less than the one on its way
            raise
        graph = cuda.call("cudaStreamEndCapture", self._handle)
        try:
            return CudaGraph(cuda, cuda.call("cudaGraphInstantiate", graph, 0))
        finally:
            cuda.release("cudaGraphDestroy", graph)

    def launch(self, graph: CudaGraph) -> None:
        """Replays recorded work."""
        self._cuda.call("cudaGraphLaunch", graph.executable, self._handle)

    def free(self) -> None:
        """Waits for the work and destroys the stream."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._cuda.release("cudaStreamSynchronize", handle)
            self._cuda.release("cudaStreamDestroy", handle)

    def _copy(self, to: int, source: int, nbytes: int, direction: str) -> None:
        kind = getattr(self._cuda.api.cudaMemcpyKind, f"cudaMemcpy{direction}")
        self._cuda.call("cudaMemcpyAsync", to, source, nbytes, kind, self._handle)


class Cuda:
    """The CUDA runtime on the first GPU that it sees (`CUDA_VISIBLE_DEVICES` chooses).

    Args:
        api: `cuda.bindings.runtime`, or a stand-in.

    Attributes:
        failed: the first error after which no call can work any more; every later one repeats it.

    Raises:
        EnvironmentLacks: no GPU, no driver, or a driver that is too old.
    """

    def __init__(self, api: Any) -> None:
        self.api = api
        self.failed: str | None = None
        code, count = api.cudaGetDeviceCount()
        if code == api.cudaError_t.cudaErrorInsufficientDriver:
            raise self._driver_too_old()
        if code == api.cudaError_t.cudaErrorNoDevice or (code == api.cudaError_t.cudaSuccess and count == 0):
            raise EnvironmentLacks("no NVIDIA GPU is visible", expected="one", hint=_ELSEWHERE)
        if code != api.cudaError_t.cudaSuccess:
            raise EnvironmentLacks(f"the GPU cannot be used ({self._text(code)})", hint=_ELSEWHERE)

    def gpu(self) -> Gpu:
        """What the GPU is."""
        found = self.call("cudaGetDeviceProperties", 0)
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        return Gpu(name.rstrip("\0"), (int(found.major), int(found.minor)), int(found.totalGlobalMem))

    def free_bytes(self) -> int:
        """Device memory that nobody has allocated, in this process or another."""
        free, _ = self.call("cudaMemGetInfo")
        return int(free)

    def allocate(self, nbytes: int) -> int:
        """Address of new device memory.

        Raises:
            OutOfDeviceMemory: with what was asked and what is free.
        """
        code, ptr = self.api.cudaMalloc(nbytes)
        if code == self.api.cudaError_t.cudaErrorMemoryAllocation:
            self.api.cudaGetLastError()  # not sticky, but reported again by whoever asks next
            free, total = self.call("cudaMemGetInfo")
            raise OutOfDeviceMemory(
                f"out of GPU memory: {gigabytes(nbytes)} asked, {gigabytes(free)} of {gigabytes(total)} free",
                asked_bytes=nbytes,
            )
        self._check("cudaMalloc", code)
        return int(ptr)

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls a function of the API and returns what it returns beside the error code.

        Raises:
            BackendError: any code but success.
        """
        code, *values = getattr(self.api, name)(*arguments)
        self._check(name, code)
        return values[0] if len(values) == 1 else tuple(values)

    def release(self, name: str, *arguments: Any) -> None:
        """Calls a function that ends something. After a failure of the GPU, when all calls fail and the process's end
        frees everything, that is no error of its own.

        Raises:
            BackendError: it fails on a GPU that works.
        """
        code, *_ = getattr(self.api, name)(*arguments)
        if self.failed is None:
            self._check(name, code)

    def _check(self, name: str, code: Any) -> None:
        if code == self.api.cudaError_t.cudaSuccess:
            return
        found = f"{name} failed: {self._text(code)}"
        if self.failed is None and code == self.api.cudaError_t.cudaErrorMemoryAllocation:
            self.api.cudaGetLastError()  # not sticky, but reported again by whoever asks next
            if name == "cudaHostAlloc":
                raise BackendError(
                    f"out of page-locked host memory: {found}",
                    hint="use a smaller size or batch, or end other programs on this machine",
                )
            raise OutOfDeviceMemory(f"out of GPU memory: {found}", asked_bytes=0, hint="use a smaller size or batch")
        if self.failed is None and int(code) in _STICKY:
            self.failed = found
        raise BackendError(self.failed if self.failed is not None else found, hint="a failed GPU needs a new process")

    def _text(self, code: Any) -> str:
        _, text = self.api.cudaGetErrorString(code)
        return f"{text.decode() if isinstance(text, bytes) else text} (CUDA error {int(code)})"

    def _driver_too_old(self) -> EnvironmentLacks:
        _, driver = self.api.cudaDriverGetVersion()
        _, needed = self.api.cudaRuntimeGetVersion()
        if driver == 0:
            return EnvironmentLacks("no NVIDIA driver is installed", expected="one, and a GPU", hint=_ELSEWHERE)
        return EnvironmentLacks(
            f"the NVIDIA driver is for CUDA {_version(driver)}",
            expected=f"one for CUDA {needed // 1000}.0 or later",
            hint="update the driver, or use backend='onnxruntime'",
        )


def open_cuda() -> Cuda:
    """The CUDA runtime of this machine.

    Raises:
        EnvironmentLacks: cuda-python, a GPU or a recent enough driver is missing.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise EnvironmentLacks(
            f"cuda-python cannot be imported ({error})", hint=f"install it with: {install_command('tensorrt-rtx')}"
        ) from error
    return Cuda(runtime)


def driver_present() -> bool:
    """Whether there is an NVIDIA driver at all; takes no time where there is none."""
    try:
        ctypes.CDLL(_DRIVER_LIBRARY)
    except OSError:
        return False
    return True


def gigabytes(nbytes: int) -> str:
    """`1.74 GB`, for messages."""
    return f"{nbytes / 1e9:.3g} GB"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


# Errors after which every call of the process fails: of memory that does not correct itself, of links between GPUs, and
# of kernels (CUDA's runtime API, cudaError_t).
_STICKY = frozenset({214, 220, *range(700, 704), 709, 710, *range(714, 720)})
_ELSEWHERE = "use backend='openvino' or backend='onnxruntime' on a machine without one"
