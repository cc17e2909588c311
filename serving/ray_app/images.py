"""A replica: bundles that take turns in its memory, each a service of its own on continuous batching."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from latentrt.bundle import Bundle
from latentrt.environment.ray_cluster import check_same
from latentrt.errors import BackendError, LatentRTError
from latentrt.serving.errors import NotAccepting, UnknownModel
from latentrt.serving.jobs import Job, JobState
from latentrt.serving.ray_app.config import Config
from latentrt.serving.ray_app.messages import News, Order, Report, bundle_name
from latentrt.serving.service import Service
from latentrt.serving.stats import Stats

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.01
_LINE = 1 << 16  # Ray Serve bounds what comes here, and the front what waits
FAULTS = 3
"""Jobs that a backend fails one after the other until a replica counts as ill, and is begun anew."""


class Variant:
    """A bundle with some LoRAs, as Ray's multiplexing holds it. The bundle leaves the memory with its last variant.

    Args:
        service: of the bundle.
        leave: called once, when it is not held any more.
    """

    def __init__(self, service: Service, leave: Callable[[], None]) -> None:
        self.service = service
        self._leave: Callable[[], None] | None = leave

    def __del__(self) -> None:  # Ray calls it to evict, and the interpreter once more
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


@dataclass(slots=True, eq=False)
class _Opened:
    """A bundle in memory, and how many variants hold it."""

    service: Service
    held: int = 0


class Images:
    """The deployment of the replicas.

    Args:
        versions: of the process that deploys.
    """

    def __init__(self, versions: Mapping[str, str]) -> None:
        check_same(versions, where="the process that deploys")
        self.name, self._cores = _place()
        self._config: Config | None = None
        self._variant: Callable[[str], Any] = self._load
        self._opening, self._lock = asyncio.Lock(), threading.Lock()
        self._opened: dict[str, _Opened] = {}
        self._past: dict[str, Stats] = {}
        self._faults = 0

    async def reconfigure(self, given: Mapping[str, Any]) -> None:
        """Takes what is to be served, and has the first models ready. What was in memory finishes its jobs.

        Raises:
            LatentRTError: a bundle that cannot be read or used here.
        """
        config = Config.of(given)
        if config == self._config:
            return
        await asyncio.to_thread(self._check, config)
        self._config = config
        with self._lock:
            former, self._opened = self._opened, {}
        self._variant = _multiplexed(self._load, config.models_in_memory)
        for name, opened in former.items():
            threading.Thread(target=self._close, args=(name, opened), daemon=True).start()
        for name in list(config.models)[: config.models_in_memory]:
            await self._variant(name)

    def check_health(self) -> None:
        """Ray begins a replica anew that raises here.

        Raises:
            BackendError: the last jobs failed by a fault of the backend, one after the other.
        """
        if self._faults >= FAULTS:
            raise BackendError(f"{self._faults} jobs failed one after the other", expected="an engine that works")

    async def make(self, order: Order) -> AsyncIterator[News]:
        """Makes a job, and says how far it is; whoever stops listening takes it along."""
        try:
            job = await self._begun(order)
        except LatentRTError as error:
            yield News(replica=self.name, state=JobState.FAILED, error=error)
            return
        events = job.subscribe()
        try:
            while not events.over:
                event = events.get(0)
                if event is None:
                    await asyncio.sleep(_LOOK_EVERY_S)
                elif not event.state.final:
                    latents = job.denoised if event.done else None
                    yield News(
                        replica=self.name, state=event.state, done=event.done, total=event.total, denoised=latents
                    )
            yield self._ended(job)
        finally:
            job.cancel()

    async def report(self) -> Report:
        """What it has done and does."""
        with self._lock:
            opened, stats = dict(self._opened), dict(self._past)
        present: dict[str, Mapping[str, int]] = {}
        for name, each in opened.items():
            stats[name] = Stats.of([stats.get(name, Stats()), each.service.stats()])
            present |= each.service.in_flight()
        return Report(replica=self.name, stats=stats, present=present)

    def __del__(self) -> None:
        with self._lock:
            former, self._opened = self._opened, {}
        for opened in former.values():
            opened.service.close()

    async def _begun(self, order: Order) -> Job:
        """The job, in the line of its model. A bundle that leaves the memory between the two is loaded again."""
        variant = _variant_of(order)
        while True:
            service = (await self._variant(variant)).service
            try:
                submit = partial(service.submit, order.model, order.request, id=order.id, loras=order.loras)
                return await asyncio.to_thread(submit)
            except NotAccepting:
                await asyncio.sleep(_LOOK_EVERY_S)

    def _ended(self, job: Job) -> News:
        self._faults = self._faults + 1 if isinstance(job.error, BackendError) else 0
        result = replace(job.result, requests=()) if job.state is JobState.DONE else None
        return News(replica=self.name, state=job.state, done=job.done, total=job.total, result=result, error=job.error)

    async def _load(self, variant: str) -> Variant:
        name = bundle_name(variant)
        async with self._opening:
            with self._lock:
                opened = self._opened.get(name)
            if opened is None:
                opened = _Opened(await asyncio.to_thread(self._ready, name))
            with self._lock:
                opened.held += 1
                self._opened[name] = opened
        return Variant(opened.service, partial(self._leave, name, opened))

    def _leave(self, name: str, opened: _Opened) -> None:
        with self._lock:
            opened.held -= 1
            last = opened.held == 0 and self._opened.get(name) is opened
            if last:
                del self._opened[name]
        if last:
            self._close(name, opened)

    def _close(self, name: str, opened: _Opened) -> None:
        """Lets a bundle finish its jobs and leave the memory."""
        opened.service.drain()
        with self._lock:
            now = replace(opened.service.stats(), queued=0, running=0)
            self._past[name] = Stats.of([self._past.get(name, Stats()), now])
        opened.service.close()

    def _ready(self, name: str) -> Service:
        """A service of one bundle, which has made a small picture."""
        config = self._config
        assert config is not None
        if name not in config.models:
            raise UnknownModel(f"no model {name!r}", expected=f"one of {', '.join(config.models)}")
        service = self._new_service(name, config)
        for error in service.prepare().values():
            service.close()
            raise error
        return service

    def _check(self, config: Config) -> None:
        """Looks at every bundle before any of them is asked for."""
        for path in config.models.values():
            Bundle.open(path)

    def _new_service(self, name: str, config: Config) -> Service:
        path = config.models[name]
        own = Bundle.open(path).controls
        return Service(
            {name: path},
            queue=_LINE,
            batch_area=config.batch_area,
            memory=None if config.memory is None else int(config.memory * 1e9),
            keep_s=0,
            loras=config.loras,
            controls={other: control for other, control in config.controls.items() if control in own},
            backend=config.backend,
            device=config.device,
            compute=config.compute,
            threads=self._cores if config.threads is None else config.threads,
            cache_dir=config.cache_dir,
        )


def _variant_of(order: Order) -> str:
    from ray import serve

    return serve.get_multiplexed_model_id() or order.model


def _multiplexed(load: Callable[[str], Any], most: int) -> Callable[[str], Any]:
    """`load` behind Ray's least recently used ones. Local testing mode has none: there all stay."""
    from ray import serve

    kept: dict[str, Variant] = {}

    async def opened(variant: str) -> Variant:
        made: Variant = await load(variant)
        return made

    async def remembered(variant: str) -> Variant:
        if variant not in kept:
            kept[variant] = await load(variant)
        return kept[variant]

    found: Callable[[str], Any] = serve.multiplexed(opened, max_num_models_per_replica=most)
    return found if _within_replica() else remembered


def _within_replica() -> bool:
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        serve.get_replica_context()
    except RayServeException:
        return False
    return True


def _place() -> tuple[str, int | None]:
    """The replica's name, and how many threads fit the cores that it has; None: as the backend likes."""
    import ray
    from ray import serve

    if not _within_replica():
        return "local", None
    resources = ray.get_runtime_context().get_assigned_resources()
    cores = resources.get("CPU", 0.0)
    return serve.get_replica_context().replica_tag, max(1, int(cores)) if cores and not resources.get("GPU") else None
