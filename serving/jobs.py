"""A job: what a client asks for and looks at, from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from latentrt.arrays import FloatArray
from latentrt.errors import LatentRTError, RequestError, without_frames
from latentrt.output.result import Images, Result, small_pictures
from latentrt.request import Request
from latentrt.serving.errors import JobCancelled


class JobState(StrEnum):
    """Where a job stands; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Event:
    """What a job looked like at one moment.

    Args:
        state: of the job; a final one is that of the last event.
        position: in the queue, 1 for the next; 0 when it runs or is over.
        done, total: engine calls made, and of the whole run.
    """

    state: JobState
    position: int
    done: int
    total: int


class Job:
    """One request to one model. A service makes it; everything here may be asked for by any thread at any time.

    Args:
        id: its name.
        model: name of the model.
        request: what is asked for, with defaults and seeds filled in.
        seeds: of each image.
        total: engine calls of the run.
        preview_map: [C + 1, 3] from latent channels and 1 to RGB in 0..1; None: there are no previews.
        position: tells the place of a waiting job.
        loras: names and scales.
    """

    def __init__(
        self,
        id: str,
        *,
        model: str,
        request: Request,
        seeds: tuple[int, ...],
        total: int,
        preview_map: FloatArray | None = None,
        position: Callable[[Job], int] | None = None,
        loras: tuple[tuple[str, float], ...] = (),
    ) -> None:
        self.id, self.model, self.request, self.seeds, self.loras = id, model, request, seeds, loras
        self.created = time.time()
        self.started: float | None = None
        self.stepped: float | None = None  # after its first engine call
        self.finished: float | None = None
        self.replica: str | None = None  # that makes it, where there are several
        self._changed = threading.Condition()
        self._version = 0
        self._state = JobState.QUEUED
        self._done, self._total = 0, total
        self._denoised: FloatArray | None = None
        self._preview_map = preview_map
        self._position = position
        self._result: Result | None = None
        self._error: LatentRTError | None = None

    @property
    def state(self) -> JobState:
        return self._state

    @property
    def position(self) -> int:
        """Its place among the jobs that wait for the model, 1 for the next; 0 when it runs or is over."""
        return self._position(self) if self._position is not None and self._state is JobState.QUEUED else 0

    @property
    def done(self) -> int:
        """Engine calls that were made; of several images, the mean."""
        return self._done

    @property
    def total(self) -> int:
        """Engine calls of the run; upscaling adds those of its second pass when that begins."""
        return self._total

    @property
    def error(self) -> LatentRTError | None:
        """Why it failed."""
        return self._error

    @property
    def result(self) -> Result:
        """What was made.

        Raises:
            LatentRTError: why there is none: the job's own error, `JobCancelled`, or that it is not over yet.
        """
        with self._changed:
            if self._result is not None:
                return self._result
            if self._error is not None:
                raise self._error
            if self._state is JobState.CANCELLED:
                raise JobCancelled(f"job {self.id} was cancelled", expected="a job that is done")
            raise RequestError(f"job {self.id} is {self._state}", expected="a job that is done", hint="wait for it")

    @property
    def kept_bytes(self) -> int:
        """What its pictures and latents occupy."""
        result = self._result
        return 0 if result is None else result.images.nbytes + (0 if result.latents is None else result.latents.nbytes)

    @property
    def denoised(self) -> FloatArray | None:
        """What previews are made of, [B, C, h, w], after the latest call; None before the first one."""
        return self._denoised

    def preview(self) -> Images | None:
        """A small picture of what each image will be, uint8 [B, h, w, 3] as `Step.preview`, or None where there is none
        yet, or no map in the bundle."""
        denoised = self._denoised
        if denoised is None or self._preview_map is None:
            return None
        return small_pictures(denoised, self._preview_map)

    def cancel(self) -> None:
        """Ends this job and no other: it is cancelled at once, and takes no part in the engine calls after the present
        one. A job that is over stays as it is."""
        self.end(JobState.CANCELLED)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is over, so many seconds at most; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: self._state.final, timeout)

    def subscribe(self) -> Events:
        """The job's events from now on: the present one first, then each change, the final one last. What changes
        between two looks is told once."""
        return Events(self)

    def next_event(self, after: int, timeout: float | None) -> tuple[int, Event] | None:
        """The present event and its number, when that is above `after`; None: not within `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._version > after, timeout):
                return None
            version, state, done, total = self._version, self._state, self._done, self._total
        return version, Event(state, self.position, done, total)

    # What the service tells it.

    def start(self) -> None:
        """It runs."""
        with self._changed:
            if self._state is JobState.QUEUED:
                self._state, self.started = JobState.RUNNING, time.time()
                self._tell()

    def advance(self, done: int, *, total: int | None = None, denoised: FloatArray | None = None) -> None:
        """So many calls are made.

        Args:
            done: of them.
            total: of the whole run; None: as before.
            denoised: [B, C, h, w], what previews are made of; it does not change afterwards.
        """
        with self._changed:
            if self._state.final:
                return
            self._done = done
            self.stepped = time.time() if self.stepped is None else self.stepped
            self._total = self._total if total is None else total
            self._denoised = self._denoised if denoised is None else denoised
            self._tell()

    def end(self, state: JobState, *, result: Result | None = None, error: LatentRTError | None = None) -> bool:
        """It is over; False: it was before, and stays as it was."""
        with self._changed:
            if self._state.final:
                return False
            self._state, self.finished = state, time.time()
            self._result, self._error = result, None if error is None else without_frames(error)
            self._tell()
            return True

    def moved(self) -> None:
        """Its place in the queue is another."""
        with self._changed:
            self._tell()

    def _tell(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def __repr__(self) -> str:
        return f"<Job {self.id}: {self._state}, {self._done} of {self._total} calls>"


class Events(Iterator[Event]):
    """Events of a job; the iteration ends after the final one."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._seen = -1
        self._over = False

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None where none comes within `timeout` seconds, or the last one is behind us (`over`)."""
        if self._over or (found := self._job.next_event(self._seen, timeout)) is None:
            return None
        self._seen, event = found
        self._over = event.state.final
        return event

    @property
    def over(self) -> bool:
        """Whether the final event has been given."""
        return self._over

    def __next__(self) -> Event:
        event = self.get()
        if event is None:
            raise StopIteration
        return event
