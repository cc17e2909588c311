"""Which engines of a pipeline are loaded at a time, where memory does not hold all of them."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Protocol


class Loaded(Protocol):
    """What occupies memory until it is unloaded."""

    def unload(self) -> None:
        """Frees it; it loads again when it is next needed."""


class Residency:
    """Keeps engines loaded, or by turns only those that run together.

    Args:
        together: components that run in one loop, and are loaded together. Every other one is alone.

    Attributes:
        by_turns: whether an engine that is entered has the others make room; it may be changed between two calls.
        turn: what engines hold while they run: that one loads and another one unloads is one thing at a time.
    """

    def __init__(self, *, together: Collection[str]) -> None:
        self.by_turns = False
        self.turn = threading.RLock()
        self._together = frozenset(together)
        self._known: dict[str, Loaded] = {}

    def enter(self, component: str, engine: Loaded) -> None:
        """Says that the engine of a component is about to load, or to run."""
        with self.turn:
            self._known[component] = engine
            if self.by_turns:
                for name, other in self._known.items():
                    if name != component and not {name, component} <= self._together:
                        other.unload()
