"""Many requests to a folder of images and one `metadata.jsonl`: batched, and resumed after a kill (docs/bulk.md).

A folder knows from `bulk.json` which settings each image is of, so that an image that is there is never made
again, and one of other settings is never taken for it. The seeds of lines that have none are decided there too.
"""

import secrets
from collections.abc import Generator, Sequence
from pathlib import Path

from latentrt.datasets.items import Item, plan_items
from latentrt.datasets.making import MakingOptions, OwnProcess
from latentrt.datasets.request_file import BadLine, Line
from latentrt.datasets.state import State
from latentrt.datasets.store import Store, open_store
from latentrt.datasets.target import BatchWritten, Layout, Target
from latentrt.pipeline import Pipeline

IMAGE_FOLDER = Layout()


class Dataset:
    """A folder of images in the making.

    Args:
        pipe: makes the images.
        lines: what to make; photos that they start from are files.
        folder: is made if it is missing; or an address that fsspec knows, such as `s3://bucket/folder`.
        seed: image k of line n, where the line has no seed, has `seed` + 4096 * (n - 1) + k. None: that of the run
            that began the folder, or drawn.
        overwrite: images that `bulk.json` lists with other settings are replaced, instead of refused.
        layout: images as files, or in shards.

    Attributes:
        bad: lines that this bundle cannot serve. Nothing is made of them.

    Raises:
        EnvironmentLacks: the folder cannot be written to.
        RequestError: images of other settings are there, or files that this does not know.
    """

    def __init__(
        self,
        pipe: Pipeline,
        lines: Sequence[Line],
        folder: Path | str,
        *,
        seed: int | None = None,
        overwrite: bool = False,
        layout: Layout = IMAGE_FOLDER,
    ) -> None:
        self._pipe = pipe
        store = open_store(folder)
        planned = plan_items(pipe, lines, seed=first_seed(store, seed))
        self.bad: tuple[BadLine, ...] = planned.bad
        self._target = Target(planned, store, layout=layout, overwrite=overwrite)

    @property
    def backend(self) -> str:
        """What makes the images."""
        return self._pipe.backend

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
        """Makes what is missing, as many at a time as may share a batch. The metadata is written at the end, or when
        the loop is left. A killed run leaves whole images only, and the next one goes on from them. Other processes are
        kept from the folder meanwhile.

        Args:
            batch: the most images at a time; fewer where the pipeline's memory does not last for them.
            skip_failures: an image that the backend cannot make is reported and left out, instead of raised.
            parameters: whether a PNG says how it was made.

        Raises:
            BackendError, EnvironmentLacks: as `Pipeline.run`, and for images that cannot be written.
            InUseError: another process makes images in the folder.
            RequestError: one has begun the folder with other settings or lines since this object was made.
        """
        options = MakingOptions(skip_failures=skip_failures, parameters=parameters)
        workers = OwnProcess(self._pipe, self._target.store, options)
        return self._target.make(workers, batch=lambda item: self._pipe.images_at_a_time(item.request, most=batch))


def first_seed(store: Store, asked: int | None) -> int:
    """What seeds are counted from: what is asked for, or that of the run that began the folder, or drawn."""
    if asked is not None:
        return asked
    state = State.read(store)
    return state.seed if state is not None else secrets.randbelow(1 << 32)
