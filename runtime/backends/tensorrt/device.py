"""The GPU as TensorRT's engines share it: what reads plans, its log, and a block for activations."""

from __future__ import annotations

import logging
import mmap
import re
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrt.backends.cuda.api import Buffer, Cuda, OutOfDeviceMemory, gigabytes
from latentrt.backends.cuda.device import Device
from latentrt.backends.tensorrt.module import TensorRt
from latentrt.errors import BackendError

if TYPE_CHECKING:
    import tensorrt

log = logging.getLogger(__name__)

_MEMORY = re.compile(r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|MEM_ALLOC_FAILED", re.IGNORECASE)


class TensorRtDevice(Device):
    """A device with a module of TensorRT.

    Args:
        trt: the module `tensorrt` or `tensorrt_rtx`, or a stand-in.

    Attributes:
        epoch: changes when the activation block moves, which ends what was bound to the old one.
    """

    def __init__(self, trt: TensorRt, cuda: Cuda) -> None:
        super().__init__(cuda)
        self.trt = trt
        self.epoch = 0
        self.errors: deque[str] = deque(maxlen=8)
        self._runtime: tensorrt.Runtime | None = None
        self._activation: Buffer | None = None

    def load(self, plan: Path, *, weights_bytes: int) -> tensorrt.ICudaEngine:
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
            engine: tensorrt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(data)
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

    def failure(self, doing: str, *, asked_bytes: int = 0) -> BackendError:
        """The error for a call of TensorRT that reports failure, with what its log said last."""
        detail = self.errors[-1] if self.errors else "TensorRT gave no reason"
        if any(_MEMORY.search(line) for line in self.errors):
            self.errors.clear()
            return OutOfDeviceMemory(f"out of GPU memory while {doing}: {detail}", asked_bytes=asked_bytes)
        self.errors.clear()
        return BackendError(f"{doing} failed: {detail}", hint="build the engine again; -v shows TensorRT's log")

    def _free(self) -> None:
        super()._free()
        if self._activation is not None:
            self._activation.free()
        self._activation, self._runtime = None, None
        self.epoch += 1


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
