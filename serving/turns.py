"""Which images make the next engine call, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from latentrt.denoise.batch import Plan
from latentrt.lora import Lora
from latentrt.serving.jobs import Job
from latentrt.serving.rows import Key, Row

SIZES = (1, 2, 4, 8, 16, 32)
"""Of batches: few, since engines are compiled for shapes."""

SLACK = 3.0
"""A job is due after so many times the time that it takes alone. So short ones go before long ones that came a little
earlier, and no stream of short ones holds up a long one beyond that."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A job on its way through a worker.

    Args:
        job: what the client sees.
        plan: of the present pass.
        due: when it should be over, on the monotonic clock; the earlier goes first.
        loras: that its calls need in the weights.
        first: plan of the first of two passes.
        rows: its images, once they are encoded.
    """

    job: Job
    plan: Plan
    due: float
    loras: tuple[tuple[str, float], ...]
    first: Plan | None = None
    rows: list[Row] = field(default_factory=list)
    begun: bool = False  # it is being encoded, or was
    calls_before: int = 0  # of an earlier pass
    loaded: tuple[Lora, ...] = ()
    encode_s: float = 0.0
    decode_s: float = 0.0
    calls_s: list[float] = field(default_factory=list)

    @property
    def live(self) -> bool:
        """Whether somebody still waits for it."""
        return not self.job.state.final

    @property
    def denoised(self) -> bool:
        """Whether all its calls are made."""
        return bool(self.rows) and all(row.over for row in self.rows)

    def report(self) -> None:
        """Tells the job how far it is."""
        done = sum(row.call for row in self.rows) // len(self.rows)
        blank = np.zeros_like(self.rows[0].state[0])
        latest = np.stack([blank if row.denoised is None else row.denoised for row in self.rows])
        self.job.advance(self.calls_before + done, total=self.calls_before + self.plan.calls, denoised=latest)


@dataclass(frozen=True, slots=True)
class Batch:
    """The next engine call: images, whose they are, and the size that they are padded to."""

    key: Key
    members: tuple[tuple[Ticket, Row], ...]
    size: int

    @property
    def padding(self) -> int:
        return self.size - len(self.members)


def work(plan: Plan) -> float:
    """What a plan costs, in pixels that one branch of the network computes."""
    width, height = plan.size
    return float(plan.calls * len(plan.image_plans) * plan.branches * width * height)


def next_batch(tickets: Sequence[Ticket], *, limits: Limits, padding: float) -> Batch | None:
    """The call that is due first: that of the earliest ticket, with whatever else shares it, the earlier first.

    Args:
        tickets: whose LoRAs are in the weights.
        limits: of images in a call.
        padding: largest share of rows that may be padding; beyond it a smaller batch is full.
    """
    ready = [
        (ticket, row)
        for ticket in sorted(tickets, key=lambda ticket: ticket.due)
        if ticket.live
        for row in ticket.rows
        if not row.over
    ]
    if not ready:
        return None
    key = ready[0][1].key()
    allowed = limits.images(key)
    members: list[tuple[Ticket, Row]] = []
    for ticket, row in ready:
        if len(members) < allowed and row.key() == key:
            members.append((ticket, row))
    size = batch_size(len(members), allowed, padding=padding)
    return Batch(key, tuple(members[:size]), size)


def batch_size(images: int, most: int, *, padding: float) -> int:
    """The fixed size for so many images, `most` at most: the next larger one if little of it is padding."""
    sizes = [size for size in SIZES if size <= most]
    larger = min((size for size in sizes if size >= images), default=sizes[-1])
    if larger <= images or (larger - images) / larger <= padding:
        return larger
    return max(size for size in sizes if size <= images)


class Limits:
    """How many images of a key an engine call may have.

    Args:
        area: latent pixels that they have together, at most.
    """

    def __init__(self, area: int) -> None:
        self._area = area
        self._learned: dict[Key, int] = {}

    def images(self, key: Key) -> int:
        """At least one."""
        plane = key.shape[1] * key.shape[2]
        fits = max((size for size in SIZES if size * plane <= self._area), default=1)
        return min(fits, self._learned.get(key, fits))

    def lower(self, key: Key, failed: int) -> None:
        """A call of so many failed, and none of its images did alone: from now on there are fewer."""
        smaller = max((size for size in SIZES if size < failed), default=1)
        self._learned[key] = min(smaller, self._learned.get(key, smaller))
