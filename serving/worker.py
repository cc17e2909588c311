"""The thread that owns a model's pipeline."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from latentrt.arrays import to_host
from latentrt.bundle import Bundle
from latentrt.denoise.batch import Plan
from latentrt.errors import LatentRTError
from latentrt.loading import load
from latentrt.names import BackendName, ComputeName, DeviceName
from latentrt.output.result import Step
from latentrt.pipeline import Pipeline
from latentrt.request import Request
from latentrt.serving.errors import QueueFull
from latentrt.serving.jobs import Job, JobState
from latentrt.serving.stats import Stats

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How bundles are loaded, as `latentrt.load` takes it."""

    backend: BackendName
    device: DeviceName | None
    compute: ComputeName | None
    threads: int | None
    cache_dir: str | PathLike[str] | None

    def load(self, path: Path) -> Pipeline:
        return load(
            path,
            backend=self.backend,
            device=self.device,
            compute=self.compute,
            threads=self.threads,
            cache_dir=self.cache_dir,
        )


class Worker:
    """A model's queue and the thread that serves it."""

    def __init__(
        self,
        name: str,
        source: str | PathLike[str] | Pipeline,
        *,
        opening: Opening,
        queue: int,
        batch_area: int | None,
        loras: Mapping[str, Path],
    ) -> None:
        self.name = name
        self._given = source if isinstance(source, Pipeline) else None
        self.bundle = source.bundle if isinstance(source, Pipeline) else Bundle.open(source)
        self._opening, self._most, self._loras = opening, queue, loras
        self._pipeline = self._given
        self._opened = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._current: Job | None = None
        self._closed = False
        self._ended: Counter[JobState] = Counter()
        self._step_s, self._batches = 0.0, Counter[int]()
        self._thread = threading.Thread(target=self._serve, name=f"latentrt-{name}", daemon=True)
        self._thread.start()

    @property
    def edits(self) -> bool:
        """Whether the bundle can begin with photos."""
        return self._given is not None or "encoder" in self.bundle.components

    def plan(self, request: Request, *, id: str, loras: tuple[tuple[str, float], ...]) -> tuple[Job, Plan]:
        """A job, and what it comes to; nothing is queued."""
        pipe = self._pipe()
        plan = pipe.plan([request])
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
        return job, plan

    def check_room(self) -> None:
        """Raises QueueFull where no job may wait any more."""
        with self._changed:
            self._waiting = [job for job in self._waiting if not job.state.final]
            if len(self._waiting) >= self._most:
                raise QueueFull(len(self._waiting), retry_after=max(1.0, self._seconds_a_job() * len(self._waiting)))

    def add(self, job: Job, plan: Plan) -> None:
        """Queues a job."""
        with self._changed:
            self.check_room()
            self._waiting.append(job)
            self._changed.notify_all()

    def stats(self) -> Stats:
        with self._changed:
            return Stats(
                queued=sum(not job.state.final for job in self._waiting),
                running=int(self._current is not None),
                done=self._ended[JobState.DONE],
                failed=self._ended[JobState.FAILED],
                cancelled=self._ended[JobState.CANCELLED],
                batches=dict(self._batches),
                step_s=self._step_s,
            )

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if self._pipeline is not None and self._given is None:
            self._pipeline.close()

    def _pipe(self) -> Pipeline:
        with self._opened:
            if self._pipeline is None:
                self._pipeline = self._opening.load(self.bundle.root)
            return self._pipeline

    def _position(self, job: Job) -> int:
        with self._changed:
            waiting = [other for other in self._waiting if not other.state.final]
            return waiting.index(job) + 1 if job in waiting else 0

    def _seconds_a_job(self) -> float:
        over = sum(self._ended.values())
        return self._step_s / over if over else 1.0

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or bool(self._waiting))
                if self._closed:
                    return
                job = self._waiting.pop(0)
                self._current = job
                left = [other for other in self._waiting if not other.state.final]
            for other in left:
                other.moved()
            self._make(job)
            with self._changed:
                self._current = None
                self._ended[job.state] += 1

    def _make(self, job: Job) -> None:
        """One job, alone."""
        job.start()
        try:
            pipe = self._pipe()
            chosen = [(self._loras[name], scale) for name, scale in job.loras]
            if [(lora.path, lora.scale) for lora in pipe.lora] != chosen:
                pipe.set_lora(chosen)

            result = pipe.run(job.request, progress=lambda step: self._progress(job, step))
        except _Left:
            return
        except LatentRTError as error:
            job.end(JobState.FAILED, error=error)
        else:
            job.end(JobState.DONE, result=result)

    def _progress(self, job: Job, step: Step) -> None:
        self._step_s += step.seconds
        self._batches[len(job.seeds)] += 1
        job.advance(step.index + 1, total=step.total, denoised=np.array(to_host(step.denoised)))
        if job.state.final or self._closed:
            raise _Left


class _Left(Exception):  # noqa: N818 - no error
    """Leaves a run that nobody waits for."""
