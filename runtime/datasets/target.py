"""A dataset in the making: what of it is there, what is missing, and the order in which it becomes whole."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

from latentrt.datasets.batches import batches
from latentrt.datasets.items import Item, Planned
from latentrt.datasets.making import Job, Stored, Workers
from latentrt.datasets.shards import Entry, Form, Shard, shard_contents, shards_of, unpack_shard
from latentrt.datasets.state import State
from latentrt.datasets.store import Store
from latentrt.errors import LatentRTError, RequestError

METADATA = "metadata.jsonl"
SHARD = 1000


@dataclass(frozen=True, slots=True)
class BatchWritten:
    """A batch that has just been written: how many of `total` images are there now, the names of the new ones, and
    why others of the batch could not be made."""

    done: int
    total: int
    names: tuple[str, ...]
    failed: Mapping[str, LatentRTError]


@dataclass(frozen=True, slots=True)
class Layout:
    """How a dataset is stored.

    Args:
        form: of shards; None is an image folder.
        shard: images of a shard.
    """

    form: Form | None = None
    shard: int = SHARD


class Target:
    """A place that is to hold the images of a plan, and nothing else of its own.

    Args:
        planned: what is to be there.
        store: where.
        layout: images as files, or in shards.
        overwrite: images that `bulk.json` lists with other settings are replaced, instead of refused.

    Raises:
        EnvironmentLacks: the place cannot be reached, or a library for its shards is missing.
        RequestError: images of other settings are there, or files that this does not know.
    """

    def __init__(self, planned: Planned, store: Store, *, layout: Layout, overwrite: bool) -> None:
        self.items = planned.items
        self.store = store
        self._layout = layout
        self._overwrite = overwrite
        self._state = State(planned.weights, planned.seed, planned.digests)
        if layout.form is not None:
            layout.form.check_installed()
        self._look(State.read(store))

    def missing(self) -> list[Item]:
        """Images that are still to be made, in the order of the lines."""
        there = self._there(item.name for item in self.items) - self._others
        return [item for item in self.items if item.name not in there]

    def make(self, workers: Workers, *, batch: int | Callable[[Item], int]) -> Generator[BatchWritten, None, None]:
        """Has what is missing made, as many at a time as may share a batch. The metadata is written at the end, or when
        the loop is left. A killed run leaves whole images only, and the next one goes on from them. Other processes are
        kept from the place meanwhile.

        Raises:
            InUseError: another process makes images there.
            RequestError: one has begun the place with other settings or lines since this object was made.
            As `Workers.make`.
        """
        with self.store.alone():
            self._look(State.read(self.store))
            self._begin()
            jobs = self._jobs(batch)
            done = len(self.items) - sum(len(job.wanted) for job in jobs)
            packing = _Packing(self._shards(), jobs, workers.pack, packed=self._packed)
            try:
                for stored in workers.make(jobs):
                    names = tuple(name for name in _names(stored) if name not in stored.failed)
                    done += len(names)
                    packing.add(stored)
                    yield BatchWritten(done, len(self.items), names, stored.failed)
                packing.finish()
                workers.settle()
            finally:
                self._write_metadata()

    def _look(self, before: State | None) -> None:
        """What is there: shards by their names with the names of their images, and images that are not those to be
        made, if they may be replaced."""
        self._packed = shard_contents(self.store)
        listed: Mapping[str, str] = {} if before is None else before.images
        known = listed if before is not None and before.weights == self._state.weights else {}
        wanted = self._state.images
        inside = {name: shard for shard, names in self._packed.items() for name in names}
        names = [
            name for name in {**listed, **wanted, **inside} if not (name in wanted and known.get(name) == wanted[name])
        ]
        there = self._there(names)
        others = [name for name in names if name in there]
        strangers = [name for name in others if name not in listed]
        if strangers:
            raise RequestError(
                f"{self.store.path(inside.get(strangers[0], strangers[0]))} is there, of unknown origin"
                f" ({len(strangers)} such images)",
                expected="a folder that an earlier run began, or a new one",
            )
        if others and not self._overwrite:
            raise RequestError(
                f"{self.store.path(others[0])} is of other settings or another bundle ({len(others)} such images)",
                expected="the settings and the lines that the folder was begun with, or more lines",
                hint="choose another folder, or replace these images with --overwrite",
            )
        self._others = frozenset(others)

    def _begin(self) -> None:
        """Removes what is to be replaced, and only then says what the place holds."""
        self.store.prepare(self._state.images)
        if self._others or self._layout.form is not None:
            self.store.remove(METADATA)
        self._unpack()
        for name in self.store.there(self._others):
            self.store.remove(name)
        self._others = frozenset()
        self._state.write(self.store)

    def _unpack(self) -> None:
        """Shards that are not as they will be become files again: lines were added, or the form is another."""
        final = {shard.name: tuple(entry.name for entry in shard.entries) for shard in self._shards()}
        for shard, names in self._packed.items():
            if final.get(shard) == names and not self._others.intersection(names):
                for name in self.store.there(names):  # a kill came between shard and files
                    self.store.remove(name)
            else:
                unpack_shard(self.store, shard, self._state.images.keys() - self._others)
        self._packed = {shard: names for shard, names in self._packed.items() if self.store.exists(shard)}

    def _jobs(self, batch: int | Callable[[Item], int]) -> list[Job]:
        """Batches that want something, of the images that they would have in one run over all lines."""
        missing = frozenset(item.name for item in self.missing())
        parts = (tuple(part) for part in batches(self.items, batch, key=lambda item: item.work))
        jobs = (Job(part, missing.intersection(item.name for item in part)) for part in parts)
        return [job for job in jobs if job.wanted]

    def _shards(self) -> list[Shard]:
        if self._layout.form is None:
            return []
        entries = [Entry(index, item.name, item.row()) for index, item in enumerate(self.items)]
        return shards_of(self._layout.form, entries, size=self._layout.shard)

    def _there(self, names: Iterable[str]) -> set[str]:
        """Which of these images are there, as files or in a shard."""
        asked = set(names)
        return self.store.there(asked) | asked.intersection(name for shard in self._packed.values() for name in shard)

    def _write_metadata(self) -> None:
        """The rows of the images that are there, in the order of the lines; shards have their own."""
        if self._layout.form is None:
            there = self.store.there(item.name for item in self.items)
            rows = (item.row() + "\n" for item in self.items if item.name in there)
            self.store.write(METADATA, "".join(rows).encode())


class _Packing:
    """Which shards have all their images by now."""

    def __init__(
        self,
        shards: Sequence[Shard],
        jobs: Sequence[Job],
        pack: Callable[[Shard], None],
        *,
        packed: Mapping[str, Sequence[str]],
    ) -> None:
        self._pack = pack
        self._failed: set[str] = set()
        missing = {name for job in jobs for name in job.wanted}
        self._open = {shard.name: shard for shard in shards if shard.name not in packed}
        self._wants = {
            name: missing.intersection(entry.name for entry in shard.entries) for name, shard in self._open.items()
        }
        self._of = {entry.name: name for name, shard in self._open.items() for entry in shard.entries}
        self._pack_full(list(self._open))

    def add(self, stored: Stored) -> None:
        """Takes note of images that are there now, and of those that never will be."""
        self._failed |= stored.failed.keys()
        touched = {self._of[name] for name in _names(stored) if name in self._of}
        for name in _names(stored):
            if name in self._of and name not in stored.failed:
                self._wants[self._of[name]].discard(name)
        self._pack_full(touched)

    def finish(self) -> None:
        """Packs shards without the images that could not be made."""
        for name, shard in [*self._open.items()]:
            entries = tuple(entry for entry in shard.entries if entry.name not in self._failed)
            if entries:
                self._pack(Shard(name, entries))
            del self._open[name]

    def _pack_full(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            if not self._wants[name]:
                self._pack(self._open.pop(name))


def _names(stored: Stored) -> list[str]:
    return [item.name for item in stored.job.items if item.name in stored.job.wanted]
