# ruff: noqa: N801, N802, N803, N815 - all names are the real ones
"""A stand-in for `cuda.bindings.runtime`: the calls that the runtime makes, with the real names and arguments.

A stream is a thread that executes what is queued, in order. What is downloaded arrives when the host synchronises
and not before; until then its destination is poisoned. Whatever a real device would punish only sometimes is
noted in `misuses`, always: a test ends with `close`, which checks that the list is empty and nothing is held.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
from standin.memory import POISON, Memory, MisuseError


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


OK = cudaError_t.cudaSuccess
Operation = Callable[[], None]


class DeviceFaultError(Exception):
    """A kernel that failed: no misuse by the host."""


def _fail() -> None:
    raise DeviceFaultError("illegal address")


# Calls that a sticky error ends, and how many values they return beside it.
_VALUES = {
    "cudaMemGetInfo": 2,
    **dict.fromkeys(("cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags"), 1),
    **dict.fromkeys(("cudaStreamEndCapture", "cudaGraphInstantiate"), 1),
    **dict.fromkeys(("cudaFree", "cudaFreeHost", "cudaStreamDestroy", "cudaStreamSynchronize"), 0),
    **dict.fromkeys(("cudaMemcpyAsync", "cudaMemcpy2DAsync", "cudaMemsetAsync", "cudaStreamBeginCapture"), 0),
    **dict.fromkeys(("cudaGraphLaunch", "cudaGraphExecDestroy", "cudaGraphDestroy"), 0),
}


@dataclass
class Upload:
    """An upload under way: its source may not change before the host has synchronised."""

    source: np.ndarray
    snapshot: np.ndarray


@dataclass
class FakeGraph:
    operations: list[Operation]
    alive: bool = True


class FakeStream:
    """A queue and the thread that works it off."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.captured: list[Operation] | None = None
        self.capture_failed = False
        self.busy = False
        self.error: Exception | None = None
        self.uploads: list[Upload] = []
        self.downloads: list[tuple[np.ndarray, np.ndarray]] = []
        self._queue: queue.Queue[tuple[Operation | None, bool]] = queue.Queue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __int__(self) -> int:
        return self.handle

    def put(self, operation: Operation) -> None:
        """Queues an operation, or records it while a capture is on."""
        if self.captured is not None:
            self.captured.append(operation)
            return
        self.busy = True
        self._queue.put((operation, False))

    def drain(self) -> None:
        """Waits for all of them, then hands over what was downloaded."""
        done = threading.Event()
        self._queue.put((done.set, True))
        if not done.wait(timeout=60):
            raise RuntimeError("the stream's thread has ended")
        self.busy = False
        for to, data in self.downloads:
            to[:] = data
        self.downloads.clear()

    def stop(self) -> None:
        self._queue.put((None, True))
        self._thread.join()

    def _work(self) -> None:
        while True:
            operation, always = self._queue.get()
            if operation is None:
                return
            try:
                if self.error is None or always:
                    operation()
            except Exception as error:
                self.error = error


@dataclass
class Device:
    """What the stand-in pretends to be."""

    name: str = "Stand-in GPU"
    capability: tuple[int, int] = (8, 9)
    capacity: int = 1 << 30
    count: int = 1
    driver: int = 13000
    runtime: int = 13040


