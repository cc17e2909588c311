"""What fsspec reaches: S3, Google Cloud Storage, Azure, HDFS, SFTP and others, by addresses such as `s3://bucket/folder`."""

import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from latentrt.environment.requirement import Requirement, check_requirements
from latentrt.errors import EnvironmentLacks, RequestError

FSSPEC = Requirement(extra="remote", packages=("fsspec",))
WHOLE = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "memory")
"""Kinds of storage whose objects appear whole. Elsewhere a file is written beside, and renamed."""

_URL = re.compile(r"(?P<kind>[A-Za-z][\w+.-]+)://(?P<rest>.*)", re.DOTALL)
_LOCAL = ("file", "local")


def is_url(place: str) -> bool:
    """Whether a text is an address, not a path."""
    return _URL.fullmatch(place) is not None


def local_path(place: str) -> Path | None:
    """The folder that an address of this machine's own files names; None for any other."""
    match = _URL.fullmatch(place)
    return Path(match["rest"]) if match is not None and match["kind"].lower() in _LOCAL else None


@dataclass(frozen=True, slots=True)
class RemoteStore:
    """A folder of another storage. It has no locks: two runs with one place make the same files, each whole.

    Args:
        place: its address.
    """

    place: str

    @classmethod
    def open(cls, place: str) -> Self:
        """Looks whether there is such a storage, and asks it for the folder.

        Raises:
            RequestError: another kind of address.
            EnvironmentLacks: fsspec or the package for this kind is missing, or it cannot be reached.
        """
        check_requirements(f"an output such as {place}", [FSSPEC])
        from fsspec import get_filesystem_class

        try:
            get_filesystem_class(place.partition("://")[0])
        except ValueError as error:
            raise RequestError(
                f"output {place}", expected="a folder, or an address that fsspec knows, such as s3://, gs:// or abfs://"
            ) from error
        except ImportError as error:
            raise _needs(place, error) from error
        store = cls(place.rstrip("/"))
        with _reached(place):
            store.exists("bulk.json")
        return store

    def path(self, name: str = "") -> str:
        return f"{self.place}/{name}" if name else self.place

    def exists(self, name: str) -> bool:
        fs = self._fresh()
        return bool(fs.exists(self._at(name)))

    def there(self, names: Iterable[str]) -> set[str]:
        """As `Store` says, with one listing."""
        asked = set(names)
        if not asked:
            return set()
        fs, root = self._fresh(), self._at("")
        found = {str(path)[len(root) :].lstrip("/") for path in fs.find(root)} if fs.exists(root) else set()
        return found & asked

    def beginning(self, prefix: str) -> list[str]:
        fs, root = self._fresh(), self._at("")
        rows = fs.ls(root, detail=False) if fs.exists(root) else []
        names = (str(path).rstrip("/").rpartition("/")[2] for path in rows)
        return sorted(name for name in names if name.startswith(prefix))

    def read(self, name: str) -> bytes:
        return bytes(self._fs().cat_file(self._at(name)))

    def opened(self, name: str) -> AbstractContextManager[BinaryIO]:
        return cast(AbstractContextManager[BinaryIO], self._fs().open(self._at(name), "rb"))

    def write(self, name: str, data: bytes) -> None:
        with _reached(self.path(name)), self._beside(name) as at:
            self._fs().pipe_file(at, data)

    @contextmanager
    def written(self, name: str) -> Iterator[BinaryIO]:
        """As `Store` says; what is written is kept in a file of this machine until then."""
        with tempfile.TemporaryFile() as file:
            yield cast(BinaryIO, file)
            file.seek(0)
            with _reached(self.path(name)), self._beside(name) as at, self._fs().open(at, "wb") as target:
                shutil.copyfileobj(file, target, 1 << 24)

    def remove(self, name: str) -> None:
        fs = self._fresh()
        with _reached(self.path(name)):
            if fs.exists(self._at(name)):
                fs.rm_file(self._at(name))

    def prepare(self, names: Iterable[str]) -> None:
        """As `Store` says. Where objects appear whole, there are no folders, and nothing is left of writes."""
        if self._kind in WHOLE:
            for part in self.beginning(".latentrt-"):
                self.remove(part)
            return
        fs = self._fresh()
        with _reached(self.place):
            for folder in sorted({self._at(name).rpartition("/")[0] for name in names} | {self._at("")}):
                fs.makedirs(folder, exist_ok=True)
                for part in fs.glob(f"{folder}/.latentrt-*.tmp"):
                    fs.rm_file(part)

    def alone(self) -> AbstractContextManager[None]:
        """Nothing can be kept away."""
        return nullcontext()

    @property
    def _kind(self) -> str:
        return self.place.partition("://")[0]

    @contextmanager
    def _beside(self, name: str) -> Iterator[str]:
        """Where to write a file, so that it is there whole or not at all."""
        at = self._at(name)
        if self._kind in WHOLE:
            yield at
            return
        beside = f"{at.rpartition('/')[0]}/.latentrt-{secrets.token_hex(4)}.tmp"
        yield beside
        self._fs().mv(beside, at)

    def _fs(self) -> Any:
        return _filesystem(self.place)[0]

    def _fresh(self) -> Any:
        """The file system, without what it remembers of listings."""
        fs = self._fs()
        fs.invalidate_cache()
        return fs

    def _at(self, name: str) -> str:
        root = _filesystem(self.place)[1].rstrip("/")
        return f"{root}/{name}" if name else root


@cache
def _filesystem(place: str) -> tuple[Any, str]:
    """The file system of an address and the path in it, once a process."""
    from fsspec.core import url_to_fs

    with _reached(place):
        fs, root = url_to_fs(place)
    return fs, str(root)


@contextmanager
def _reached(place: str) -> Iterator[None]:
    """Turns what a storage refuses into one of our errors."""
    try:
        yield
    except ImportError as error:
        raise _needs(place, error) from error
    except (OSError, ValueError) as error:
        raise EnvironmentLacks(
            f"{place} cannot be reached ({type(error).__name__}: {error})",
            expected="a storage that may be read and written from here",
            hint="check the address and the credentials, in the form that the package of this kind of storage reads",
        ) from error


def _needs(place: str, error: ImportError) -> EnvironmentLacks:
    return EnvironmentLacks(
        f"{place} needs a package that is not installed ({error})", hint="install what is named there"
    )
