"""A model's queue and the two threads that serve it: one makes the calls of the step, one encodes and decodes."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from pathlib import Path

import numpy as np

from latentrt.arrays import to_host
from latentrt.bundle import Bundle
from latentrt.concurrency.reservation import ReservedRun
from latentrt.errors import BackendError, LatentRTError, RequestError
from latentrt.lora import Lora
from latentrt.pipeline import Pipeline
from latentrt.request import Request
from latentrt.serving.errors import QueueFull
from latentrt.serving.jobs import Job, JobState
from latentrt.serving.opening import Opening
from latentrt.serving.rows import call_inputs
from latentrt.serving.stages import decode, encode
from latentrt.serving.stats import Counts, Stats
from latentrt.serving.turns import SLACK, Batch, Limits, Ticket, next_batch, work

log = logging.getLogger(__name__)

AHEAD = 16
"""Images that are encoded before their turn comes, about."""

IMAGES = 8
"""Of the model's own size, in one call, where nothing else is said."""

HOLD_S = 1.0
"""Seconds for which LoRAs stay in the weights while they have work, at least."""

_PADDING_ON_GPU = 0.25
_GUESS = 1e-6  # seconds a pixel of a branch, before any call was measured
_NEWEST = 0.2  # its share in the mean


class Worker:
    """One model: what waits for it, what is on its way, and the threads that bring it there.

    Args:
        name: of the model.
        source: a bundle, which is loaded for the first job, or a pipeline, which is held until `close`.
        opening: how bundles are loaded.
        queue: jobs that may wait.
        batch_area: pixels of an engine call; None: `IMAGES` of the model's own size.
        padding: largest share of a call's rows that may be padding; None: a quarter on a GPU, none elsewhere.
        loras: files by name.
    """

    def __init__(
        self,
        name: str,
        source: str | PathLike[str] | Pipeline,
        *,
        opening: Opening,
        queue: int,
        batch_area: int | None,
        padding: float | None,
        loras: Mapping[str, Path],
    ) -> None:
        self.name = name
        self._given = source if isinstance(source, Pipeline) else None
        self.bundle = source.bundle if isinstance(source, Pipeline) else Bundle.open(source)
        self._opening, self._most, self._loras, self._padding = opening, queue, loras, padding
        width, height = self.bundle.family.defaults.size
        area = IMAGES * width * height if batch_area is None else batch_area
        self._limits = Limits(area // self.bundle.family.vae_factor**2)
        self._loading = threading.Lock()
        self._pipeline: Pipeline | None = None
        self._held: ReservedRun | None = None
        self._own_loras: tuple[Lora, ...] = ()
        if self._given is not None:
            self._hold(self._given)
        # All below is changed under this lock alone.
        self._changed = threading.Condition()
        self._tickets: list[Ticket] = []
        self._aside: deque[Ticket] = deque()
        self._busy_aside = False
        self._closed = False
        self._chosen: tuple[tuple[str, float], ...] | None = None  # LoRAs in the weights; None: as the pipeline came
        self._switched = -np.inf
        self._counts = Counts()
        self._present: Batch | None = None
        self._pace = _GUESS
        self._threads = [
            threading.Thread(target=self._endure, args=(body,), name=f"latentrt-{name}-{what}", daemon=True)
            for what, body in (("steps", self._next_call), ("aside", self._next_aside))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def edits(self) -> bool:
        """Whether photos can be started from."""
        return "encoder" in self.bundle.components or (self._given is not None and "encoder" in self._given.engines)

    def plan(self, request: Request, *, id: str, loras: tuple[tuple[str, float], ...]) -> Ticket:
        """A job and what it comes to; nothing is queued.

        Raises:
            RequestError: what this model cannot make.
            LatentRTError: the model cannot be loaded.
        """
        plan = self._pipe().plan([request])
        preview = None if self.bundle.preview is None else np.array(self.bundle.preview, np.float32)
        job = Job(
            id,
            model=self.name,
            request=plan.requests[0],
            seeds=plan.seeds,
            total=plan.calls,
            preview_map=preview,
            position=self._position,
            loras=loras,
        )
        return Ticket(job, plan, time.monotonic() + SLACK * self._pace * work(plan), loras)

    def check_room(self) -> None:
        """Raises QueueFull where no job may wait any more."""
        with self._changed:
            waiting = self._waiting()
            if len(waiting) >= self._most:
                left = self._pace * sum(work(ticket.plan) for ticket in self._tickets)
                raise QueueFull(len(waiting), retry_after=min(max(1.0, left / len(self._tickets)), 600.0))

    def add(self, ticket: Ticket) -> None:
        """Queues a job.

        Raises:
            QueueFull: as `check_room`.
        """
        with self._changed:
            self.check_room()
            self._tickets.append(ticket)
            self._changed.notify_all()

    def stats(self) -> Stats:
        with self._changed:
            self._clear()
            waiting = len(self._waiting())
            return self._counts.stats(queued=waiting, running=len(self._tickets) - waiting)

    def present(self) -> dict[str, int]:
        """How many images each job has in the engine call that is being made."""
        batch = self._present
        return {} if batch is None else dict(Counter(ticket.job.id for ticket, _ in batch.members))

    def close(self) -> None:
        """Ends the threads after the engine call that each is in, and frees what was loaded here."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        with self._loading:
            if self._held is not None:
                self._held.close()
            if self._pipeline is not None and self._given is None:
                self._pipeline.close()
            self._held = self._pipeline = None

    def _pipe(self) -> Pipeline:
        """The pipeline, loaded when it is first asked for."""
        with self._loading:
            if self._pipeline is None:
                self._hold(self._opening.load(self.bundle.root))
            assert self._pipeline is not None
            return self._pipeline

    def _hold(self, pipe: Pipeline) -> None:
        self._held, self._pipeline, self._own_loras = pipe.hold(), pipe, pipe.lora
        if self._padding is None:
            self._padding = _PADDING_ON_GPU if self._opening.on_gpu(pipe) else 0.0

    # Under the lock.

    def _waiting(self) -> list[Ticket]:
        """What has not begun, the next first."""
        self._clear()
        return sorted((ticket for ticket in self._tickets if not ticket.begun), key=lambda ticket: ticket.due)

    def _clear(self) -> None:
        """Lets go of jobs that are over."""
        for ticket in self._tickets:
            if not ticket.live:
                self._counts.over(ticket.job, due=ticket.due)
        self._tickets = [ticket for ticket in self._tickets if ticket.live]

    def _send_ahead(self) -> None:
        """Has the jobs encoded whose turn is near."""
        ahead = 0
        begins = False
        for ticket in sorted(self._tickets, key=lambda ticket: ticket.due):
            if ticket.loras == self._chosen and not ticket.denoised and ahead < AHEAD:
                ahead += len(ticket.plan.image_plans)
                if not ticket.begun:
                    ticket.begun = begins = True
                    ticket.job.start()
                    self._aside.append(ticket)
        if begins:
            for ticket in self._waiting():
                ticket.job.moved()
            self._changed.notify_all()

    def _switch_to(self) -> tuple[tuple[str, float], ...] | None:
        """LoRAs that should take the place of those in the weights: there is no work for these, or other work is
        overdue."""
        others = [ticket for ticket in self._tickets if ticket.loras != self._chosen]
        if not others:
            return None
        first = min(others, key=lambda ticket: ticket.due)
        now = time.monotonic()
        overdue = first.due < now and self._switched + HOLD_S < now
        own = [ticket.due for ticket in self._tickets if ticket.loras == self._chosen]
        return first.loras if not own or (overdue and first.due < min(own)) else None

    # The thread of the steps.

    def _next_call(self) -> bool:
        action = self._action()
        if action is not None:
            action()
        return action is not None

    def _action(self) -> Callable[[], None] | None:
        """What the thread of the steps does next; None: nothing any more."""
        with self._changed:
            while not self._closed:
                self._clear()
                target = self._switch_to()
                if target is None:
                    self._send_ahead()
                    own = [ticket for ticket in self._tickets if ticket.loras == self._chosen]
                    padding = 0.0 if self._padding is None else self._padding
                    batch = next_batch(own, limits=self._limits, padding=padding)
                    if batch is not None:
                        return partial(self._make, batch)
                elif not self._aside and not self._busy_aside:
                    return partial(self._put_loras, target)
                self._changed.wait()
        return None

    def _put_loras(self, target: tuple[tuple[str, float], ...]) -> None:
        """Puts LoRAs in the weights; those jobs fail for which that cannot be done."""
        pipe = self._pipe()
        try:
            if self._chosen is not None or target:
                self._let_go()
                pipe.set_lora([*self._own_loras, *((self._loras[name], scale) for name, scale in target)])
        except LatentRTError as error:
            with self._changed:
                refused = [ticket for ticket in self._tickets if ticket.loras == target]
            for ticket in refused:
                ticket.job.end(JobState.FAILED, error=error)
        else:
            with self._changed:
                self._chosen, self._switched = target, time.monotonic()
        finally:
            if self._held is None:
                self._held = pipe.hold()

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None

    def _make(self, batch: Batch) -> None:
        """A call, and what follows from it."""
        self._attempt(batch)
        self._present = None
        for ticket in dict.fromkeys(ticket for ticket, _ in batch.members):
            if ticket.live:
                ticket.report()
        with self._changed:
            for ticket in dict.fromkeys(ticket for ticket, _ in batch.members):
                if ticket.live and ticket.denoised:
                    self._aside.append(ticket)
            self._changed.notify_all()

    def _attempt(self, batch: Batch) -> bool:
        """Makes a call, or its halves where it fails, down to the images that fail alone; whether there was one."""
        members = tuple((ticket, row) for ticket, row in batch.members if ticket.live)
        if not members:
            return False
        try:
            self._call(batch if len(members) == len(batch.members) else Batch(batch.key, members, batch.size))
        except Exception as error:  # whatever an engine raises is the fault of some job, and of that alone
            self._note_fault(error)
            if len(members) == 1:
                members[0][0].job.end(JobState.FAILED, error=_as_ours(error))
                return True
            half = len(members) // 2
            parts = [Batch(batch.key, part, len(part)) for part in (members[:half], members[half:])]
            failed = [self._attempt(part) for part in parts]
            if not any(failed):
                self._limits.lower(batch.key, batch.size)
            return any(failed)
        return False

    def _call(self, batch: Batch) -> None:
        began = time.perf_counter()
        rows = [row for _, row in batch.members]
        self._present = batch
        feed, passes = call_inputs(rows, batch.size)
        out = self._pipe().call(feed, passes=passes)
        states, denoised = to_host(out["next_state"]), to_host(out["denoised"])
        for index, row in enumerate(rows):
            row.take(states[index].copy(), denoised[index].copy())
        seconds = time.perf_counter() - began
        for ticket in dict.fromkeys(ticket for ticket, _ in batch.members):
            ticket.calls_s.append(seconds)
        pixels = batch.key.shape[1] * batch.key.shape[2] * self.bundle.family.vae_factor**2
        cost = seconds / (batch.size * batch.key.branches * pixels)
        with self._changed:
            self._pace = cost if self._pace == _GUESS else (1 - _NEWEST) * self._pace + _NEWEST * cost
            self._counts.batch(len(rows), padding=batch.padding, seconds=seconds)

    def _note_fault(self, error: Exception) -> None:
        """Counts it, and has the step's engine loaded anew unless only the request was wrong."""
        log.warning("model %s: an engine call failed: %s", self.name, error)
        with self._changed:
            self._counts.faults += 1
        if not isinstance(error, RequestError):
            self._pipe().engines["step"].unload()
            with self._changed:
                self._counts.restarts += 1

    # The thread beside it.

    def _next_aside(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._aside))
            if self._closed:
                return False
            ticket = self._aside.popleft()
            self._busy_aside = True
        try:
            if ticket.live:
                self._serve_aside(ticket)
        except Exception as error:  # what one job's texts, photos or latents cause is its alone
            log.warning("model %s: encoding or decoding failed: %s", self.name, error)
            with self._changed:
                self._counts.faults += not isinstance(error, RequestError)
            ticket.job.end(JobState.FAILED, error=_as_ours(error))
        finally:
            with self._changed:
                self._busy_aside = False
                self._changed.notify_all()
        return True

    def _serve_aside(self, ticket: Ticket) -> None:
        pipe, began = self._pipe(), time.perf_counter()
        if ticket.denoised:
            result = decode(pipe, ticket)
            with self._changed:
                self._counts.decode = self._counts.decode.with_time(time.perf_counter() - began)
            if result is not None:
                ticket.job.end(JobState.DONE, result=result)
                return
            began = time.perf_counter()
        rows = encode(pipe, ticket)
        with self._changed:
            self._counts.encode = self._counts.encode.with_time(time.perf_counter() - began)
            ticket.rows = rows

    # Both.

    def _endure(self, body: Callable[[], bool]) -> None:
        """Repeats `body` until it says that it is the end; after a fault of our own it begins anew, without the jobs
        that were on their way."""
        while True:
            try:
                if not body():
                    return
            except Exception as error:
                log.exception("model %s: the loop failed and begins anew", self.name)
                with self._changed:
                    self._counts.restarts += 1
                    begun = [ticket for ticket in self._tickets if ticket.begun or ticket.loras == self._chosen]
                for ticket in begun:
                    ticket.job.end(JobState.FAILED, error=_as_ours(error))

    def _position(self, job: Job) -> int:
        with self._changed:
            jobs = [ticket.job for ticket in self._waiting()]
            return jobs.index(job) + 1 if job in jobs else 0


def _as_ours(error: Exception) -> LatentRTError:
    """An error of the tree, whatever was raised."""
    if isinstance(error, LatentRTError):
        return error
    made = BackendError(f"the engine failed: {type(error).__name__}: {error}", hint="ask again, or look at the log")
    made.__cause__ = error
    return made
