"""A model's two threads: one makes the calls of the step, one encodes and decodes."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np

from latentrt.denoise.batch import Plan
from latentrt.errors import LatentRTError, RequestError
from latentrt.request import Request
from latentrt.serving.calls import Calls, as_ours
from latentrt.serving.jobs import Job, JobState
from latentrt.serving.line import Line
from latentrt.serving.memory import Memory
from latentrt.serving.model import LoraNames, Model, Policy
from latentrt.serving.rows import Row
from latentrt.serving.stages import decode, encode, goes_on, result_of
from latentrt.serving.ticket import Ticket, work
from latentrt.serving.turns import Aside, Batch, Enter, Leave, Limits, Switch

log = logging.getLogger(__name__)

_UNLOADED = Policy(padding=0.0)  # until the backend is known


class Worker:
    """One model and the threads that serve it.

    Args:
        name: of the model.
        model: loaded for the first job.
        queue: jobs that may wait.
        batch_area: pixels of an engine call.
        batch_gain: as `Limits` has it.
        memory: lets it in.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        *,
        queue: int,
        batch_area: int,
        batch_gain: float,
        memory: Memory,
    ) -> None:
        self.name, self.model, self._memory = name, model, memory
        limits = Limits(batch_area // model.bundle.family.vae_factor**2, gain=batch_gain)
        self.line = Line(queue, limits, _UNLOADED, wanted=lambda: memory.wanted(self))
        self._calls = Calls(name, self.model, self.line)
        self._threads = [
            threading.Thread(target=self._endure, args=(body,), name=f"latentrt-{name}-{what}", daemon=True)
            for what, body in (("steps", self._next_work), ("aside", self._next_aside))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def bytes(self) -> int:
        """What its weights occupy."""
        return self.model.bytes

    @property
    def last_used(self) -> float:
        """When it worked last, on the monotonic clock."""
        return self.line.last_used

    def plan(self, request: Request, *, id: str, loras: LoraNames) -> Ticket:
        """A job and what it comes to; nothing is queued.

        Raises:
            RequestError: what this model cannot make.
            LatentRTError: the model cannot be loaded.
        """
        self.load()
        return planned(
            self.name, self.model, request, id=id, loras=loras, position=self.line.position, due=self.line.due
        )

    def load(self) -> None:
        """Opens the bundle, if it is not open; its engines load when they are first needed.

        Raises:
            LatentRTError: it cannot be loaded.
        """
        self.line.follow(self.model.policy())

    def prepare(self) -> None:
        """Loads and makes a picture in one step.

        Raises:
            LatentRTError: that cannot be done.
        """
        ticket = self.plan(Request("a", steps=1), id="prepare", loras=())
        self.line.put(ticket)
        ticket.job.wait()
        _ = ticket.job.result

    def retire(self) -> bool:
        """Leaves the memory if it has no work; whether it did."""
        return self.line.retire(self.model.unload)

    def present(self) -> dict[str, int]:
        """How many images each job has in the engine call that is being made."""
        batch = self._calls.present
        return {} if batch is None else dict(Counter(ticket.job.id for ticket, _ in batch.members))

    def close(self) -> None:
        """Ends the threads after the engine call that each is in, and frees what was loaded here."""
        self.line.close()
        for thread in self._threads:
            thread.join()
        for ticket in self.line.tickets:
            ticket.job.cancel()
        self._memory.leave(self)
        self.model.close()

    # The thread of the steps.

    def _next_work(self) -> bool:
        match self.line.next_work():
            case None:
                return False
            case Enter():
                if self._memory.enter(self, gone=lambda: self.line.closed):
                    self.line.entered()
            case Leave():
                self.model.unload()
                self._memory.leave(self)
            case Switch(loras):
                self._put_loras(loras)
            case Aside(ticket):
                self._serve_aside(ticket)
            case Batch() as batch:
                self._calls.make(batch)
        return True

    def _put_loras(self, target: LoraNames) -> None:
        """Puts LoRAs in the weights; those jobs fail for which that cannot be done."""
        try:
            if self.line.chosen is not None or target:
                self.model.put_loras(target)
        except LatentRTError as error:
            for ticket in self.line.of_loras(target):
                ticket.job.end(JobState.FAILED, error=error)
        else:
            self.line.switched(target)

    # The thread beside it.

    def _next_aside(self) -> bool:
        found = self.line.next_aside()
        if found is not None:
            self._serve_aside(found.ticket)
        return found is not None

    def _serve_aside(self, ticket: Ticket) -> None:
        rows: list[Row] | None = None
        try:
            if ticket.live:
                rows = self._decoded_or_encoded(ticket)
        except Exception as error:  # what one job's texts, photos or latents cause is its alone
            log.warning("model %s: encoding or decoding failed: %s", self.name, str(error))
            with self.line.counting() as counts:
                counts.faults += not isinstance(error, RequestError)
            ticket.job.end(JobState.FAILED, error=as_ours(error))
        finally:
            self.line.aside_over(ticket, rows)

    def _decoded_or_encoded(self, ticket: Ticket) -> list[Row] | None:
        pipe = self.model.pipe()
        if ticket.denoised:
            with self._clock(ticket, "decode"):
                images = decode(pipe, ticket)
            if not goes_on(pipe, ticket, images):
                ticket.job.end(JobState.DONE, result=result_of(pipe, ticket, images))
                return None
        with self._clock(ticket, "encode"):
            return encode(pipe, ticket)

    @contextmanager
    def _clock(self, ticket: Ticket, name: Literal["encode", "decode"]) -> Iterator[None]:
        """Adds what it takes to the job's time and to the model's."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        setattr(ticket, f"{name}_s", getattr(ticket, f"{name}_s") + seconds)
        with self.line.counting() as counts:
            setattr(counts, name, getattr(counts, name).with_time(seconds))

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
                with self.line.counting() as counts:
                    counts.restarts += 1
                for ticket in self.line.on_the_way():
                    ticket.job.end(JobState.FAILED, error=as_ours(error))


def planned(
    name: str,
    model: Model,
    request: Request,
    *,
    id: str,
    loras: LoraNames,
    position: Callable[[Job], int],
    due: Callable[[Plan], float],
) -> Ticket:
    """A job of a model and what it comes to.

    Args:
        name: of the model.
        model: it is loaded.
        request: what is asked for.
        id: of the job.
        loras: names and scales.
        position: tells the place of a waiting job.
        due: when a job of a plan should be over, on the monotonic clock.

    Raises:
        RequestError: what this model cannot make.
    """
    if request.caching is not None:
        raise RequestError(
            "step caching on a server",
            expected="a request without it: its calls are shared by images at different steps",
            hint="make it with Pipeline.generate or latentrt generate",
        )
    pipe = model.pipe()
    plan = pipe.plan([request])
    pipe.check_sizes(plan)
    preview = model.bundle.preview
    job = Job(
        id,
        model=name,
        request=plan.requests[0],
        seeds=plan.seeds,
        total=plan.calls,
        preview_map=None if preview is None else np.array(preview, np.float32),
        position=position,
        loras=loras,
    )
    return Ticket(job, plan, time.monotonic(), loras, whole=work(plan), due=due(plan))
