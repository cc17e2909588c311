"""The GPU as the engines of one pipeline share it: a stream, a block for activations, page-locked memory."""

from __future__ import annotations

import logging
import math
import mmap
import re
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from latentrt.arrays import Array, Shape, Value
from latentrt.backends.tensorrt.cuda import ALIGNMENT, Buffer, Cuda, OutOfDeviceMemory, PinnedBuffer, Stream, gigabytes
from latentrt.errors import BackendError, RequestError

log = logging.getLogger(__name__)

_MEMORY = re.compile(r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|MEM_ALLOC_FAILED", re.IGNORECASE)


class ResidentEngine(Protocol):
    """An engine as its neighbours on the device see it."""

    @property
    def idle(self) -> bool:
        """Whether it may be unloaded now."""

    def unload(self) -> None: ...


class Device:
    """What the engines of a pipeline share. They take turns: one stream orders all work.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`, or a stand-in.
        cuda: the GPU.

    Attributes:
        turn: what a thread holds while it works here.
        epoch: changes when the activation block moves, which ends what was bound to the old one.
    """

    def __init__(self, trt: Any, cuda: Cuda) -> None:
        self.trt = trt
        self.cuda = cuda
        self.gpu = cuda.gpu()
        self.epoch = 0
        self.turn = threading.RLock()
        self.errors: deque[str] = deque(maxlen=8)
        self._runtime: Any = None
        self._stream: Stream | None = None
        self._activation: Buffer | None = None
        self._pinned: dict[str, PinnedBuffer] = {}
        self._uploading = False
        self._residents: list[ResidentEngine] = []

    @property
    def stream(self) -> Stream:
        """The one stream."""
        if self._stream is None:
            self._stream = Stream(self.cuda)
        return self._stream

    def enter(self, resident: ResidentEngine) -> None:
        """Notes an engine that is being loaded."""
        if resident not in self._residents:
            self._residents.append(resident)

    def leave(self, resident: ResidentEngine) -> None:
        """Notes an engine that holds nothing any more. The last one to leave frees what was shared."""
        if resident in self._residents:
            self._residents.remove(resident)
        if not self._residents:
            self._free()

    def make_room(self, asker: ResidentEngine) -> bool:
        """Unloads every other engine that is idle; whether there was one."""
        others = [resident for resident in self._residents if resident is not asker and resident.idle]
        for resident in others:
            resident.unload()
        return bool(others)

    def load(self, plan: Path, *, weights_bytes: int) -> Any:
        """Deserialises a plan that puts `weights_bytes` on the device.

        Raises:
            OutOfDeviceMemory: the weights do not fit.
            BackendError: TensorRT does not take it.
        """
        free = self.cuda.free_bytes()
        if free < weights_bytes:
            raise OutOfDeviceMemory(
                f"out of GPU memory: {plan} has {gigabytes(weights_bytes)}, {gigabytes(free)} free",
                asked_bytes=weights_bytes,
            )
        if self._runtime is None:
            self._runtime = self.trt.Runtime(make_logger(self.trt, self.errors))
        with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise self.failure(f"loading {plan}", asked_bytes=weights_bytes)
        return engine

    def activation(self, nbytes: int) -> int:
        """Address of the block for activations, at least `nbytes`. Growing it moves it: see `epoch`."""
        if nbytes == 0:
            return 0
        if self._activation is None or self._activation.nbytes < nbytes:
            if self._activation is not None:
                self.synchronize()
                self._activation.free()
            self._activation = None
            self.epoch += 1
            self._activation = Buffer(self.cuda, nbytes)
        return self._activation.ptr

    def outgoing(self, nbytes: int) -> PinnedBuffer:
        """Memory to fill and `upload`; what was uploaded from it before has arrived."""
        if self._uploading:
            self.synchronize()
        held = self._page_locked("outgoing", nbytes)
        self._uploading = True
        return held

    def incoming(self, nbytes: int) -> PinnedBuffer:
        """Memory for downloads; its last contents are gone."""
        return self._page_locked("incoming", nbytes)

    def fetch(self, tensors: Mapping[str, DeviceTensor]) -> dict[str, Array]:
        """Copies of results on the host, with one synchronisation."""
        if not tensors:
            self.synchronize()
            return {}
        host = self.incoming(sum(round_up(tensor.nbytes) for tensor in tensors.values()))
        at, places = 0, {}
        for name, tensor in tensors.items():
            tensor.download(host, at=at)
            places[name], at = at, at + round_up(tensor.nbytes)
        self.synchronize()
        return {name: tensor.read(host, at=places[name]) for name, tensor in tensors.items()}

    def synchronize(self) -> None:
        """Waits for everything launched."""
        if self._stream is not None:
            self._stream.synchronize()
        self._uploading = False

    def failure(self, doing: str, *, asked_bytes: int = 0) -> BackendError:
        """The error for a call of TensorRT that reports failure, with what its log said last."""
        detail = self.errors[-1] if self.errors else "TensorRT gave no reason"
        if any(_MEMORY.search(line) for line in self.errors):
            self.errors.clear()
            return OutOfDeviceMemory(f"out of GPU memory while {doing}: {detail}", asked_bytes=asked_bytes)
        self.errors.clear()
        return BackendError(f"{doing} failed: {detail}", hint="build the engine again; -v shows TensorRT's log")

    def _page_locked(self, use: str, nbytes: int) -> PinnedBuffer:
        held = self._pinned.get(use)
        if held is not None and held.nbytes >= nbytes:
            return held
        if held is not None:
            self.synchronize()
            held.free()
        self._pinned[use] = PinnedBuffer(self.cuda, nbytes)
        return self._pinned[use]

    def _free(self) -> None:
        if self._stream is not None:
            self._stream.free()
        for pinned in self._pinned.values():
            pinned.free()
        if self._activation is not None:
            self._activation.free()
        self._stream, self._activation, self._runtime, self._uploading = None, None, None, False
        self._pinned.clear()
        self.epoch += 1


class Lease:
    """How long a result is valid: until its engine uses the memory again."""

    def __init__(self) -> None:
        self.over = False


class DeviceTensor:
    """A result in GPU memory.

    Args:
        device: where it lies, and whose stream computes it.
        buffer: the memory; it begins there.
        shape, dtype: of the values.
        lease: how long it is valid.
        pitch_bytes: between neighbours along the first axis; None if they are adjacent.
        offset: of the first value in the buffer, in bytes.
    """

    def __init__(
        self,
        device: Device,
        buffer: Buffer,
        shape: Shape,
        dtype: np.dtype[Any],
        lease: Lease,
        *,
        pitch_bytes: int | None = None,
        offset: int = 0,
    ) -> None:
        self.device = device
        self.buffer = buffer
        self.shape = shape
        self.dtype = dtype
        self.offset = offset
        self._lease = lease
        self._pitch = pitch_bytes
        self._host: Array | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def address(self) -> int | None:
        """Where an engine can read it as it is; None if it is not in one aligned piece.

        Raises:
            RequestError: it is no longer valid.
        """
        self._check()
        return self.buffer.ptr + self.offset if self._pitch is None and self.offset % ALIGNMENT == 0 else None

    def numpy(self) -> Array:
        """A copy on the host, after what computes it.

        Raises:
            RequestError: it is no longer valid.
        """
        if self._host is not None:
            return self._host.copy()
        self._check()
        return self.device.fetch({"": self})[""]

    def download(self, host: PinnedBuffer, *, at: int) -> None:
        """Queues its copy to byte `at` of page-locked memory."""
        self._check()
        source = self.buffer.ptr + self.offset
        rows = self.shape[0] if self._pitch is not None else 1
        size = self.nbytes // rows
        for row in range(rows):
            self.device.stream.download(host, source + row * (self._pitch or 0), size, at=at + row * size)

    def read(self, host: PinnedBuffer, *, at: int) -> Array:
        """The values that `download` brought there, copied."""
        array: Array = host.array[at : at + self.nbytes].view(self.dtype).reshape(self.shape).copy()
        return array

    @property
    def copied_to_host(self) -> bool:
        """Whether it lives on the host now."""
        return self._host is not None

    def copy_to_host(self) -> None:
        """Moves it to the host, so that its memory may be freed."""
        self._host = self.numpy()

    def slot(self, index: int) -> Value:
        """`[:, index]`, a view."""
        if self._host is not None:
            return self._host[:, index]
        self._check()
        rows, slots, *rest = self.shape
        size = math.prod(rest) * self.dtype.itemsize
        pitch = self._pitch if self._pitch is not None else slots * size
        return DeviceTensor(
            self.device,
            self.buffer,
            (rows, *rest),
            self.dtype,
            self._lease,
            pitch_bytes=pitch if rows > 1 else None,
            offset=self.offset + (range(slots)[index]) * size,
        )

    def copy_to(self, address: int) -> None:
        """Copies it to another place on the device, in one call, behind what computes it."""
        self._check()
        source, stream = self.buffer.ptr + self.offset, self.device.stream
        if self._pitch is None:
            stream.copy(address, source, self.nbytes)
            return
        row = self.nbytes // self.shape[0]
        stream.copy_rows(address, source, rows=self.shape[0], row_bytes=row, pitch_bytes=self._pitch)

    def _check(self) -> None:
        if self._lease.over:
            raise RequestError(
                "a result on the device is used after its memory was reused",
                expected="use before the engine runs again",
                hint="copy it with to_host(value).copy() to hold it longer",
            )


def make_logger(trt: Any, errors: deque[str]) -> Any:
    """A logger for TensorRT that writes to `logging` and keeps the latest errors: a failed call does not tell them."""
    severity = trt.ILogger.Severity
    grave = (severity.INTERNAL_ERROR, severity.ERROR)

    class Logger(trt.ILogger):  # type: ignore[misc]  # its base is known only at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, text: str) -> None:
            if level in grave:
                errors.append(text)
            log.log(logging.INFO if level in grave or level == severity.WARNING else logging.DEBUG, "%s", text)

    return Logger()


def round_up(nbytes: int) -> int:
    """To the next multiple of the alignment, and at least one."""
    return max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT
