"""The GPU as the engines of one pipeline share it: a stream and page-locked memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from latentrt.arrays import Array, Shape, Value
from latentrt.backends.cuda.api import ALIGNMENT, Buffer, Cuda, PinnedBuffer, Stream
from latentrt.errors import RequestError


class ResidentEngine(Protocol):
    """An engine as its neighbours on the device see it."""

    @property
    def idle(self) -> bool:
        """Whether it may be unloaded now."""

    def unload(self) -> None: ...


class Device:
    """What the engines of a pipeline share. They take turns: one stream orders all work.

    Args:
        cuda: the GPU.

    Attributes:
        turn: what a thread holds while it works here.
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.gpu = cuda.gpu()
        self.turn = threading.RLock()
        self._stream: Stream | None = None
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
        self._stream, self._uploading = None, False
        self._pinned.clear()


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


def round_up(nbytes: int) -> int:
    """To the next multiple of the alignment, and at least one."""
    return max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT
