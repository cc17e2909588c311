"""An actor: a bundle in a process of the cluster, and batches that come as rows of a Ray dataset."""

import json
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from latentrt.datasets.making import Job, MakingOptions, make_job
from latentrt.datasets.store import Store
from latentrt.errors import BackendError, LatentRTError
from latentrt.pipeline import Pipeline
from latentrt.problems import Problem
from latentrt.ray_data.nodes import here, not_shared
from latentrt.ray_data.opening import Facts, Opening, check_pictures

TRIES = 4
"""Processes that may end at the same images, before those are given up: Ray itself would go on for ever."""


class Attempts:
    """How often each row was begun; an actor of its own, beside the driver."""

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}

    def begin(self, index: int) -> int:
        """Counts one more."""
        self._begun[index] = self._begun.get(index, 0) + 1
        return self._begun[index]


@dataclass(frozen=True, slots=True)
class Order:
    """What all actors of a run have in common.

    Args:
        token: a file that is in the store as long as the run goes on. An actor that outlived its driver finds it
            removed by the next one, and stores nothing more.
        begin: counts attempts at a row.
    """

    opening: Opening
    facts: Facts
    store: Store
    token: str
    options: MakingOptions
    begin: Callable[[int], int]


class Maker:
    """Makes the images of rows. It raises nothing that the user should read: Ray would wrap that, and try again.

    Args:
        order: of the run.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._opened: Pipeline | LatentRTError
        try:
            self._opened = self._open()
        except LatentRTError as error:
            self._opened = here(error)

    def __call__(self, rows: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Rows as `row_of` makes them, to rows as `reports` reads them."""
        failed, problems = [], []
        for index, packed in zip(rows["index"], rows["job"], strict=True):
            row = pickle.loads(packed)
            outcome, problem = self._do(int(index), row["job"], row["digests"])
            failed.append(json.dumps(outcome))
            problems.append(problem)
        return {"index": list(rows["index"]), "failed": failed, "problem": problems}

    def _do(self, index: int, job: Job, digests: Mapping[str, str]) -> tuple[dict[str, Any], str]:
        """Why images failed, by name, and what ends the whole run, as texts."""
        if isinstance(self._opened, LatentRTError):
            return {}, _text(self._opened)
        try:
            if not self._order.store.exists(self._order.token):
                raise not_shared(self._order.store)
            there = self._order.store.there(job.wanted)  # of a process that died after it had stored them
            job = Job(job.items, job.wanted - there)
            if not job.wanted:
                return {}, ""
            if self._order.begin(index) > TRIES:
                failed = _given_up(job, self._order.options)
            else:
                check_pictures(job.items, digests)
                failed = make_job(self._opened, job, self._order.store, self._order.options)
        except LatentRTError as error:
            return {}, _text(here(error))
        return {name: Problem.of(error).document() for name, error in failed.items()}, ""

    def _open(self) -> Pipeline:
        pipe = self._order.opening.open()
        self._order.facts.check(Facts.of(pipe), where="this node")
        return pipe


def _given_up(job: Job, options: MakingOptions) -> dict[str, LatentRTError]:
    """The images of a job at which process after process ended, as failed.

    Raises:
        BackendError: unless failures are skipped.
    """
    names = sorted(job.wanted)
    error = BackendError(
        f"{TRIES} processes ended while they made {', '.join(names)}",
        expected="a process that lives",
        hint="it may be a lack of memory: give an actor more cores (--ray-cpus), or make fewer at a time (--batch)",
    )
    if not options.skip_failures:
        raise error
    return dict.fromkeys(names, error)


def row_of(index: int, job: Job, digests: Mapping[str, str]) -> dict[str, Any]:
    """A job as a row. Every setting is in it, the seed too: whoever makes it, wherever, makes the same images."""
    own = {item.name: digests[item.name] for item in job.items}
    return {"index": index, "job": pickle.dumps({"job": job, "digests": own})}


def _text(error: LatentRTError) -> str:
    return json.dumps(Problem.of(error).document())
