"""Engine calls of the step, and what becomes of one that fails."""

from __future__ import annotations

import logging
import time

from latentrt.arrays import to_host
from latentrt.errors import BackendError, LatentRTError, RequestError, without_frames
from latentrt.serving.jobs import JobState
from latentrt.serving.line import Line
from latentrt.serving.model import Model
from latentrt.serving.rows import call_inputs
from latentrt.serving.turns import Batch

log = logging.getLogger(__name__)


class Calls:
    """Makes the calls of one model.

    Args:
        name: of the model, in messages.
        model: whose pipeline makes them.
        line: is told how long they took.
    """

    def __init__(self, name: str, model: Model, line: Line) -> None:
        self._name, self._model, self._line = name, model, line
        self.present: Batch | None = None  # that is being made

    def make(self, batch: Batch) -> None:
        """A call, and what follows from it."""
        self._attempt(batch)
        self.present = None
        for ticket in batch.tickets:
            if ticket.live:
                ticket.report()
        self._line.made(batch)

    def _attempt(self, batch: Batch) -> bool:
        """Makes a call, or its halves where it fails, down to the images that fail alone; whether there was one."""
        members = tuple((ticket, row) for ticket, row in batch.members if ticket.live)
        if not members:
            return False
        try:
            self._call(batch if len(members) == len(batch.members) else Batch(batch.key, members, batch.size))
        except Exception as error:  # whatever an engine raises is the fault of some job, and of that alone
            failure = without_frames(error)  # which would hold the engine that is loaded anew
        else:
            return False
        self._note_fault(failure)
        if len(members) == 1:
            members[0][0].job.end(JobState.FAILED, error=as_ours(failure))
            return True
        half = len(members) // 2
        parts = [Batch(batch.key, part, len(part)) for part in (members[:half], members[half:])]
        failed = [self._attempt(part) for part in parts]
        if not any(failed):
            self._line.limits.lower(batch.key, batch.size)
        return any(failed)

    def _call(self, batch: Batch) -> None:
        began = time.perf_counter()
        rows = [row for _, row in batch.members]
        self.present = batch
        feed, passes = call_inputs(rows, batch.size)
        out = self._model.pipe().call(feed, passes=passes)
        states, denoised = to_host(out["next_state"]), to_host(out["denoised"])
        for index, row in enumerate(rows):
            row.take(states[index].copy(), denoised[index].copy())
        seconds = time.perf_counter() - began
        for ticket in batch.tickets:
            ticket.calls_s.append(seconds)
        pixels = batch.key.shape[1] * batch.key.shape[2] * self._model.bundle.family.vae_factor**2
        self._line.measured(batch, images=len(rows), seconds=seconds, pixels=pixels)

    def _note_fault(self, error: Exception) -> None:
        """Counts it, and has the step's engine loaded anew unless only the request was wrong."""
        log.warning("model %s: an engine call failed: %s", self._name, error)
        with self._line.counting() as counts:
            counts.faults += 1
        if not isinstance(error, RequestError):
            self._model.reload_step()
            with self._line.counting() as counts:
                counts.restarts += 1


def as_ours(error: Exception) -> LatentRTError:
    """An error of the tree, whatever was raised."""
    if isinstance(error, LatentRTError):
        return error
    made = BackendError(f"the engine failed: {type(error).__name__}: {error}", hint="ask again, or look at the log")
    made.__cause__ = error
    return made
