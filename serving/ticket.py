"""A job on its way through a worker, and how late it is."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from latentrt.denoise.batch import Plan
from latentrt.lora import Lora
from latentrt.serving.jobs import Job
from latentrt.serving.rows import Row

_BESIDE = 2  # encoding and decoding, in calls of the step, about


@dataclass(slots=True, eq=False)
class Ticket:
    """A job on its way through a worker.

    Args:
        job: what the client sees.
        plan: of the present pass.
        arrived: when it came, on the monotonic clock.
        loras: that its calls need in the weights.
        whole: what all its passes cost, as `work` counts.
        due: when it is over if it is not slowed down much, on the monotonic clock.
        first: plan of the first of two passes.
        rows: its images, once they are encoded.
    """

    job: Job
    plan: Plan
    arrived: float
    loras: tuple[tuple[str, float], ...]
    _: KW_ONLY
    whole: float
    due: float
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

    @property
    def left(self) -> float:
        """What is still to be done of the present pass, as `work` counts."""
        if not self.rows:
            return work(self.plan)
        calls = sum(row.calls - row.call for row in self.rows) / len(self.rows)
        return work(self.plan) * (calls + _BESIDE / 2) / (self.plan.calls + _BESIDE)

    def slowdown(self, now: float, pace: float) -> float:
        """How many times the time that it takes alone it will have taken, if nothing else is made before it is over.

        Args:
            now: on the monotonic clock.
            pace: seconds for each unit of work.
        """
        return (now - self.arrived + pace * self.left) / (pace * self.whole)

    def again(self, plan: Plan) -> None:
        """A second pass follows."""
        self.first, self.calls_before, self.plan, self.rows = self.plan, self.plan.calls, plan, []
        self.whole += work(plan)

    def report(self) -> None:
        """Tells the job how far it is."""
        done = sum(row.call for row in self.rows) // len(self.rows)
        blank = np.zeros_like(self.rows[0].state[0])
        latest = np.stack([blank if row.denoised is None else row.denoised for row in self.rows])
        self.job.advance(self.calls_before + done, total=self.calls_before + self.plan.calls, denoised=latest)


def work(plan: Plan) -> float:
    """What a plan costs, in pixels that one branch of the network computes."""
    width, height = plan.size
    return float((plan.calls + _BESIDE) * len(plan.image_plans) * plan.branches * width * height)
