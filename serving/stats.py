"""What a service has done and does, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from latentrt.serving.jobs import JobState


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts since the service began, and what is so now.

    Args:
        queued, running: jobs, now.
        done, failed, cancelled: jobs that are over.
        batches: engine calls of the step by the number of images in them, without padding.
        padded: rows of those calls that were padding.
        step_s, encode_s, decode_s: seconds spent.
        faults: engine calls that failed.
        restarts: how often the engines, or the loop, were begun anew after a fault.
    """

    queued: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    batches: Mapping[int, int] = field(default_factory=dict)
    padded: int = 0
    step_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    faults: int = 0
    restarts: int = 0

    @property
    def rows(self) -> int:
        """Images in all calls of the step together."""
        return sum(size * calls for size, calls in self.batches.items())

    @property
    def calls(self) -> int:
        """Calls of the step."""
        return sum(self.batches.values())

    @classmethod
    def of(cls, several: Sequence[Stats]) -> Stats:
        """Those of several models together."""
        batches: Counter[int] = Counter()
        for each in several:
            batches.update(each.batches)
        names = [field.name for field in fields(cls) if field.name != "batches"]
        sums: dict[str, Any] = {name: sum(getattr(each, name) for each in several) for name in names}
        return cls(batches=dict(batches), **sums)


@dataclass(slots=True)
class Counts:
    """What a worker counts while it goes on."""

    ended: Counter[JobState] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)
    padded: int = 0
    step_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    faults: int = 0
    restarts: int = 0

    def batch(self, images: int, *, padding: int, seconds: float) -> None:
        """A call of the step."""
        self.batches[images] += 1
        self.padded += padding
        self.step_s += seconds

    def stats(self, *, queued: int, running: int) -> Stats:
        """As they are now."""
        return Stats(
            queued=queued,
            running=running,
            done=self.ended[JobState.DONE],
            failed=self.ended[JobState.FAILED],
            cancelled=self.ended[JobState.CANCELLED],
            batches=dict(self.batches),
            padded=self.padded,
            step_s=self.step_s,
            encode_s=self.encode_s,
            decode_s=self.decode_s,
            faults=self.faults,
            restarts=self.restarts,
        )
