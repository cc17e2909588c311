"""Images in shards instead of a file each: Parquet and WebDataset."""

import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, BinaryIO

from latentrt.datasets.store import Store
from latentrt.environment.requirement import Requirement, check_requirements
from latentrt.errors import RequestError

PREFIX = "images-"
_SHARD = re.compile(PREFIX + r"\d{6,}\.(parquet|tar)")
ROW_GROUP = 64  # images that are in memory at a time


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of a shard.

    Args:
        index: its place among all images.
        name: of its file in an image folder.
        row: everything about it, as JSON.
    """

    index: int
    name: str
    row: str


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of many images.

    Args:
        name: of the file.
        entries: the images, in order.
    """

    name: str
    entries: tuple[Entry, ...]


Images = Iterator[tuple[Entry, bytes]]


@dataclass(frozen=True, slots=True)
class Form:
    """How a dataset is stored.

    Args:
        name: as users write it.
        suffix: of a shard's file.
        write: images to such a file.
        read: names and PNG files of such a file, in order.
        names: names alone.
        requirement: what must be installed.
    """

    name: str
    _: KW_ONLY
    suffix: str
    write: Callable[[BinaryIO, Images], None]
    read: Callable[[BinaryIO], Iterator[tuple[str, bytes]]]
    names: Callable[[BinaryIO], list[str]]
    requirement: Requirement

    def shard_name(self, number: int) -> str:
        return f"{PREFIX}{number:06d}{self.suffix}"

    def check_installed(self) -> None:
        """Raises EnvironmentLacks where its library is not installed."""
        check_requirements(f"--format {self.name}", [self.requirement])


def write_shard(store: Store, shard: Shard) -> None:
    """Puts images that are there as files of their own into a shard, which then takes their place. If a process that
    did it was killed when the shard was there, another one can go on.

    Raises:
        EnvironmentLacks: it cannot be stored.
    """
    form = form_of(shard.name)
    if not store.exists(shard.name):
        with store.written(shard.name) as file:
            form.write(file, ((entry, store.read(entry.name)) for entry in shard.entries))
    for entry in shard.entries:
        store.remove(entry.name)


def shard_contents(store: Store) -> dict[str, tuple[str, ...]]:
    """The names of the images in each shard that is there.

    Raises:
        RequestError: a file that is called like a shard and is none.
    """
    found = {}
    for name in store.beginning(PREFIX):
        if _SHARD.fullmatch(name):
            form_of(name).check_installed()
            with _readable(store, name), store.opened(name) as file:
                found[name] = tuple(form_of(name).names(file))
    return found


def unpack_shard(store: Store, shard: str, wanted: set[str]) -> None:
    """Makes files of those images of a shard that are wanted, and removes it."""
    with _readable(store, shard), store.opened(shard) as file:
        for name, image in form_of(shard).read(file):
            if name in wanted:
                store.write(name, image)
    store.remove(shard)


def form_of(shard: str) -> Form:
    """How a shard of this name is stored."""
    return next(form for form in FORMS.values() if shard.endswith(form.suffix))


@contextmanager
def _readable(store: Store, name: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, ValueError, KeyError, StopIteration) as error:  # what pyarrow raises is a ValueError
        raise RequestError(
            f"{store.path(name)} cannot be read ({error})", expected="a shard that an earlier run wrote"
        ) from error


def _schema() -> Any:
    """The columns, with the note by which the library `datasets` knows that one holds pictures."""
    import pyarrow as pa

    columns = {
        "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        "file_name": pa.string(),
        "prompt": pa.string(),
        "seed": pa.uint64(),
        "metadata": pa.string(),
    }
    values = {"prompt": "string", "file_name": "string", "seed": "uint64", "metadata": "string"}
    features: Mapping[str, Any] = {
        name: {"dtype": values[name], "_type": "Value"} if name in values else {"_type": "Image"} for name in columns
    }
    note = json.dumps({"info": {"features": features}})
    return pa.schema(list(columns.items()), metadata={"huggingface": note})


def _write_parquet(file: BinaryIO, images: Images) -> None:
    """A row an image; `metadata` is all about it as JSON, so that every shard has the same columns."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema()
    # Pixels are compressed already, so are most bytes of a shard.
    with parquet.ParquetWriter(file, schema, compression="none") as writer:
        for rows in _grouped(images):
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))


def _grouped(images: Images) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    for entry, image in images:
        about = json.loads(entry.row)
        picture = {"bytes": image, "path": entry.name}
        known = {name: about[name] for name in ("file_name", "prompt", "seed")}
        rows.append({"image": picture, **known, "metadata": entry.row})
        if len(rows) == ROW_GROUP:
            yield rows
            rows = []
    if rows:
        yield rows


def _read_parquet(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    from pyarrow import parquet

    for batch in parquet.ParquetFile(file).iter_batches(batch_size=ROW_GROUP, columns=["file_name", "image"]):
        for row in batch.to_pylist():
            yield row["file_name"], row["image"]["bytes"]


def _parquet_names(file: BinaryIO) -> list[str]:
    from pyarrow import parquet

    names: list[str] = parquet.ParquetFile(file).read(columns=["file_name"])["file_name"].to_pylist()
    return names


def _write_tar(file: BinaryIO, images: Images) -> None:
    """Each image as KEY.png with KEY.json and KEY.txt, the prompt. Keys are numbers: a name may hold dots, at which
    readers of such files divide it."""
    from webdataset.writer import TarWriter

    writer = TarWriter(file, encoder=False, mtime=0, compress=False)
    for entry, image in images:
        prompt = json.loads(entry.row)["prompt"].encode()
        key = f"{entry.index:09d}"
        writer.write({"__key__": key, "png": image, "json": entry.row.encode(), "txt": prompt})
    writer.close()


def _read_tar(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        name = ""
        for member in tar:  # of a sample, .json comes before .png
            if member.name.endswith(".json"):
                name = _name(tar, member)
            elif member.name.endswith(".png"):
                yield name, _data(tar, member)


def _tar_names(file: BinaryIO) -> list[str]:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        return [_name(tar, member) for member in tar if member.name.endswith(".json")]


def _name(tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    return str(json.loads(_data(tar, member))["file_name"])


def _data(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    inner = tar.extractfile(member)
    return b"" if inner is None else inner.read()


FORMS = {
    form.name: form
    for form in (
        Form(
            "parquet",
            suffix=".parquet",
            write=_write_parquet,
            read=_read_parquet,
            names=_parquet_names,
            requirement=Requirement(extra="shards", packages=("pyarrow",)),
        ),
        Form(
            "webdataset",
            suffix=".tar",
            write=_write_tar,
            read=_read_tar,
            names=_tar_names,
            requirement=Requirement(extra="shards", packages=("webdataset",)),
        ),
    )
}
"""Ways to store a dataset besides an image folder, by name."""


def shards_of(form: Form, entries: Sequence[Entry], *, size: int) -> list[Shard]:
    """All shards of a dataset, `size` images each, the last one what remains."""
    return [
        Shard(form.shard_name(number), tuple(entries[at : at + size]))
        for number, at in enumerate(range(0, len(entries), size))
    ]
