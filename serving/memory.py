"""Which models have their weights in memory: those that work, and the latest others that fit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from latentrt.backends.host_memory import PIXEL_BYTES

log = logging.getLogger(__name__)

HOLD_S = 5.0
"""Seconds for which a model that has work keeps its place while another waits for it, at least."""


class Tenant(Protocol):
    """A model, to `Memory`."""

    @property
    def name(self) -> str: ...

    @property
    def bytes(self) -> int:
        """What its weights occupy."""

    @property
    def last_used(self) -> float:
        """When it worked last, on the monotonic clock."""

    def retire(self) -> bool:
        """Leaves the memory if it has no work; whether it did."""


class Memory:
    """Lets models in while there is room. One that has no work makes room when another needs it, the one that was idle
    for longest first; if all have work, they take turns. One model alone is always let in.

    Args:
        capacity: bytes for weights; None: no limit.
    """

    def __init__(self, capacity: int | None) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._inside: dict[Tenant, float] = {}  # since when
        self._waiting: list[Tenant] = []

    def enter(self, tenant: Tenant, *, gone: Callable[[], bool]) -> bool:
        """Waits for a place; False: `gone` before there was one."""
        with self._changed:
            self._waiting.append(tenant)
            try:
                while not gone():
                    if self._waiting[0] is tenant and self._make_room(tenant):
                        self._inside[tenant] = time.monotonic()
                        return True
                    self._changed.wait(0.1)  # that a model runs out of work is told nobody
                return False
            finally:
                self._waiting.remove(tenant)
                self._changed.notify_all()

    def leave(self, tenant: Tenant) -> None:
        """It is out of memory."""
        with self._changed:
            self._inside.pop(tenant, None)
            self._changed.notify_all()

    def wanted(self, tenant: Tenant) -> bool:
        """Whether it is another's turn."""
        return bool(self._waiting) and time.monotonic() - self._inside.get(tenant, 0.0) > HOLD_S

    @property
    def inside(self) -> tuple[str, ...]:
        """Names of the models that are in memory."""
        with self._changed:
            return tuple(each.name for each in self._inside)

    def _make_room(self, tenant: Tenant) -> bool:
        for other in sorted(self._inside, key=lambda each: each.last_used):
            if self._fits(tenant):
                return True
            if other.retire():
                log.info("model %s makes room for %s", other.name, tenant.name)
                del self._inside[other]
        return self._fits(tenant)

    def _fits(self, tenant: Tenant) -> bool:
        used = sum(each.bytes for each in self._inside)
        return self._capacity is None or not self._inside or used + tenant.bytes <= self._capacity


def call_area(memory: int, weights: int, *, most: int) -> int:
    """Pixels of the images of a call that half of the memory beside the weights lasts for, `most` at most."""
    return max(1, min(most, (memory - weights) // 2 // PIXEL_BYTES))


def weights_room(memory: int, area: int) -> int:
    """Bytes that are left for weights beside a call of so many pixels."""
    return max(0, memory - area * PIXEL_BYTES)
