"""What a worker does next: which images make an engine call, and how many; what else there is to do."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from latentrt.serving.model import SIZES, LoraNames
from latentrt.serving.rows import Key, Row
from latentrt.serving.ticket import Ticket

GAIN = 1.1
"""A batch of twice the size makes so many times as many images a second, or is not made: its images would wait for each
other in vain."""

_TRIALS = 3  # calls of a size before it is judged, besides the first one, which may load or compile
_REMEMBERED, _KEYS = 1000, 256  # calls after which a key's speeds are measured anew; keys


@dataclass(frozen=True, slots=True)
class Batch:
    """The next engine call: images, whose they are, and the size that they are padded to."""

    key: Key
    members: tuple[tuple[Ticket, Row], ...]
    size: int

    @property
    def padding(self) -> int:
        return self.size - len(self.members)

    @property
    def tickets(self) -> tuple[Ticket, ...]:
        """Each once."""
        return tuple(dict.fromkeys(ticket for ticket, _ in self.members))


@dataclass(frozen=True, slots=True)
class Aside:
    """A job to encode or to decode."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Switch:
    """LoRAs to put in the weights."""

    loras: LoraNames


@dataclass(frozen=True, slots=True)
class Enter:
    """There is work, and the model is out of memory."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Another model waits for the memory, and has waited for long enough."""


Work = Batch | Aside | Switch | Enter | Leave


def next_batch(tickets: Sequence[Ticket], *, limits: Limits, padding: float, kept: Key | None = None) -> Batch | None:
    """The call of the first ticket that is ready, with whatever else shares it, in the same order.

    Args:
        tickets: whose LoRAs are in the weights, the most urgent first.
        limits: of images in a call.
        padding: largest share of rows that may be padding; beyond it a smaller batch is full.
        kept: key that goes on as long as it has images; None: the first ticket's.
    """
    ready = [(ticket, row, row.key()) for ticket in tickets if ticket.live for row in ticket.rows if not row.over]
    if not ready:
        return None
    key = kept if any(own == kept for _, _, own in ready) and kept is not None else ready[0][2]
    members = [(ticket, row) for ticket, row, own in ready if own == key]
    allowed = limits.images(key)
    size = batch_size(len(members[:allowed]), allowed, sizes=limits.sizes, padding=padding)
    return Batch(key, tuple(members[:size]), size)


def batch_size(images: int, most: int, *, padding: float, sizes: Sequence[int] = SIZES) -> int:
    """The fixed size for so many images, `most` at most: the next larger one if little of it is padding."""
    allowed = [size for size in sizes if size <= most]
    larger = min((size for size in allowed if size >= images), default=allowed[-1])
    if larger <= images or (larger - images) / larger <= padding:
        return larger
    return max(size for size in allowed if size <= images)


class Limits:
    """How many images of a key an engine call may have.

    Args:
        area: latent pixels that they have together, at most.
        gain: what a batch of twice the size must bring, as `GAIN` does; 0: every batch is worth its time.
        sizes: of batches, 1 the first.
    """

    def __init__(self, area: int, *, gain: float, sizes: Sequence[int] = SIZES) -> None:
        self._area, self._gain, self.sizes = area, gain, tuple(sizes)
        self._learned: dict[Key, int] = {}
        self._speeds: OrderedDict[Key, _Speeds] = OrderedDict()

    def images(self, key: Key) -> int:
        """At least one."""
        plane = key.shape[1] * key.shape[2]
        most = min(self._area // plane, self._learned.get(key, self.sizes[-1]))
        fitting = [size for size in self.sizes if size <= most] or [1]
        speeds = self._speeds.get(key)
        return fitting[-1] if self._gain == 0 else _worthwhile(fitting, speeds, self._gain)

    def measured(self, key: Key, size: int, seconds: float) -> None:
        """A call of so many images, padding included, took so long."""
        speeds = self._speeds.setdefault(key, _Speeds())
        self._speeds.move_to_end(key)
        speeds.note(size, seconds)
        if len(self._speeds) > _KEYS:
            self._speeds.popitem(last=False)

    def lower(self, key: Key, failed: int) -> None:
        """A call of so many failed, and none of its images did alone: from now on there are fewer."""
        smaller = max((size for size in self.sizes if size < failed), default=1)
        self._learned[key] = min(smaller, self._learned.get(key, smaller))


class _Speeds:
    """The latest calls of a key by size."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._calls = 0

    def note(self, size: int, seconds: float) -> None:
        self._calls += 1
        if self._calls % _REMEMBERED == 0:  # a machine's load changes
            self._seconds.clear()
        self._seconds.setdefault(size, deque(maxlen=2 * _TRIALS)).append(seconds)

    def best(self, size: int) -> float | None:
        """Seconds of the fastest of the latest calls, the very first one not counted; None: too few."""
        seconds = self._seconds.get(size, ())
        return min(seconds[i] for i in range(1, len(seconds))) if len(seconds) > _TRIALS else None


def _worthwhile(sizes: Sequence[int], speeds: _Speeds | None, gain: float) -> int:
    """The largest size that is worth its time, or the smallest that has to be tried yet."""
    chosen = sizes[0]
    slower = None if speeds is None else speeds.best(chosen)
    for size in sizes[1:]:
        if speeds is None or slower is None:
            return chosen
        seconds = speeds.best(size)
        if seconds is None:
            return size
        if size / seconds < gain * chosen / slower:
            return chosen
        chosen, slower = size, seconds
    return chosen
