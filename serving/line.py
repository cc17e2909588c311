"""The jobs of one model: who waits, who is on the way, and what is to be done next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from latentrt.denoise.batch import Plan
from latentrt.serving.errors import QueueFull
from latentrt.serving.jobs import Job
from latentrt.serving.model import LoraNames, Policy
from latentrt.serving.rows import Key, Row
from latentrt.serving.stats import Counts, Stats
from latentrt.serving.ticket import Ticket, work
from latentrt.serving.turns import Aside, Batch, Enter, Leave, Limits, Switch, Work, next_batch

AHEAD = 16
"""Images that are encoded before their turn comes, about."""

HOLD_S = 1.0
"""Seconds for which LoRAs stay in the weights while they have work, at least."""

IN_TIME = 3.0
"""A job is in time if it takes so many times as long as alone."""

_GUESS = 1e-6  # seconds a pixel of a branch, before any call was measured
_NEWEST = 0.2  # its share in the mean


@dataclass(slots=True)
class Line:
    """Tells the threads of a worker what to do next. Any thread may call anything; all is changed under one lock.

    Args:
        most: jobs that may wait.
        limits: images of a call.
        policy: how calls are made up.
        wanted: whether another model waits for the memory.
    """

    most: int
    limits: Limits
    policy: Policy
    wanted: Callable[[], bool]
    pace: float = _GUESS  # seconds for each unit of work
    changed: threading.Condition = field(default_factory=threading.Condition)
    tickets: list[Ticket] = field(default_factory=list)
    _aside: list[Ticket] = field(default_factory=list)
    _busy_aside: bool = False
    _closed: bool = False
    last_used: float = 0.0  # on the monotonic clock
    _inside: bool = False  # in memory
    _chosen: LoraNames | None = None  # LoRAs in the weights; None: as the pipeline came
    _switched: float = float("-inf")
    _kept: Key | None = None
    _kept_at: float = float("-inf")
    _counts: Counts = field(default_factory=Counts)

    # What clients ask for.

    def due(self, plan: Plan) -> float:
        """When a job of this plan that comes now is over if it is slowed down as much as is counted as in time."""
        return time.monotonic() + IN_TIME * self.pace * work(plan)

    def check_room(self) -> None:
        """Raises QueueFull where no job may wait any more."""
        with self.changed:
            waiting = self._waiting()
            if len(waiting) >= self.most:
                left = self.pace * sum(ticket.left for ticket in self.tickets)
                raise QueueFull(len(waiting), retry_after=min(max(1.0, left / len(self.tickets)), 600.0))

    def add(self, ticket: Ticket) -> None:
        """Queues a job.

        Raises:
            QueueFull: as `check_room`.
        """
        with self.changed:
            self.check_room()
            self.put(ticket)

    def put(self, ticket: Ticket) -> None:
        """Queues a job, however many wait."""
        with self.changed:
            self.tickets.append(ticket)
            self.changed.notify_all()

    def position(self, job: Job) -> int:
        """Its place among those that wait, 1 for the next; 0: it does not."""
        with self.changed:
            jobs = [ticket.job for ticket in self._waiting()]
            return jobs.index(job) + 1 if job in jobs else 0

    def stats(self) -> Stats:
        with self.changed:
            self._clear()
            waiting = len(self._waiting())
            return self._counts.stats(queued=waiting, running=len(self.tickets) - waiting)

    # What the threads ask for and tell.

    def next_work(self) -> Work | None:
        """What the thread of the steps does next, waited for; None: nothing any more."""
        with self.changed:
            while not self._closed:
                self._clear()
                work = self._choose()
                if work is not None:
                    return work
                self.changed.wait()
        return None

    def next_aside(self) -> Aside | None:
        """What the thread beside it does next, waited for; None: nothing any more."""
        with self.changed:
            self.changed.wait_for(lambda: self._closed or (self._inside and self.policy.beside and bool(self._aside)))
            return None if self._closed else self._take_aside()

    def aside_over(self, ticket: Ticket, rows: list[Row] | None = None) -> None:
        """It is encoded, to these rows, or decoded."""
        with self.changed:
            self._busy_aside, self.last_used = False, time.monotonic()
            if rows is not None:
                ticket.rows = rows
            self.changed.notify_all()

    def made(self, batch: Batch) -> None:
        """A call was made: what is done with its steps is decoded next."""
        with self.changed:
            self._aside += [ticket for ticket in batch.tickets if ticket.live and ticket.denoised]
            self.changed.notify_all()

    def measured(self, batch: Batch, *, images: int, seconds: float, pixels: int) -> None:
        """A call of so many images, each of so many pixels, took so long."""
        cost = seconds / (batch.size * batch.key.branches * pixels)
        with self.changed:
            self.pace = cost if self.pace == _GUESS else (1 - _NEWEST) * self.pace + _NEWEST * cost
            self.last_used = time.monotonic()
            self.limits.measured(batch.key, batch.size, seconds)
            self._counts.batch(images, padding=batch.size - images, seconds=seconds)

    def entered(self) -> None:
        """The model may be in memory."""
        with self.changed:
            self._inside = True
            self.changed.notify_all()

    def follow(self, policy: Policy) -> None:
        """Calls are made up so from now on."""
        with self.changed:
            self.policy, self.limits.sizes = policy, tuple(policy.sizes)

    def retire(self, unload: Callable[[], None]) -> bool:
        """Out of memory, by `unload`, if there is no work; whether that was so."""
        with self.changed:
            self._clear()
            if self.tickets or self._busy_aside:
                return False
            self._inside = False
            unload()
            return True

    def switched(self, loras: LoraNames) -> None:
        """These are in the weights."""
        with self.changed:
            self._chosen, self._switched = loras, time.monotonic()

    @property
    def chosen(self) -> LoraNames | None:
        """LoRAs in the weights; None: as the pipeline came."""
        return self._chosen

    def of_loras(self, loras: LoraNames) -> list[Ticket]:
        """The jobs that need these."""
        with self.changed:
            return [ticket for ticket in self.tickets if ticket.loras == loras]

    def on_the_way(self) -> list[Ticket]:
        """The jobs that a fault of the loop takes along."""
        with self.changed:
            return [ticket for ticket in self.tickets if ticket.begun or ticket.loras == self._chosen]

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """The counts, to be changed."""
        with self.changed:
            yield self._counts

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """There is nothing to do any more."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    # Under the lock.

    def _choose(self) -> Work | None:
        if not self.tickets:
            return None
        if not self._inside:
            return Enter()
        if self.wanted() and not self._busy_aside:
            self._inside = False
            return Leave()
        target = self._switch_to()
        if target is not None and not self._busy_aside and not self._aside:
            return Switch(target)
        batch = None if target is not None else self._next_batch()
        return batch if self.policy.beside or not self._aside else self._before(batch)

    def _next_batch(self) -> Batch | None:
        self.send_ahead()
        own = [ticket for ticket in self._in_order() if ticket.loras == self._chosen]
        now = time.monotonic()
        kept = self._kept if now - self._kept_at < self.policy.hold_s else None
        batch = next_batch(own, limits=self.limits, padding=self.policy.padding, kept=kept)
        if batch is not None and batch.key != kept:
            self._kept, self._kept_at = batch.key, now
        return batch

    def _before(self, batch: Batch | None) -> Work | None:
        """What goes before a call: decoding, and encoding for whom is no less urgent."""
        first = self._most_urgent_aside()
        if batch is None or first.denoised or self._in_order([first, batch.members[0][0]])[0] is first:
            return self._take_aside()
        return batch

    def _take_aside(self) -> Aside:
        first = self._most_urgent_aside()
        self._aside.remove(first)
        self._busy_aside = True
        return Aside(first)

    def _most_urgent_aside(self) -> Ticket:
        done = [ticket for ticket in self._aside if ticket.denoised]
        return self._in_order(done if done else self._aside)[0]

    def _in_order(self, tickets: list[Ticket] | None = None) -> list[Ticket]:
        """The most urgent first: those that will have been slowed down most."""
        now, chosen = time.monotonic(), self.tickets if tickets is None else tickets
        return sorted(chosen, key=lambda ticket: -ticket.slowdown(now, self.pace))

    def _waiting(self) -> list[Ticket]:
        """What has not begun, the next first."""
        self._clear()
        return self._in_order([ticket for ticket in self.tickets if not ticket.begun])

    def _clear(self) -> None:
        """Lets go of jobs that are over."""
        over = [ticket for ticket in self.tickets if not ticket.live]
        if over:
            for ticket in over:
                self._counts.over(ticket.job, due=ticket.due)
            self.tickets = [ticket for ticket in self.tickets if ticket.live]
            self._aside = [ticket for ticket in self._aside if ticket.live]

    def send_ahead(self) -> None:
        """Has the jobs encoded whose turn is near."""
        ahead = 0
        begins = False
        with self.changed:
            for ticket in self._in_order():
                if ticket.loras == self._chosen and not ticket.denoised and ahead < AHEAD:
                    ahead += len(ticket.plan.image_plans)
                    if not ticket.begun:
                        ticket.begun = begins = True
                        ticket.job.start()
                        self._aside.append(ticket)
            if begins:
                for ticket in self._waiting():
                    ticket.job.moved()
                self.changed.notify_all()

    def _switch_to(self) -> LoraNames | None:
        """LoRAs that should take the place of those in the weights: there is no work for these, or other work is more
        urgent and these had their time."""
        if all(ticket.loras == self._chosen for ticket in self.tickets):
            return None
        order = self._in_order()
        first = next(ticket for ticket in order if ticket.loras != self._chosen)
        if all(ticket.loras != self._chosen for ticket in order):
            return first.loras
        overdue = order[0] is first and self._switched + HOLD_S < time.monotonic()
        return first.loras if overdue else None
