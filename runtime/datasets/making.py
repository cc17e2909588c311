"""Batches of images that are made and stored, by whichever process is at it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from latentrt.datasets.items import Item
from latentrt.datasets.shards import Shard, write_shard
from latentrt.datasets.store import Store
from latentrt.errors import BackendError, LatentRTError
from latentrt.output.png import check_pixels, encode_png
from latentrt.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Job:
    """A batch, and what of it is to be stored.

    Args:
        items: that make the batch. What is in it may change an image by one level of 255; so a batch that a kill has
            cut in two is run again as it was, for the same bytes.
        wanted: names of those that are not there yet.
    """

    items: tuple[Item, ...]
    wanted: frozenset[str]


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a job: why images that it wanted could not be made, by name; the others are there."""

    job: Job
    failed: Mapping[str, LatentRTError]


class Workers(Protocol):
    """Who makes the images: this process, or many."""

    def make(self, jobs: Sequence[Job]) -> Iterator[Stored]:
        """Does every job, in any order, and says of each when its images are there.

        Raises:
            BackendError, EnvironmentLacks: as `Pipeline.run`, and for images that cannot be stored.
        """

    def pack(self, shard: Shard) -> None:
        """Puts images that are there into a shard, now or by the end of `settle`."""

    def settle(self) -> None:
        """Waits for what has been begun."""


@dataclass(frozen=True, slots=True)
class MakingOptions:
    """How images are made.

    Args:
        skip_failures: an image that the backend cannot make is reported and left out, instead of raised.
        parameters: whether a PNG says how it was made.
    """

    skip_failures: bool = False
    parameters: bool = True


@dataclass(frozen=True, slots=True)
class OwnProcess:
    """This process makes the images, one batch after the other."""

    pipe: Pipeline
    store: Store
    options: MakingOptions

    def make(self, jobs: Sequence[Job]) -> Iterator[Stored]:
        for job in jobs:
            yield Stored(job, make_job(self.pipe, job, self.store, self.options))

    def pack(self, shard: Shard) -> None:
        """As `Workers` says, now."""
        write_shard(self.store, shard)

    def settle(self) -> None:
        """There is nothing to wait for."""


def make_job(pipe: Pipeline, job: Job, store: Store, options: MakingOptions) -> dict[str, LatentRTError]:
    """Stores the wanted images of a job; why others failed, which are tried one by one.

    Raises:
        BackendError: the backend failed, unless failures are skipped.
        EnvironmentLacks: an image cannot be stored.
    """
    try:
        made = pipe.run(*(item.request for item in job.items))
    except BackendError as error:
        if not options.skip_failures:
            raise
        if len(job.items) == 1:
            return {job.items[0].name: error}
        single = (replace(job, items=(item,)) for item in job.items if item.name in job.wanted)
        alone = (make_job(pipe, each, store, options) for each in single)
        return {name: why for failed in alone for name, why in failed.items()}
    texts = made.parameters() if options.parameters else [None] * len(job.items)
    for item, image, text in zip(job.items, made.images, texts, strict=True):
        if item.name in job.wanted:
            check_pixels(image)
            store.write(item.name, encode_png(image, text))
    return {}
