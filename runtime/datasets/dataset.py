"""Many requests to a folder of images and one `metadata.jsonl`: batched, and resumed after a kill (docs/bulk.md).

A folder knows from `bulk.json` which settings each image is of, so that an image that is there is never made
again, and one of other settings is never taken for it. The seeds of lines that have none are decided there too.
"""

import hashlib
import json
import secrets
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from latentrt.bundle import sha256_file
from latentrt.concurrency.locks import lock_folder
from latentrt.datasets.batches import batches, image_requests, work
from latentrt.datasets.option_parsing import describe_start
from latentrt.datasets.request_file import BadLine, Line
from latentrt.denoise.batch import Plan
from latentrt.errors import BackendError, LatentRTError, RequestError
from latentrt.files.atomic import remove_parts, storage_errors, write_whole
from latentrt.images.start import TEXT
from latentrt.lora import lora_sha256
from latentrt.output.png import write_png
from latentrt.pipeline import Pipeline
from latentrt.request import MOST_IMAGES, Request
from latentrt.text.prompt_syntax import Text

STATE = "bulk.json"
METADATA = "metadata.jsonl"


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be.

    Args:
        request: of this image alone, with every default and the seed filled in.
        extra: columns of the caller's own.
        work: images of equal work can share a batch without changing each other, and none waits for another.
    """

    name: str
    request: Request
    extra: Mapping[str, Any]
    work: tuple[Any, ...]

    def settings(self) -> dict[str, Any]:
        """The request as JSON values, without what is as `Request` has it by itself."""
        values = ((field, getattr(self.request, field.name)) for field in fields(Request))
        row = {field.name: value for field, value in values if value is not None and value != field.default}
        if self.request.size is not None:
            row["size"] = "{}x{}".format(*self.request.size)
        if self.request.start != TEXT:
            row["start"] = describe_start(self.request.start)
        if self.request.control:
            row["control"] = [asdict(control) for control in self.request.control]
        if self.request.upscale is not None:
            row["upscale"] = asdict(self.request.upscale)
        return row

    def digest(self) -> str:
        """Of everything that decides the picture, the bundle apart; of photos, what they hold."""
        row = self.settings()
        if self.request.output != "image":
            raise RequestError(f"output '{self.request.output}'", expected="image")
        start = row.get("start", {})
        for key in start.keys() & {"photo", "mask"}:
            if start[key] is not None:
                start[key] = _file_digest(start[key])
        for control in row.get("control", []):
            control["image"] = _file_digest(control["image"])
        if "x" in start:
            raise RequestError("a start from a latent", expected="a photo, or text alone")
        return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class BatchWritten:
    """A batch that has just been written: how many of `total` images are there now, the names of the new ones, and
    why others of the batch could not be made."""

    done: int
    total: int
    names: tuple[str, ...]
    failed: Mapping[str, LatentRTError]


class Dataset:
    """A folder of images in the making.

    Args:
        lines: what to make; photos that they start from are files.
        folder: is made if it is missing.
        seed: image k of line n, where the line has no seed, has `seed` + 4096 * (n - 1) + k. None: that of the run
            that began the folder, or drawn.
        overwrite: images that `bulk.json` lists with other settings are replaced, instead of refused.

    Attributes:
        items: the images, in the order of the lines.
        bad: lines that this bundle cannot serve. Nothing is made of them.

    Raises:
        EnvironmentLacks: the folder cannot be written to.
        RequestError: images of other settings are there, or files that this does not know.
    """

    def __init__(
        self,
        pipe: Pipeline,
        lines: Sequence[Line],
        folder: Path,
        *,
        seed: int | None = None,
        overwrite: bool = False,
    ) -> None:
        self._pipe = pipe
        self._folder = folder
        self._overwrite = overwrite
        state = _State.read(folder)
        if seed is None:
            seed = state.seed if state is not None else secrets.randbelow(1 << 32)
        self.items, digests, self.bad = self._planned(lines, seed)
        self._state = _State(_weights_digest(pipe), seed, digests)
        self._others = self._found_others(state)

    @property
    def missing(self) -> list[Item]:
        """Images that are still to be made, in the order of the lines."""
        return [item for item in self.items if item.name in self._others or not (self._folder / item.name).is_file()]

    def make(
        self, *, batch: int = 4, skip_failures: bool = False, parameters: bool = True
    ) -> Generator[BatchWritten, None, None]:
        """Makes what is missing, as many at a time as may share a batch. The metadata is written at the end, or when
        the loop is left. A killed run leaves whole images only, and the next one goes on from them. Other processes are
        kept from the folder meanwhile.

        Args:
            skip_failures: an image that the backend cannot make is reported and left out, instead of raised.
            parameters: whether a PNG says how it was made.

        Raises:
            BackendError, EnvironmentLacks: as `Pipeline.run`, and for images that cannot be written.
            InUseError: another process makes images in the folder.
            RequestError: one has begun the folder with other settings or lines since this object was made.
        """
        with lock_folder(self._folder):
            self._others = self._found_others(_State.read(self._folder))
            self._begin()
            missing = self.missing
            done = len(self.items) - len(missing)
            try:
                for part in batches(missing, batch, key=lambda item: item.work):
                    failed = self._make_batch(part, skip_failures=skip_failures, parameters=parameters)
                    names = tuple(item.name for item in part if item.name not in failed)
                    done += len(names)
                    yield BatchWritten(done, len(self.items), names, failed)
            finally:
                self._write_metadata()

    def _begin(self) -> None:
        """Removes what is to be replaced, and only then says what the folder holds."""
        with storage_errors(self._folder):
            folders = {(self._folder / name).parent for name in self._state.images} | {self._folder}
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
                remove_parts(folder)
            if self._others:
                (self._folder / METADATA).unlink(missing_ok=True)
            for name in self._others:
                (self._folder / name).unlink(missing_ok=True)
            self._others = frozenset()
        self._state.write(self._folder)

    def _write_metadata(self) -> None:
        """The rows of the images that are there, in the order of the lines."""
        rows = (
            json.dumps({"file_name": item.name, **item.settings(), **item.extra}, ensure_ascii=False) + "\n"
            for item in self.items
            if (self._folder / item.name).is_file()
        )
        write_whole(self._folder / METADATA, "".join(rows).encode())

    def _make_batch(self, items: Sequence[Item], *, skip_failures: bool, parameters: bool) -> dict[str, LatentRTError]:
        """Writes the images of a batch; why others failed, which are tried one by one."""
        try:
            made = self._pipe.run(*(item.request for item in items))
        except BackendError as error:
            if not skip_failures:
                raise
            if len(items) == 1:
                return {items[0].name: error}
            alone = (self._make_batch([item], skip_failures=True, parameters=parameters) for item in items)
            return {name: why for failed in alone for name, why in failed.items()}
        texts = made.parameters() if parameters else [None] * len(items)
        for item, image, text in zip(items, made.images, texts, strict=True):
            write_png(self._folder / item.name, image, parameters=text)
        return {}

    def _planned(self, lines: Sequence[Line], seed: int) -> tuple[list[Item], dict[str, str], tuple[BadLine, ...]]:
        """Every image with its defaults and its seed, which depends on no other line; and the digest of each."""
        items: list[Item] = []
        digests: dict[str, str] = {}
        bad: list[BadLine] = []
        texts: list[Sequence[Text]] = []
        for line in lines:
            try:
                plan = self._plan(line, seed + MOST_IMAGES * (line.number - 1))
                texts += plan.texts
                own = self._items(line, plan)
                digests |= {item.name: item.digest() for item in own}
                items += own
            except LatentRTError as error:
                bad.append(BadLine(line.number, error))
        self._pipe.conditioner.notice(texts)
        return items, digests, tuple(bad)

    def _plan(self, line: Line, seed: int) -> Plan:
        request = line.request if line.request.seed is not None else replace(line.request, seed=seed)
        return self._pipe.plan([request])

    def _items(self, line: Line, plan: Plan) -> list[Item]:
        kind = work(self._pipe, plan)
        return [Item(*pair, line.extra, kind) for pair in zip(line.names, image_requests(plan), strict=True)]

    def _found_others(self, before: "_State | None") -> frozenset[str]:
        """Images in the folder that are not those to be made, if they may be replaced."""
        listed: Mapping[str, str] = {} if before is None else before.images
        known = listed if before is not None and before.weights == self._state.weights else {}
        wanted = self._state.images
        names = [name for name in {**listed, **wanted} if not (name in wanted and known.get(name) == wanted[name])]
        others = [name for name in names if (self._folder / name).exists()]
        strangers = [name for name in others if name not in listed]
        if strangers:
            raise RequestError(
                f"{self._folder / strangers[0]} is there, of unknown origin ({len(strangers)} such images)",
                expected="a folder that an earlier run began, or a new one",
            )
        if others and not self._overwrite:
            raise RequestError(
                f"{self._folder / others[0]} is of other settings or another bundle ({len(others)} such images)",
                expected="the settings and the lines that the folder was begun with, or more lines",
                hint="choose another folder, or replace these images with --overwrite",
            )
        return frozenset(others)


@dataclass(frozen=True, slots=True)
class _State:
    """What `bulk.json` holds: a digest of the weights, the seed, and a digest of each image's settings."""

    weights: str
    seed: int
    images: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> "_State | None":
        path = folder / STATE
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            return cls(str(state["weights"]), int(state["seed"]), dict(state["images"]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RequestError(
                f"{path} cannot be read ({error})", expected="what an earlier run wrote", hint="choose another folder"
            ) from error

    def write(self, folder: Path) -> None:
        write_whole(folder / STATE, json.dumps(asdict(self), indent=1).encode())


def _weights_digest(pipe: Pipeline) -> str:
    lora = [(lora_sha256(Path(lora.path)), lora.scale) for lora in pipe.lora]
    embeddings = {name: embedding.sha256 for name, embedding in pipe.conditioner.embeddings.items()}
    weights = [pipe.bundle.manifest.get("files"), lora, embeddings]
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Any) -> str:
    try:
        return sha256_file(Path(path))
    except (OSError, TypeError) as error:
        raise RequestError(f"no file {path!r:.80} ({error})", expected="the path of a file") from error
