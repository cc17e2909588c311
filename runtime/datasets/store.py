"""Where a dataset lies: a local folder, or what fsspec reaches. A file is there whole or not at all."""

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from latentrt.concurrency.locks import lock_folder
from latentrt.datasets.remote_store import RemoteStore, is_url, local_path
from latentrt.files.atomic import remove_parts, storage_errors, write_whole, written_beside


class Store(Protocol):
    """Files by names relative to one place, with forward slashes. It can be sent to another process."""

    def path(self, name: str = "") -> str:
        """A file, or the place itself, as users write it."""

    def exists(self, name: str) -> bool:
        """Whether a file is there."""

    def there(self, names: Iterable[str]) -> set[str]:
        """Which of these files are there."""

    def beginning(self, prefix: str) -> list[str]:
        """Files at the place itself, not within its folders, whose names begin so, in order."""

    def read(self, name: str) -> bytes:
        """What a file holds.

        Raises:
            OSError: FileNotFoundError or NotADirectoryError where it is missing.
        """

    def opened(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to read from, at any position."""

    def write(self, name: str, data: bytes) -> None:
        """Stores a file.

        Raises:
            EnvironmentLacks: it cannot be stored.
        """

    def written(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write to, which is there when the block has ended without an exception.

        Raises:
            EnvironmentLacks: it cannot be stored.
        """

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""

    def prepare(self, names: Iterable[str]) -> None:
        """Makes the folders that these files go to, without what a killed process left there.

        Raises:
            EnvironmentLacks: they cannot be written to.
        """

    def alone(self) -> AbstractContextManager[None]:
        """Keeps other processes from the place meanwhile, where it has locks.

        Raises:
            InUseError: another one is at it.
        """


def open_store(place: str | Path) -> Store:
    """The store at a path, or at an address such as `s3://bucket/folder`.

    Raises:
        RequestError: an address of a kind that is not known.
        EnvironmentLacks: a package that it needs is not installed, or it cannot be reached.
    """
    if isinstance(place, str) and is_url(place):
        path = local_path(place)
        return RemoteStore.open(place) if path is None else LocalStore(path)
    return LocalStore(Path(place))


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder of this machine, or one that is mounted here."""

    folder: Path

    def path(self, name: str = "") -> str:
        return str(self.folder / name)

    def exists(self, name: str) -> bool:
        return (self.folder / name).exists()

    def there(self, names: Iterable[str]) -> set[str]:
        return {name for name in names if (self.folder / name).exists()}

    def beginning(self, prefix: str) -> list[str]:
        if not self.folder.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(self.folder) if entry.name.startswith(prefix))

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def opened(self, name: str) -> io.BufferedReader:
        return (self.folder / name).open("rb")

    def write(self, name: str, data: bytes) -> None:
        write_whole(self.folder / name, data)

    @contextmanager
    def written(self, name: str) -> Iterator[BinaryIO]:
        path = self.folder / name
        with storage_errors(path), written_beside(path) as beside, beside.open("wb") as file:
            yield file

    def remove(self, name: str) -> None:
        with storage_errors(self.folder):
            (self.folder / name).unlink(missing_ok=True)

    def prepare(self, names: Iterable[str]) -> None:
        with storage_errors(self.folder):
            for folder in {(self.folder / name).parent for name in names} | {self.folder}:
                folder.mkdir(parents=True, exist_ok=True)
                remove_parts(folder)

    def alone(self) -> AbstractContextManager[None]:
        return lock_folder(self.folder)
