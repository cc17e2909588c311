"""A dataset that a Ray cluster makes: planned on a node, compared on all, by a pool of actors (docs/ray-data.md)."""

import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from latentrt.datasets.dataset import IMAGE_FOLDER, first_seed
from latentrt.datasets.items import Item, Planned
from latentrt.datasets.making import Job, MakingOptions, Stored, Workers
from latentrt.datasets.request_file import Line
from latentrt.datasets.shards import Shard, write_shard
from latentrt.datasets.store import LocalStore, Store, open_store
from latentrt.datasets.target import BatchWritten, Layout, Target
from latentrt.errors import BackendError, LatentRTError
from latentrt.problems import error_from
from latentrt.ray_data.actor import TRIES, Attempts, Maker, Order, row_of
from latentrt.ray_data.nodes import Look, PlannedThere, here, look_there, plan_there, run_token
from latentrt.ray_data.opening import Opening, pictures
from latentrt.ray_data.resources import Actors, Wish, actors_for

BLOCKS, MOST_TASKS = 64, 8192
"""Tasks of an actor, so that all end at much the same time; and of all actors, since the driver sends each."""
BUSY_S = 60.0
PACKING = 64

Say = Callable[[str], None]
log = logging.getLogger(__name__)


class RayDataset:
    """As `Dataset`, made by a cluster.

    Args:
        ray: the package, connected (`latentrt.environment.ray_cluster.connected`).
        opening: the bundle, and how it is run.
        lines, folder, seed, overwrite, layout: as `Dataset` takes them; the folder is one that all nodes share.
        wish: actors, and what each takes.
        say: is told about nodes that could not be looked at.

    Attributes:
        bad: lines that this bundle cannot serve. Nothing is made of them.
        actors: what makes the images.

    Raises:
        EnvironmentLacks: no node has what an actor takes, or one has other files, another storage at the folder's path,
            or other versions.
        RequestError: as `Dataset`.
    """

    def __init__(
        self,
        ray: Any,
        opening: Opening,
        lines: Sequence[Line],
        folder: Path | str,
        *,
        wish: Wish,
        seed: int | None = None,
        overwrite: bool = False,
        layout: Layout = IMAGE_FOLDER,
        say: Say = log.warning,
    ) -> None:
        self._ray = ray
        self.actors = actors_for(
            ray.nodes(), wish, backend=opening.backend, device=opening.device, threads=opening.threads
        )
        threads = self.actors.threads if opening.threads is None else opening.threads
        self._opening = replace(opening, threads=threads)
        store = open_store(folder)
        with _probe(store) as (place, token), _ray_errors():
            look = Look(self._opening, place, token)
            there = self._plan(look, lines, first_seed(store, seed))
            for name, warning in there.warnings:
                logging.getLogger(name).warning(warning)
            self._facts = there.facts
            self.bad = there.planned.bad
            self._compare(look, there.planned, say)
        self._digests = there.planned.digests
        self._target = Target(there.planned, store, layout=layout, overwrite=overwrite)

    @property
    def backend(self) -> str:
        """What makes the images."""
        return self._facts.backend

    @property
    def items(self) -> tuple[Item, ...]:
        """The images, in the order of the lines."""
        return self._target.items

    @property
    def missing(self) -> list[Item]:
        """Images that are still to be made, in the order of the lines."""
        return self._target.missing()

    def make(
        self, *, batch: int = 4, skip_failures: bool = False, parameters: bool = True
    ) -> Generator[BatchWritten, None, None]:
        """As `Dataset.make`. A process or a node that ends is replaced; what it had not stored is made again.

        Raises:
            BackendError: as `Dataset.make`, or processes ended again and again at the same images.
            As `Dataset.make`.
        """
        options = MakingOptions(skip_failures=skip_failures, parameters=parameters)
        return self._target.make(self.workers(options), batch=batch)

    def workers(self, options: MakingOptions, *, tasks: int | None = None) -> Workers:
        """Those that make the images, in so many tasks; None is what suits their number."""
        order = Order(self._opening, self._facts, self._target.store, run_token(), options, self._counter())
        return _Cluster(self._ray, order, self.actors, self._digests, tasks)

    def _counter(self) -> Callable[[int], int]:
        """Counts attempts at rows in an actor on the driver's node, which the run outlives no more than the driver."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(self._ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        return partial(count_attempt, self._ray.remote(Attempts).options(**options).remote())

    def _plan(self, look: Look, lines: Sequence[Line], seed: int) -> PlannedThere:
        found = self._ray.get(self._on(self.actors.nodes[0], plan_there).remote(look, list(lines), seed))
        if isinstance(found, LatentRTError):
            raise found
        planned: PlannedThere = found
        return planned

    def _compare(self, look: Look, planned: Planned, say: Say) -> None:
        """Has the other nodes compared with the one that planned."""
        read = self._ray.put(pictures(planned.items))
        digests = self._ray.put(dict(planned.digests))
        asked = [self._on(node, look_there).remote(look, self._facts, read, digests) for node in self.actors.nodes[1:]]
        answers, busy = self._ray.wait(asked, num_returns=len(asked), timeout=BUSY_S) if asked else ([], [])
        for problem in self._ray.get(answers):
            if problem is not None:
                raise problem
        for each in busy:
            self._ray.cancel(each)
        if busy:
            say(f"{len(busy)} nodes are busy and were not looked at")

    def _on(self, node: str, function: Callable[..., Any]) -> Any:
        """A function as a task of a node, with what an actor has."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = NodeAffinitySchedulingStrategy(node, soft=False)
        return self._ray.remote(function).options(**self.actors.options, scheduling_strategy=where)


