"""The service of a cluster: jobs are planned and kept here, and made by replicas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentrt.errors import EnvironmentLacks, LatentRTError
from latentrt.pipeline import Pipeline
from latentrt.serving.calls import as_ours
from latentrt.serving.errors import NotAccepting
from latentrt.serving.jobs import Job, JobState
from latentrt.serving.model import Model
from latentrt.serving.ray_app.config import Config
from latentrt.serving.ray_app.messages import News, Order, Report, variant_name
from latentrt.serving.ray_app.relay import Relay
from latentrt.serving.service import Service
from latentrt.serving.stats import Stats

log = logging.getLogger(__name__)

TRIES = 5
"""Replicas that a job may lose before it fails."""
_LOOK_EVERY_S, _REPORT_EVERY_S, _ANSWER_S, _AGAIN_S = 0.02, 1.0, 10.0, 0.2


class ReplicaGone(EnvironmentLacks):
    """A replica that ended while it had a job."""


class Fleet(Service):
    """A service whose jobs are made by the replicas of a deployment.

    Args:
        config: what is served.
        replicas: Ray Serve's handle of `Images`.
        loop: where this runs.
        former: a fleet whose jobs are to be found here as well.

    Raises:
        LatentRTError: a bundle that cannot be read here.
    """

    def __init__(
        self, config: Config, replicas: Any, loop: asyncio.AbstractEventLoop, *, former: Fleet | None = None
    ) -> None:
        self._replicas, self._loop = replicas, loop
        self._reports: dict[str, Report] = {} if former is None else former._reports
        self._following: set[Future[None]] = set()
        super().__init__(
            {name: self._source(path) for name, path in config.models.items()},
            queue=config.queue,
            keep_s=config.keep_s,
            loras=config.loras,
            controls=config.controls,
        )
        if former is not None:
            self._jobs |= {job.id: job for job in former.jobs()}
        self._watching = self._run(self._watch())

    @property
    def unready(self) -> frozenset[str]:
        """All models until a replica runs; each has its first models ready before it does."""
        return frozenset() if self._replicas.running_replicas_populated() else frozenset(self.models)

    def leave(self) -> None:
        """Looks no longer at what the replicas do; what they make is told to their jobs all the same."""
        self._watching.cancel()

    def close(self) -> None:
        self.leave()
        super().close()

    def _source(self, path: str) -> Path | Pipeline:
        return Path(path)

    def _new_worker(self, name: str, model: Model, *, queue: int, batch_area: int, batch_gain: float) -> Relay:
        return Relay(name, model, queue=queue, send=self._send, reported=self._reported)

    def _run(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._following.add(future)
        future.add_done_callback(self._following.discard)
        return future

    def _send(self, job: Job) -> None:
        self._run(self._follow(job))

    async def _follow(self, job: Job) -> None:
        """Has a job made; by another replica if the one that has it ends."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError

        variant = variant_name(job.model, job.loras)
        replicas = self._replicas.options(method_name="make", stream=True, multiplexed_model_id=variant)
        try:
            for number in range(TRIES):
                id = f"{job.id}#{number}" if number else job.id
                order = Order(id=id, model=job.model, request=job.request, loras=job.loras)
                try:
                    await self._listen(job, replicas.remote(order))
                    return
                except RayTaskError:  # a fault in the replica's own code: it would be there again
                    raise
                except (RayError, ReplicaGone) as error:
                    if job.state.final:
                        return
                    log.warning("a replica is gone (%s); another one makes its job", type(error).__name__)
                    await asyncio.sleep(_AGAIN_S)
            raise ReplicaGone(f"{TRIES} replicas ended while they had the job", expected="one that goes on")
        except BackPressureError:
            job.end(JobState.FAILED, error=NotAccepting("all replicas are full", expected="a place in the queue"))
        except LatentRTError as error:
            job.end(JobState.FAILED, error=error)
        except Exception as error:
            log.exception("a job failed on its way")
            job.end(JobState.FAILED, error=as_ours(error))

    async def _listen(self, job: Job, stream: Any) -> None:
        """Tells a job what its replica says, until it is over.

        Raises:
            ReplicaGone: the replica has nothing more to say, and the job is not over.
        """
        told: asyncio.Future[News | None] = asyncio.ensure_future(_next(stream))
        try:
            while not job.state.final:
                await asyncio.wait({told}, timeout=_LOOK_EVERY_S)
                if told.done():
                    news = told.result()
                    if news is None or news.state is JobState.CANCELLED:
                        raise ReplicaGone("a replica ended while it had the job", expected="one that goes on")
                    _tell(job, news)
                    told = asyncio.ensure_future(_next(stream))
        finally:
            told.cancel()
            stream.cancel()

    async def _watch(self) -> None:
        """Asks the replicas now and then what they have done."""
        while True:
            try:
                asked = self._replicas.broadcast("report")
                for report in await asked.results_async(timeout_s=_ANSWER_S, return_exceptions=True):
                    if isinstance(report, Report):
                        self._reports[report.replica] = report
            except Exception as error:  # replicas come and go; what they say is for people to look at
                log.debug("no report of the replicas: %s", error)
            await asyncio.sleep(_REPORT_EVERY_S)

    def _reported(self, model: str) -> tuple[Stats, dict[str, int]]:
        """Counts of replicas that are gone stay in the sum, since a counter never falls."""
        reports = list(self._reports.values())
        known = {job.id for job in self.jobs() if not job.state.final}
        present = {
            id.partition("#")[0]: images
            for report in reports
            for id, images in report.present.get(model, {}).items()
            if id.partition("#")[0] in known
        }
        return Stats.of([report.stats[model] for report in reports if model in report.stats]), present


def _tell(job: Job, news: News) -> None:
    job.replica = news.replica
    if news.state is JobState.DONE and news.result is not None:
        job.start()
        job.advance(news.done, total=news.total)
        job.end(JobState.DONE, result=replace(news.result, requests=(job.request,)))
    elif news.state is JobState.FAILED:
        job.end(JobState.FAILED, error=news.error)
    elif news.state is JobState.RUNNING:
        job.start()
        if news.done:
            job.advance(news.done, total=news.total, denoised=news.denoised)


async def _next(stream: Any) -> News | None:
    """What is said next; None: nothing any more."""
    found: News | None = await anext(stream, None)
    return found
