"""Models by name, and the jobs that are theirs: what every protocol stands on."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from latentrt.errors import LatentRTError, RequestError
from latentrt.lora.file import SCALE
from latentrt.names import BackendName, ComputeName, DeviceName
from latentrt.pipeline import Pipeline
from latentrt.request import Request
from latentrt.serving.errors import NotAccepting, UnknownJob, UnknownModel
from latentrt.serving.jobs import Job
from latentrt.serving.memory import Memory, weights_room
from latentrt.serving.model import LoraNames, Model, ModelInfo, Opening, Source, other_names, renamed
from latentrt.serving.stats import Stats
from latentrt.serving.ticket import Ticket
from latentrt.serving.turns import GAIN
from latentrt.serving.worker import Worker
from latentrt.values import Kind, Listed, Named, Number, Optional, Text, Whole, check


class Waiting(Protocol):
    """The jobs of a model that wait or run, to a service."""

    def check_room(self) -> None:
        """Raises an error of `latentrt.serving.errors` where no job may wait any more."""

    def add(self, ticket: Ticket) -> None:
        """Queues a job, or raises as `check_room` does."""

    def stats(self) -> Stats: ...


class Maker(Protocol):
    """What makes the jobs of one model, to a service: `Worker` here, or replicas elsewhere."""

    @property
    def model(self) -> Model: ...

    @property
    def line(self) -> Waiting: ...

    def plan(self, request: Request, *, id: str, loras: LoraNames) -> Ticket: ...

    def prepare(self) -> None: ...

    def present(self) -> dict[str, int]: ...

    def close(self) -> None: ...


class Service:
    """Makes images for many clients at a time; `with` closes it.

    Args:
        models: bundles by the names that clients use, or pipelines, which the service alone uses until it is closed,
            and does not close. The first one is the default.
        queue: jobs of a model that may wait; more are refused.
        batch_area: pixels that the images of an engine call have together, at most. None: as many as memory lasts for,
            and eight images of the model's own size at most. One image is always a call.
        batch_gain: a batch of twice the size makes so many times as many images a second, as measured, or is not made;
            0: every batch is made that can be.
        padding: largest share of an engine call that may be padding up to a fixed size of batch; beyond it the call is
            a smaller one. None: a quarter on a GPU, 0 elsewhere, where padding costs what images cost.
        memory: bytes for models and their calls. Models that have no work leave the memory when others need it; if all
            have work, they take turns. None: no model leaves it.
        keep_s: seconds for which a job that is over can be looked at.
        keep_bytes: of the pictures of such jobs, at most; the oldest go first.
        loras: files by the names that clients use.
        controls: other names of the models' ControlNets.
        backend, device, compute, threads, cache_dir: as `latentrt.load` takes them.

    Raises:
        RequestError: no model, or an argument out of range.
        BundleError: a bundle that cannot be read.
    """

    def __init__(
        self,
        models: Mapping[str, str | PathLike[str] | Pipeline],
        *,
        queue: int = 64,
        batch_area: int | None = None,
        batch_gain: float = GAIN,
        memory: int | None = None,
        padding: float | None = None,
        keep_s: float = 600,
        keep_bytes: int = 1 << 30,
        loras: Mapping[str, str | PathLike[str]] | None = None,
        controls: Mapping[str, str] | None = None,
        backend: BackendName | None = None,
        device: DeviceName | None = None,
        compute: ComputeName | None = None,
        threads: int | None = None,
        cache_dir: str | PathLike[str] | None = None,
    ) -> None:
        check(_LIMITS, queue=queue, batch_area=batch_area, batch_gain=batch_gain, memory=memory)
        check(_LIMITS, padding=padding, keep_s=keep_s, keep_bytes=keep_bytes)
        if not models:
            raise RequestError("a service without a model", expected="one or more, by name")
        check({"models": Named(Source())}, models=models)
        self._loras = {name: Path(path) for name, path in ({} if loras is None else loras).items()}
        opening = Opening(
            backend="auto" if backend is None else backend,
            device=device,
            compute=compute,
            threads=threads,
            cache_dir=cache_dir,
        )
        self._keep_s, self._keep_bytes = keep_s, keep_bytes
        self._unready: frozenset[str] = frozenset()
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._accepting = True
        parts = {
            name: Model(source, opening=opening, padding=padding, loras=self._loras) for name, source in models.items()
        }
        areas = {name: model.call_area(given=batch_area, memory=memory) for name, model in parts.items()}
        self._memory = Memory(None if memory is None else weights_room(memory, max(areas.values())))
        self._controls = other_names({} if controls is None else controls, [each.bundle for each in parts.values()])
        self._workers = {
            name: self._new_worker(name, model, queue=queue, batch_area=areas[name], batch_gain=batch_gain)
            for name, model in parts.items()
        }

    def _new_worker(self, name: str, model: Model, *, queue: int, batch_area: int, batch_gain: float) -> Maker:
        """What makes a model's jobs."""
        return Worker(name, model, queue=queue, batch_area=batch_area, batch_gain=batch_gain, memory=self._memory)

    @property
    def accepting(self) -> bool:
        """Whether it takes jobs: neither closed nor draining."""
        return self._accepting

    def prepare(self) -> dict[str, LatentRTError]:
        """Loads and tries each model with a small job, so that the first request does not wait; `ready` is false
        meanwhile. Gives what is wrong with those that cannot be used."""
        found: dict[str, LatentRTError] = {}
        self._unready = frozenset(self._workers)
        for name, worker in self._workers.items():
            try:
                worker.prepare()
            except LatentRTError as error:
                found[name] = error
            else:
                self._unready -= {name}
        return found

    @property
    def unready(self) -> frozenset[str]:
        """Names of the models that are being prepared, or could not be."""
        return self._unready

    @property
    def models(self) -> dict[str, ModelInfo]:
        """What clients may know of each model, by name; the first is the default."""
        return {
            name: worker.model.info(name, loras=tuple(self._loras), controls=self._controls)
            for name, worker in self._workers.items()
        }

    def submit(
        self,
        model: str | None,
        request: Request,
        *,
        id: str | None = None,
        loras: Sequence[tuple[str, float]] = (),
    ) -> Job:
        """A job that makes this; it waits for its turn.

        Args:
            model: its name; None is the first one.
            request: what is asked for.
            id: the job's name, which no other job that is kept may have; None makes one.
            loras: names of the service's LoRAs and their scales.

        Raises:
            UnknownModel: a model or a LoRA that there is not.
            QueueFull: too many wait already.
            NotAccepting: the service is closed or drains.
            RequestError: what this model cannot make, or a name that is taken.
        """
        check(_SUBMIT, id=id, model=model, loras=[name for name, _ in loras])
        worker = self._worker(model)
        named = self._checked_loras(loras)
        self._check_accepting()
        worker.line.check_room()
        request = renamed(request, self._controls)
        ticket = worker.plan(request, id=uuid.uuid4().hex if id is None else id, loras=named)
        job = ticket.job
        with self._lock:
            self._check_accepting()
            self._forget()
            if job.id in self._jobs:
                raise RequestError(f"a second job {job.id!r}", expected="an id of its own")
            worker.line.add(ticket)
            self._jobs[job.id] = job
        return job

    def job(self, id: str) -> Job:
        """The job of this name.

        Raises:
            UnknownJob: there was none, or it is kept no longer.
        """
        with self._lock:
            self._forget()
            found = self._jobs.get(id)
        if found is None:
            raise UnknownJob(
                f"no job {id!r}", expected=f"one that runs, or was over within {self._keep_s:g} s", hint=_LOST
            )
        return found

    def jobs(self) -> list[Job]:
        """All that are kept, oldest first."""
        with self._lock:
            self._forget()
            return list(self._jobs.values())

    def cancel(self, id: str) -> Job:
        """Cancels the job of this name, and no other.

        Raises:
            UnknownJob: as `job`.
        """
        job = self.job(id)
        job.cancel()
        return job

    def stats(self) -> Stats:
        """What all models together have done since the service began, and do now."""
        return Stats.of([worker.line.stats() for worker in self._workers.values()])

    def model_stats(self) -> dict[str, Stats]:
        """The same of each model."""
        return {name: worker.line.stats() for name, worker in self._workers.items()}

    def in_flight(self) -> dict[str, dict[str, int]]:
        """The engine call that each model makes at present: how many images of each job are in it."""
        return {name: worker.present() for name, worker in self._workers.items()}

    def drain(self, timeout: float | None = None) -> bool:
        """Takes no more jobs, and waits until those that there are are over, so many seconds at most; whether they
        are."""
        with self._lock:
            self._accepting = False
            jobs = list(self._jobs.values())
        until = None if timeout is None else time.monotonic() + timeout
        return all(job.wait(None if until is None else max(0.0, until - time.monotonic())) for job in jobs)

    def close(self) -> None:
        """Cancels what is not over, ends its threads after the engine call that each is in, and frees the models.
        Closing twice is fine."""
        with self._lock:
            self._accepting = False
            jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel()
        for worker in self._workers.values():
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _worker(self, model: str | None) -> Maker:
        found = next(iter(self._workers.values())) if model is None else self._workers.get(model)
        if found is None:
            raise UnknownModel(f"no model {model!r}", expected=f"one of {', '.join(self._workers)}")
        return found

    def _checked_loras(self, loras: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
        for name, _ in loras:
            if name not in self._loras:
                known = ", ".join(self._loras) if self._loras else "none: the service has no LoRAs"
                raise UnknownModel(f"no LoRA {name!r}", expected=f"one of {known}")
        return tuple((name, SCALE.read(f"the scale of LoRA {name}", value)) for name, value in loras)

    def _check_accepting(self) -> None:
        if not self._accepting:
            raise NotAccepting("this service takes no more jobs", expected="one that is open")

    def _forget(self) -> None:
        """Drops jobs that have been over for long enough, and the oldest whose pictures have no room any more."""
        oldest, room = time.time() - self._keep_s, self._keep_bytes
        over = [job for job in self._jobs.values() if job.finished is not None]
        for job in sorted(over, key=lambda job: job.finished or 0.0, reverse=True):
            room -= job.kept_bytes
            if room < 0 or (job.finished or 0.0) < oldest:
                del self._jobs[job.id]


_LOST = "jobs end with the server that has them: ask for the picture again"

_LIMITS: Mapping[str, Kind] = {
    "queue": Whole(1, 1 << 20),
    "batch_area": Optional(Whole(1)),
    "batch_gain": Number(0, 100),
    "memory": Optional(Whole(1)),
    "padding": Optional(Number(0, 1)),
    "keep_s": Number(0, 1e9),
    "keep_bytes": Whole(0),
}
_SUBMIT: Mapping[str, Kind] = {
    "id": Optional(Text()),
    "model": Optional(Text()),
    "loras": Listed(Text(), "names", least=0, most=100),
}