class _Cluster:
    """The workers of `Target.make`: a pool of actors."""

    def __init__(self, ray: Any, order: Order, actors: Actors, digests: Mapping[str, str], tasks: int | None) -> None:
        self._ray, self._order, self._actors, self._digests, self._tasks = ray, order, actors, digests, tasks
        self._packing: list[Any] = []

    def make(self, jobs: Sequence[Job]) -> Iterator[Stored]:
        if not jobs:
            return
        store, token = self._order.store, self._order.token
        store.write(token, b"")
        try:
            with _quiet(), _ray_errors():
                for rows in self._results(jobs).iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
                    yield from _reports(rows, jobs)
        finally:
            store.remove(token)

    def pack(self, shard: Shard) -> None:
        """As `Workers` says, on any node."""
        if len(self._packing) >= PACKING:
            done, self._packing = self._ray.wait(self._packing)
            self._check(done)
        task = self._ray.remote(pack_there).options(num_cpus=0, scheduling_strategy="SPREAD")
        self._packing.append(task.remote(self._order.store, shard))

    def settle(self) -> None:
        with _ray_errors():
            self._check(self._packing)
        self._packing = []

    def _results(self, jobs: Sequence[Job]) -> Any:
        """The dataset of what becomes of the rows; nothing is made until it is read."""
        import ray.data as data

        rows = [row_of(index, job, self._digests) for index, job in enumerate(jobs)]
        most = min(self._actors.count, len(jobs))
        tasks = tasks_for(len(jobs), most) if self._tasks is None else self._tasks
        given = data.from_items(rows, override_num_blocks=tasks)
        given.context.enable_progress_bars = False
        given.context.max_consecutive_actor_init_deaths = TRIES - 1
        return given.map_batches(
            Maker,
            fn_constructor_args=[self._order],
            batch_size=1,
            batch_format="numpy",
            compute=data.ActorPoolStrategy(size=most),
            **self._actors.options,
        )

    def _check(self, done: Sequence[Any]) -> None:
        for problem in self._ray.get(list(done)):
            if problem is not None:
                raise problem


def tasks_for(rows: int, actors: int) -> int:
    """Into how many tasks rows are divided: few, and actors wait for the last; many, and all wait for the driver."""
    return min(rows, max(8 * actors, min(BLOCKS * actors, MOST_TASKS)))


def count_attempt(attempts: Any, index: int) -> int:
    """Asks the actor that counts, from within another one."""
    import ray

    return int(ray.get(attempts.begin.remote(index)))


def pack_there(store: Store, shard: Shard) -> LatentRTError | None:
    """Packs a shard on a node; why it could not."""
    try:
        write_shard(store, shard)
    except LatentRTError as error:
        return here(error)
    return None


def _reports(rows: Mapping[str, Any], jobs: Sequence[Job]) -> Iterator[Stored]:
    """What rows of `Maker` say.

    Raises:
        LatentRTError: what ended the run.
    """
    for index, failed, problem in zip(rows["index"], rows["failed"], rows["problem"], strict=True):
        if problem:
            raise error_from(json.loads(problem))
        yield Stored(jobs[index], {name: error_from(why) for name, why in json.loads(failed).items()})


@contextmanager
def _probe(store: Store) -> Iterator[tuple[Store, str]]:
    """A file that nodes can look for where images will go, or in the nearest folder above that is there."""
    place = store
    if isinstance(store, LocalStore):
        place = LocalStore(next(folder for folder in (store.folder, *store.folder.parents) if folder.is_dir()))
    token = run_token()
    place.write(token, b"")
    try:
        yield place, token
    finally:
        place.remove(token)


@contextmanager
def _ray_errors() -> Iterator[None]:
    """What Ray says of processes and nodes that ended, as errors of ours; a bug stays one."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError:
        raise
    except RayError as error:
        said = " ".join(str(error).split())[:300]
        raise BackendError(
            f"the cluster lost the processes that made images ({type(error).__name__}: {said})",
            expected="processes and nodes that live, or others in their place",
            hint="look for a lack of memory in Ray's logs; the same command goes on with what is missing",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Errors are raised, and progress is shown by whoever asked: Ray Data need not say either."""
    import ray.data  # sets up its log

    theirs = logging.getLogger(ray.data.__name__)
    before = theirs.level
    theirs.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        theirs.setLevel(before)
