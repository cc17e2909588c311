"""One set of sizes of an engine: its memory on the device, and what is launched on it again and again.

The inputs lie in one block, those that change with each call first: a call's row of the table goes there in one copy.
A carried input and the output that becomes it are a pair of buffers that change places after each call. A launcher
belongs to each direction, so that its addresses and sizes never change and its launches can be replayed as a graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard

import numpy as np

from latentrt.arrays import Array, Shape, Value, to_host
from latentrt.backends.cuda.api import Buffer
from latentrt.backends.cuda.device import Device, DeviceTensor, Lease, round_up
from latentrt.errors import RequestError
from latentrt.graph import TensorSpec

Addresses = tuple[int, int]
"""Where something lies in even and in odd calls of a sweep."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a binding is made for: the shape of every input, which of them change with each call of a sweep, what is
    fed back, and what it reads in the memory of others, with the addresses in even and in odd calls."""

    dims: tuple[tuple[str, Shape], ...]
    rows: tuple[str, ...] = ()
    carry: tuple[tuple[str, str], ...] = ()
    reads: tuple[tuple[str, Addresses], ...] = ()

    @classmethod
    def of(
        cls,
        dims: Mapping[str, Shape],
        *,
        rows: Collection[str] = (),
        carry: Mapping[str, str],
        reads: Mapping[str, Addresses] | None = None,
    ) -> Sizes:
        return cls(
            tuple((name, tuple(dims[name])) for name in sorted(dims)),
            tuple(sorted(rows)),
            tuple(sorted(carry.items())),
            tuple(sorted(reads.items())) if reads is not None else (),
        )

    @property
    def sweeps(self) -> bool:
        """Whether it is launched again and again at the same addresses."""
        return bool(self.rows or self.reads)


class Launcher(Protocol):
    """Something that can be launched again and again, for sizes of its own; its addresses are set before the first
    launch."""

    def output_shape(self, name: str) -> Shape:
        """Of an output, for the sizes of the inputs."""

    def place(self, addresses: Mapping[str, int]) -> None:
        """Sets where inputs and outputs lie. What was captured before keeps the addresses that it has: see `free`."""

    def launch(self) -> None:
        """Puts one execution on the stream."""

    def free(self) -> None:
        """Forgets what was captured. The device must be done with it."""


class Binding:
    """Memory and contexts for one set of sizes.

    Args:
        device: where.
        make_launcher: one for the engine at these sizes.
        inputs, outputs: of the graph.
        sizes: what it is for.

    Raises:
        OutOfDeviceMemory: it does not fit; nothing is kept.
    """

    def __init__(
        self,
        device: Device,
        make_launcher: Callable[[], Launcher],
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
        sizes: Sizes,
    ) -> None:
        self.active = False
        self.warmed = False
        self._device = device
        self._dims = dict(sizes.dims)
        self._carry = dict(sizes.carry)
        self._reads = dict(sizes.reads)
        self._given: dict[str, Addresses] = {}
        self._inputs = inputs
        self._outputs = outputs
        self._owned: list[Buffer] = []
        self._table: Buffer | None = None
        self._lease = Lease()
        self._contexts: list[Launcher] = []
        self._rows = [name for name in inputs if name in sizes.rows]
        held = [name for name in inputs if name not in self._reads]
        plain = [name for name in held if name not in sizes.rows and name not in self._carry]
        self._offsets, self._row_bytes, block_bytes = self._layout(self._rows, plain)
        try:
            self._block = self._buffer(block_bytes)
            self._contexts.append(make_launcher())
            self.shapes = {name: self._contexts[0].output_shape(name) for name in outputs}
            self._results = {name: self._buffer(self._size(outputs[name], self.shapes[name])) for name in outputs}
            self._starts = {name: self._buffer(self._size(inputs[name], self._dims[name])) for name in self._carry}
            if self._carry or any(even != odd for even, odd in self._reads.values()):
                self._contexts.append(make_launcher())
            for direction, bound in enumerate(self._contexts):
                bound.place(self._addresses(direction))
        except BaseException:
            self.free()
            raise

    @property
    def freed(self) -> bool:
        return not self._owned

    def run(self, feed: Mapping[str, Value]) -> Mapping[str, DeviceTensor]:
        """Feeds, launches, and returns the results as they will lie on the device."""
        addresses = self._addresses(0)
        hosted: dict[str, Array] = {}
        for name in self._inputs:
            value = feed[name]
            if not self._has(value):
                hosted[name] = to_host(value)
            elif (address := value.address) is not None and value.buffer not in self._owned:
                addresses[name] = address
            else:
                value.copy_to(addresses[name])
        self._upload(hosted, {})
        self._contexts[0].place(addresses)
        self._renew()
        self._contexts[0].launch()
        return self._tensors(self._results)

    def place(self, name: str) -> Addresses:
        """Where its own input or output lies."""
        return self._own(0)[name], self._own(1)[name]

    def take(self, given: Mapping[str, Addresses]) -> None:
        """Reads these inputs where others write them, and the rest where its own lie."""
        if given == self._given:
            return
        self._device.synchronize()
        self._given, self.warmed = dict(given), False
        for direction, bound in enumerate(self._contexts):
            bound.free()
            bound.place(self._addresses(direction))

    def clear(self) -> None:
        """Puts zeros wherever a launch may read."""
        self._device.stream.zero(self._block.ptr, self._block.nbytes)
        for buffer in (*self._starts.values(), *self._results.values()):
            self._device.stream.zero(buffer.ptr, buffer.nbytes)

    def warm(self) -> None:
        """Launches in each direction, twice, so that everything is compiled and captured. It and what it reads have
        been cleared."""
        self._renew()
        for bound in self._contexts * 2:
            bound.launch()
        self._device.synchronize()
        self.warmed = True

    def begin(self, feed: Mapping[str, Value], rows: Mapping[str, Array]) -> None:
        """Brings to the device what a sweep needs."""
        if rows:
            self.reserve(len(next(iter(rows.values()))))
        hosted: dict[str, Array] = {}
        for name, value in feed.items():
            if not self._has(value):
                hosted[name] = to_host(value)
            elif value.address != (address := self._own(0)[name]):
                value.copy_to(address)
        self._upload(hosted, rows)

    def advance(self, call: int) -> None:
        """Puts a call's row in its place."""
        if self.freed:
            raise RequestError("an engine was unloaded in the middle of its loop", hint="begin the loop again")
        self._renew()
        if self._row_bytes:
            assert self._table is not None  # `begin` made it
            self._device.stream.copy(self._block.ptr, self._table.ptr + call * self._row_bytes, self._row_bytes)

    def launch(self, call: int) -> Mapping[str, DeviceTensor]:
        """Puts a call on the stream; its results as they will lie on the device."""
        self._contexts[call % len(self._contexts)].launch()
        return self._tensors(self._placed(call)[1])

    def free(self) -> None:
        """Frees everything; results become invalid. The device must be done with it."""
        self._lease.over = True
        for bound in self._contexts:
            bound.free()
        self._contexts.clear()
        for buffer in (*self._owned, *([] if self._table is None else [self._table])):
            buffer.free()
        self._owned.clear()
        self._table = None

    def _layout(self, rows: Sequence[str], plain: Sequence[str]) -> tuple[dict[str, int], int, int]:
        """Offset of each input in the block, bytes of a row, bytes of the block."""
        offsets, end, row_bytes = {}, 0, 0
        for name in (*rows, *plain):
            offsets[name] = end
            end += round_up(self._size(self._inputs[name], self._dims[name]))
            row_bytes = end if name in rows else row_bytes
        return offsets, row_bytes, end

    def _placed(self, direction: int) -> tuple[dict[str, Buffer], dict[str, Buffer]]:
        """Buffers of carried inputs and of outputs; in every second call the pairs have changed places."""
        starts, results = dict(self._starts), dict(self._results)
        if direction % 2:
            for name, output in self._carry.items():
                starts[name], results[output] = results[output], starts[name]
        return starts, results

    def _addresses(self, direction: int) -> dict[str, int]:
        """Of all inputs and outputs."""
        elsewhere = {**self._reads, **self._given}
        return self._own(direction) | {name: places[direction % 2] for name, places in elsewhere.items()}

    def _own(self, direction: int) -> dict[str, int]:
        """Of what lies in its own memory."""
        starts, results = self._placed(direction)
        return {
            **{name: self._block.ptr + offset for name, offset in self._offsets.items()},
            **{name: buffer.ptr for name, buffer in (starts | results).items()},
        }

    def _upload(self, feed: Mapping[str, Array], rows: Mapping[str, Array]) -> None:
        """Everything from the host by way of page-locked memory: the table, and each other input."""
        calls = len(next(iter(rows.values()))) if rows else 0
        table_bytes = calls * self._row_bytes
        sizes = {name: round_up(array.nbytes) for name, array in feed.items()}
        if not sizes and not rows:
            return
        staging = self._device.outgoing(table_bytes + sum(sizes.values()))
        table = staging.array[:table_bytes].reshape(calls, self._row_bytes) if rows else None
        for name, values in rows.items():
            assert table is not None  # there are rows
            start = self._offsets[name]
            flat = np.ascontiguousarray(values).reshape(calls, -1).view(np.uint8)
            table[:, start : start + flat.shape[1]] = flat
        if self._table is not None and rows:
            self._device.stream.upload(self._table.ptr, staging, table_bytes)
        at, addresses = table_bytes, self._own(0)
        for name, array in feed.items():
            staging.array[at : at + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self._device.stream.upload(addresses[name], staging, array.nbytes, at=at)
            at += sizes[name]

    def reserve(self, calls: int) -> None:
        """Makes room for a table of so many rows.

        Raises:
            OutOfDeviceMemory: there is none.
        """
        nbytes = calls * self._row_bytes
        if not nbytes:
            return
        if self._table is not None and self._table.nbytes < nbytes:
            self._device.synchronize()
            self._table.free()
            self._table = None
        if self._table is None:
            self._table = Buffer(self._device.cuda, nbytes)

    def _has(self, value: Value) -> TypeGuard[DeviceTensor]:
        """Whether a value lies on this device."""
        return isinstance(value, DeviceTensor) and value.device is self._device and not value.copied_to_host

    def _renew(self) -> None:
        """Ends the validity of what was returned so far."""
        self._lease.over = True
        self._lease = Lease()

    def _tensors(self, results: Mapping[str, Buffer]) -> dict[str, DeviceTensor]:
        return {
            name: DeviceTensor(
                self._device, results[name], self.shapes[name], np.dtype(self._outputs[name].dtype), self._lease
            )
            for name in self._outputs
        }

    def _buffer(self, nbytes: int) -> Buffer:
        self._owned.append(Buffer(self._device.cuda, round_up(nbytes)))
        return self._owned[-1]

    def _size(self, spec: TensorSpec, shape: Shape) -> int:
        return math.prod(shape) * np.dtype(spec.dtype).itemsize
