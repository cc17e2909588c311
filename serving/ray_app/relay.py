"""A model whose jobs are made by replicas, as a service sees it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import replace

from latentrt.request import Request
from latentrt.serving.errors import NotAccepting
from latentrt.serving.jobs import Job, JobState
from latentrt.serving.model import LoraNames, Model
from latentrt.serving.stats import Counts, Stats
from latentrt.serving.ticket import Ticket
from latentrt.serving.worker import planned


class Relay:
    """Plans jobs here, with the bundle's manifest and tokenizers, and has them made elsewhere.

    Args:
        name: of the model.
        model: its engines are never loaded.
        queue: jobs that may wait for a replica.
        send: has a job made.
        reported: what replicas say that they have done for this model, and the engine calls that they make.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        *,
        queue: int,
        send: Callable[[Job], None],
        reported: Callable[[str], tuple[Stats, dict[str, int]]],
    ) -> None:
        self.name, self.model, self._most = name, model, queue
        self._send, self._reported = send, reported
        self._lock = threading.Lock()
        self._jobs: list[Job] = []
        self._counts = Counts()

    @property
    def line(self) -> Relay:
        """What a service asks of a line is asked of it."""
        return self

    def plan(self, request: Request, *, id: str, loras: LoraNames) -> Ticket:
        """A job and what it comes to.

        Raises:
            RequestError: what this model cannot make.
        """
        return planned(
            self.name, self.model, request, id=id, loras=loras, position=self.position, due=lambda plan: math.inf
        )

    def check_room(self) -> None:
        """Raises NotAccepting where no job may wait any more."""
        waiting = len(self._waiting())
        if waiting >= self._most:
            raise NotAccepting(f"{waiting} jobs wait already", expected="a place in the queue", hint="ask again later")

    def add(self, ticket: Ticket) -> None:
        """Sends a job to a replica that has room, when there is one.

        Raises:
            NotAccepting: as `check_room`.
        """
        self.check_room()
        with self._lock:
            self._jobs.append(ticket.job)
        self._send(ticket.job)

    def position(self, job: Job) -> int:
        """Its place among those that wait, 1 for the next; 0: it does not."""
        waiting = self._waiting()
        return waiting.index(job) + 1 if job in waiting else 0

    def stats(self) -> Stats:
        """Jobs are counted here, engine calls by the replicas."""
        waiting, (made, _) = len(self._waiting()), self._reported(self.name)
        with self._lock:
            own = self._counts.stats(queued=waiting, running=len(self._jobs) - waiting)
        return replace(
            own,
            in_time=made.in_time,
            batches=made.batches,
            padded=made.padded,
            step=made.step,
            encode=made.encode,
            decode=made.decode,
            faults=made.faults,
            restarts=made.restarts,
        )

    def present(self) -> dict[str, int]:
        """How many images each job has in an engine call that is being made."""
        return self._reported(self.name)[1]

    def prepare(self) -> None:
        """Opens the bundle, for planning.

        Raises:
            LatentRTError: it cannot be loaded.
        """
        self.model.pipe()

    def close(self) -> None:
        """Cancels what is not over."""
        with self._lock:
            jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        self.model.close()

    def _waiting(self) -> list[Job]:
        with self._lock:
            for job in self._jobs:
                if job.state.final:
                    self._counts.over(job, due=0.0)
            self._jobs = [job for job in self._jobs if not job.state.final]
            return [job for job in self._jobs if job.state is JobState.QUEUED]
