"""A sweep's binding, and those of the links before it: what one writes the next reads where it lies."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

from latentrt.arrays import Array, Value
from latentrt.backends.cuda.binding import Binding
from latentrt.backends.cuda.device import DeviceTensor
from latentrt.engine import Link


@dataclass(frozen=True, slots=True)
class Chain:
    """The binding that sweeps, `last`, and the links before it with theirs, wired to each other."""

    last: Binding
    links: Sequence[tuple[Link, Binding]] = ()

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """In the order of a call."""
        return (*(binding for _, binding in self.links), self.last)

    @property
    def warmed(self) -> bool:
        """Whether all is compiled and captured."""
        return all(binding.warmed for binding in self.bindings)

    def hold(self, active: bool) -> None:
        """Says of all bindings whether they are in a loop, which keeps them."""
        for binding in self.bindings:
            binding.active = active

    def warm(self) -> None:
        """Compiles and captures everything, on zeros."""
        for binding in self.bindings:
            binding.clear()
        for binding in self.bindings:
            binding.warm()

    def reserve(self, calls: int) -> None:
        """Makes room for tables of so many rows."""
        for binding in self.bindings:
            binding.reserve(calls)

    def sweep(
        self, feed: Mapping[str, Value], rows: Mapping[str, Array]
    ) -> Generator[Mapping[str, DeviceTensor], None, None]:
        """Uploads everything once, then yields after each call: a copy of each table's row and a launch of each
        engine."""
        self.last.begin(feed, rows)
        for link, binding in self.links:
            binding.begin(link.feed, link.rows)
        for call in range(len(next(iter(rows.values())))):
            self.last.advance(call)
            for _, binding in self.links:
                binding.advance(call)
                binding.launch(call)
            yield self.last.launch(call)
