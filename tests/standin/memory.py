"""Device memory as host memory that minds how it is used: poison on allocation, no access beyond or after an
allocation, and a list of what is still held."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

POISON = 0xFF  # as float32 a NaN, as an integer its largest or -1: whatever reads it goes visibly wrong
ALIGNMENT = 256
GAP = 1 << 16  # between allocations, so that running past the end of one meets no other


class MisuseError(Exception):
    """Use of the device that a real one would punish with wrong results or a crash, some day."""


@dataclass
class Block:
    address: int
    data: np.ndarray  # uint8
    freed: bool = False


class Memory:
    """Allocations of one device. Addresses are never used twice, and mean nothing to the host.

    Args:
        capacity: in bytes; an allocation beyond it fails.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._blocks: dict[int, Block] = {}
        self._next = 0x7F00_0000_0000
        self._lock = threading.RLock()  # a collection of garbage may free within an allocation

    @property
    def used(self) -> int:
        """Bytes that are allocated now."""
        with self._lock:
            return sum(len(block.data) for block in self._blocks.values() if not block.freed)

    @property
    def peak_blocks(self) -> int:
        """How many allocations there have been."""
        return len(self._blocks)

    def allocate(self, nbytes: int) -> int | None:
        """An address, or None where the capacity is exceeded."""
        if self.used + nbytes > self.capacity:
            return None
        with self._lock:
            address = self._next
            self._next += -(-(nbytes + GAP) // ALIGNMENT) * ALIGNMENT
            self._blocks[address] = Block(address, np.full(nbytes, POISON, np.uint8))
            return address

    def free(self, address: int) -> None:
        with self._lock:
            block = self._blocks.get(address)
            if block is None:
                raise MisuseError(f"{address:#x} is freed and was never allocated")
            if block.freed:
                raise MisuseError(f"{address:#x} is freed twice")
            block.freed = True
            block.data = np.empty(0, np.uint8)

    def view(self, address: int, nbytes: int) -> np.ndarray:
        """The bytes at an address, to read or write.

        Raises:
            MisuseError: they are not all within one live allocation.
        """
        with self._lock:
            block = self._around(address)
            if block is None:
                raise MisuseError(f"{address:#x} is no device memory")
            if block.freed:
                raise MisuseError(f"{address:#x} is used after it was freed")
            start = address - block.address
            if start + nbytes > len(block.data):
                raise MisuseError(f"{nbytes} bytes at {address:#x} run past an allocation of {len(block.data)}")
            return block.data[start : start + nbytes]

    def _around(self, address: int) -> Block | None:
        below = [start for start in self._blocks if start <= address]
        block = self._blocks[max(below)] if below else None
        inside = block is not None and (block.freed or address < block.address + max(1, len(block.data)) + GAP // 2)
        return block if inside else None