@dataclass
class Cudart:
    """The module. `trace` lists what was asked for, in order; `misuses` what was wrong."""

    device: Device = field(default_factory=Device)
    trace: list[str] = field(default_factory=list)
    misuses: list[str] = field(default_factory=list)

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking = 1

    def __post_init__(self) -> None:
        self.memory = Memory(self.device.capacity)
        self.sticky: cudaError_t | None = None
        self.capture_fault: str | None = None  # the call at which captures fail
        self.streams: dict[int, FakeStream] = {}
        self.graphs: list[FakeGraph] = []
        self._pinned: dict[int, np.ndarray] = {}
        self._handles = iter(range(0x1000, 0x7FFFFFFF, 16))

    def close(self) -> None:
        """Raises AssertionError if anything was misused or is still held."""
        held = {
            "device memory": self.memory.used,
            "page-locked memory": len(self._pinned),
            "streams": len(self.streams),
            "graphs": sum(graph.alive for graph in self.graphs),
        }
        for stream in self.streams.values():
            stream.stop()
        assert not self.misuses, self.misuses
        assert self.sticky or not any(held.values()), f"still held: {held}"

    def __getattribute__(self, name: str) -> Any:
        """After a sticky error every call returns it."""
        found = object.__getattribute__(self, name)
        if name in _VALUES and (sticky := object.__getattribute__(self, "sticky")) is not None:
            return lambda *_: (sticky, *[None] * _VALUES[name])
        return found

    def break_down(self) -> None:
        """The next kernel fails on the device, as one that reads where nothing is."""
        for stream in self.streams.values():
            stream.put(_fail)

    def count(self, *events: str) -> int:
        """How many of these are in the trace."""
        return sum(event in events for event in self.trace)

    # The device

    def cudaGetDeviceCount(self) -> tuple[Any, int | None]:
        if self.device.driver < self.device.runtime // 1000 * 1000:
            return cudaError_t.cudaErrorInsufficientDriver, None
        return (OK, self.device.count) if self.device.count else (cudaError_t.cudaErrorNoDevice, None)

    def cudaDriverGetVersion(self) -> tuple[Any, int]:
        return OK, self.device.driver

    def cudaRuntimeGetVersion(self) -> tuple[Any, int]:
        return OK, self.device.runtime

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, Any]:
        assert device == 0
        major, minor = self.device.capability
        name = self.device.name.encode()
        return OK, SimpleNamespace(name=name, major=major, minor=minor, totalGlobalMem=self.device.capacity)

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:
        return OK, self.memory.capacity - self.memory.used, self.device.capacity

    def cudaGetErrorString(self, error: Any) -> tuple[Any, bytes]:
        return OK, cudaError_t(error).name.encode()

    def cudaGetLastError(self) -> tuple[Any]:
        return (OK,)

    # Memory

    def cudaMalloc(self, size: int) -> tuple[Any, int | None]:
        if self._capturing("cudaMalloc"):
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        address = self.memory.allocate(size)
        self.trace.append("allocate")
        return (cudaError_t.cudaErrorMemoryAllocation, None) if address is None else (OK, address)

    def cudaFree(self, devPtr: int) -> tuple[Any]:
        if self._capturing("cudaFree"):
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        if any(stream.busy for stream in self.streams.values()):
            self._misused("device memory is freed while a stream may still use it")
        return (self._checked(lambda: self.memory.free(devPtr)),)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, int]:
        assert flags == 0
        array = np.full(size, POISON, np.uint8)
        self._pinned[array.ctypes.data] = array
        self.trace.append("allocate host")
        return OK, array.ctypes.data

    def cudaFreeHost(self, ptr: int) -> tuple[Any]:
        if any(stream.busy for stream in self.streams.values()):
            self._misused("page-locked memory is freed while a stream may still use it")
        if self._pinned.pop(ptr, None) is None:
            self._misused("page-locked memory is freed that is none")
        return (OK,)

    # Streams

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, FakeStream]:
        assert flags == self.cudaStreamNonBlocking
        stream = FakeStream(next(self._handles))
        self.streams[stream.handle] = stream
        return OK, stream

    def cudaStreamDestroy(self, stream: FakeStream) -> tuple[Any]:
        del self.streams[stream.handle]
        stream.stop()
        return (OK,)

    def cudaStreamSynchronize(self, stream: FakeStream) -> tuple[Any]:
        self.trace.append("synchronize")
        if stream.captured is not None:
            stream.capture_failed = True
            self._misused("a stream is synchronised during a capture")
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        stream.drain()
        for upload in stream.uploads:
            if not np.array_equal(upload.source, upload.snapshot):
                self._misused("page-locked memory was changed before its upload was known to be done")
        stream.uploads.clear()
        if stream.error is not None:
            if not isinstance(stream.error, DeviceFaultError):
                self._misused(str(stream.error))
            self.sticky = cudaError_t.cudaErrorIllegalAddress
            return (self.sticky,)
        return (OK,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: FakeStream) -> tuple[Any]:
        return self.cudaMemcpy2DAsync(dst, count, src, count, count, 1, kind, stream)

    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: Any, stream: FakeStream
    ) -> tuple[Any]:
        kinds = cudaMemcpyKind
        for row in range(height):
            to, source = dst + row * dpitch, src + row * spitch
            if kind == kinds.cudaMemcpyDeviceToDevice:
                code = self._checked(lambda to=to, source=source: self._device_copy(to, source, width, stream))
            elif kind == kinds.cudaMemcpyHostToDevice:
                code = self._checked(lambda to=to, source=source: self._upload(to, source, width, stream))
            else:
                code = self._checked(lambda to=to, source=source: self._download(to, source, width, stream))
            if code != OK:
                return (code,)
        if stream.captured is None:
            names = {1: "upload", 2: "download", 3: "copy"}
            self.trace.append(names[int(kind)])
        return (OK,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: FakeStream) -> tuple[Any]:
        def fill() -> None:
            self.memory.view(devPtr, count)[:] = value

        stream.put(fill)
        return (self._checked(lambda: self.memory.view(devPtr, count)),)

    # Graphs

    def cudaStreamBeginCapture(self, stream: FakeStream, mode: Any) -> tuple[Any]:
        stream.captured, stream.capture_failed = [], False
        return (OK,)

    def cudaStreamEndCapture(self, stream: FakeStream) -> tuple[Any, FakeGraph | None]:
        operations, stream.captured = stream.captured, None
        if stream.capture_failed or operations is None or self.capture_fault == "cudaStreamEndCapture":
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return OK, self._graph(operations)

    def cudaGraphInstantiate(self, graph: FakeGraph, flags: int) -> tuple[Any, FakeGraph]:
        assert flags == 0
        if self.capture_fault == "cudaGraphInstantiate":
            return cudaError_t.cudaErrorInvalidValue, None
        return OK, self._graph(list(graph.operations))

    def cudaGraphLaunch(self, graphExec: FakeGraph, stream: FakeStream) -> tuple[Any]:
        if not graphExec.alive:
            self._misused("a graph is launched after it was destroyed")
            return (cudaError_t.cudaErrorInvalidValue,)
        self.trace.append("launch graph")
        for operation in graphExec.operations:
            stream.put(operation)
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec: FakeGraph) -> tuple[Any]:
        if any(stream.busy for stream in self.streams.values()):
            self._misused("a graph is destroyed while a stream may still replay it")
        graphExec.alive = False
        return (OK,)

    def cudaGraphDestroy(self, graph: FakeGraph) -> tuple[Any]:
        graph.alive = False
        return (OK,)

    # For the stand-in of TensorRT

    def stream(self, handle: int) -> FakeStream:
        return self.streams[handle]

    def _graph(self, operations: list[Operation]) -> FakeGraph:
        self.graphs.append(FakeGraph(operations))
        return self.graphs[-1]

    def _device_copy(self, dst: int, src: int, count: int, stream: FakeStream) -> None:
        self.memory.view(dst, count), self.memory.view(src, count)
        if abs(dst - src) < count:
            raise MisuseError("a copy onto itself")

        def copy() -> None:
            self.memory.view(dst, count)[:] = self.memory.view(src, count)

        stream.put(copy)

    def _upload(self, dst: int, src: int, count: int, stream: FakeStream) -> None:
        self.memory.view(dst, count)
        source = self._host(src, count)
        upload = Upload(source, source.copy())
        stream.uploads.append(upload)

        def arrive() -> None:
            self.memory.view(dst, count)[:] = upload.snapshot

        stream.put(arrive)

    def _download(self, dst: int, src: int, count: int, stream: FakeStream) -> None:
        self.memory.view(src, count)
        to = self._host(dst, count)
        to[:] = POISON

        def leave() -> None:
            stream.downloads.append((to, self.memory.view(src, count).copy()))

        stream.put(leave)

    def _host(self, address: int, nbytes: int) -> np.ndarray:
        for start, array in self._pinned.items():
            if start <= address < start + max(1, len(array)):
                if address + nbytes > start + len(array):
                    raise MisuseError("a copy runs past page-locked memory")
                return array[address - start : address - start + nbytes]
        raise MisuseError("an asynchronous copy with host memory that is not page-locked")

    def _capturing(self, what: str) -> bool:
        on = [stream for stream in self.streams.values() if stream.captured is not None]
        for stream in on:
            stream.capture_failed = True
            self._misused(f"{what} during a capture")
        return bool(on)

    def _checked(self, action: Callable[[], object]) -> Any:
        try:
            action()
        except MisuseError as error:
            self._misused(str(error))
            return cudaError_t.cudaErrorInvalidValue
        return OK

    def _misused(self, what: str) -> None:
        self.misuses.append(what)
