"""Calls of a network, kept along the trajectories of a float pipeline and repeated elsewhere. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentrt.arrays import Array, Shape, Value, to_host
from latentrt.backends.base import GraphEngine
from latentrt.bundle import STEP_CONTROL
from latentrt.engine import Engine
from latentrt.graph import GraphFile
from latentrt.text.conditioning import BRANCHED

Feed = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Probe:
    """One call of one component: what it is fed and what float makes of it. `case` groups calls to a trajectory."""

    component: str
    case: str
    feed: Feed
    reference: Array
    output: str


class Recorder(GraphEngine):
    """An engine that keeps copies of what it is fed while it is active, of each `every`th call."""

    backend = "recorder"

    def __init__(self, engine: Engine, *, every: int = 1) -> None:
        super().__init__(GraphFile("recorder", path=Path("recorder"), inputs=engine.inputs, outputs=engine.outputs))
        self._engine = engine
        self.active = True
        self._every, self._calls = every, 0
        self.feeds: list[Feed] = []

    def _prepare(self, dims: Mapping[str, Shape]) -> None:
        self._engine.prepare(dims)

    def _run(self, feed: Mapping[str, Value], into: Mapping[str, Array], keep: Collection[str]) -> Mapping[str, Value]:
        if self.active and self._calls % self._every == 0:
            self.feeds.append({name: np.array(to_host(value)) for name, value in feed.items()})
        self._calls += 1
        return self._engine.run(feed, into=into, keep=keep)

    def _release(self) -> None:
        self._engine.unload()


def probes_of(component: str, feeds: Sequence[Feed], engine: Engine) -> Iterator[Probe]:
    """The recorded calls with float's answers; those of a step once for each branch, bare."""
    step = component in ("step", STEP_CONTROL)
    output = "denoised" if step else next(iter(engine.outputs))
    for feed in feeds:
        for case, bare in _bare(feed) if step else [(output, feed)]:
            yield Probe(component, case, bare, np.array(to_host(engine.run(bare)[output])), output)


def _bare(feed: Feed) -> Iterator[tuple[str, Feed]]:
    """The network alone, branch by branch: with c_skip 0, c_out 1 and weight 1, `denoised` is its output."""
    scalings = feed["scalings"].copy()
    scalings[:, 1:] = (0, 1)
    branches = len(feed["guidance"])
    branched = [name for name in feed if name in BRANCHED or name.startswith("residual_")]
    for branch in range(branches):
        name = "prompt" if branch == branches - 1 else f"negative {branch + 1}" if branches > 2 else "negative"
        yield (
            f"network, {name} branch",
            {
                **feed,
                "scalings": scalings,
                "mask": np.ones_like(feed["mask"]),
                **{name: feed[name][branch : branch + 1] for name in branched},
                "guidance": np.ones_like(feed["guidance"][:1]),
                "rescale": np.zeros_like(feed["rescale"]),
            },
        )
