"""What a service has done and does, in numbers."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from latentrt.serving.jobs import Job, JobState

BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Of the buckets in which times are counted; the last bucket is open."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How often times fell into each bucket.

    Args:
        counts: by bucket, one more than there are bounds.
        total_s: of all times.
    """

    counts: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    total_s: float = 0.0

    @property
    def number(self) -> int:
        """How many times there are."""
        return sum(self.counts)

    def with_time(self, seconds: float) -> Spread:
        """It and one time more."""
        bucket, counts = bisect_left(BOUNDS_S, seconds), list(self.counts)
        counts[bucket] += 1
        return Spread(tuple(counts), self.total_s + seconds)

    def __add__(self, other: Spread) -> Spread:
        return Spread(
            tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)), self.total_s + other.total_s
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts since the service began, and what is so now.

    Args:
        queued, running: jobs, now.
        done, failed, cancelled: jobs that are over.
        images: that were made.
        in_time: jobs that were done before they were due.
        batches: engine calls of the step by the number of images in them, without padding.
        padded: rows of those calls that were padding.
        step, encode, decode: times of engine calls of the step, and of each job's encoding and decoding.
        latency, wait, first_step: of jobs that are done, from their submission to their end, to their start and to
            the first engine call that they had a part in.
        faults: engine calls that failed.
        restarts: how often the engines, or the loop, were begun anew after a fault.
    """

    queued: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    images: int = 0
    in_time: int = 0
    batches: Mapping[int, int] = field(default_factory=dict)
    padded: int = 0
    step: Spread = Spread()
    encode: Spread = Spread()
    decode: Spread = Spread()
    latency: Spread = Spread()
    wait: Spread = Spread()
    first_step: Spread = Spread()
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
        found = cls()
        for each in several:
            batches = Counter(found.batches)
            batches.update(each.batches)
            names = [field.name for field in fields(cls) if field.name != "batches"]
            sums: dict[str, Any] = {name: getattr(found, name) + getattr(each, name) for name in names}
            found = replace(found, batches=dict(batches), **sums)
        return found


@dataclass(slots=True)
class Counts:
    """What a worker counts while it goes on."""

    ended: Counter[JobState] = field(default_factory=Counter)
    images: int = 0
    in_time: int = 0
    batches: Counter[int] = field(default_factory=Counter)
    padded: int = 0
    step: Spread = Spread()
    encode: Spread = Spread()
    decode: Spread = Spread()
    latency: Spread = Spread()
    wait: Spread = Spread()
    first_step: Spread = Spread()
    faults: int = 0
    restarts: int = 0

    def batch(self, images: int, *, padding: int, seconds: float) -> None:
        """A call of the step."""
        self.batches[images] += 1
        self.padded += padding
        self.step = self.step.with_time(seconds)

    def over(self, job: Job, *, due: float) -> None:
        """A job's end.

        Args:
            due: when it should have come, on the monotonic clock.
        """
        self.ended[job.state] += 1
        if job.state is not JobState.DONE or job.started is None or job.finished is None:
            return
        self.images += len(job.seeds)
        self.in_time += time.monotonic() - max(0.0, time.time() - job.finished) <= due
        self.latency = self.latency.with_time(max(0.0, job.finished - job.created))
        self.wait = self.wait.with_time(max(0.0, job.started - job.created))
        if job.stepped is not None:
            self.first_step = self.first_step.with_time(max(0.0, job.stepped - job.created))

    def stats(self, *, queued: int, running: int) -> Stats:
        """As they are now."""
        same = {field.name for field in fields(self)} - {"ended", "batches"}
        values: dict[str, Any] = {name: getattr(self, name) for name in same}
        return Stats(
            queued=queued,
            running=running,
            done=self.ended[JobState.DONE],
            failed=self.ended[JobState.FAILED],
            cancelled=self.ended[JobState.CANCELLED],
            batches=dict(self.batches),
            **values,
        )
