"""Lines of a file of prompts to the images that they ask for, each a request of its own with a digest."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from latentrt.bundle import sha256_file
from latentrt.datasets.batches import image_requests, work
from latentrt.datasets.option_parsing import describe_start
from latentrt.datasets.request_file import BadLine, Line
from latentrt.denoise.batch import Plan
from latentrt.errors import LatentRTError, RequestError
from latentrt.images.start import TEXT
from latentrt.lora import lora_sha256
from latentrt.pipeline import Pipeline
from latentrt.request import MOST_IMAGES, Request
from latentrt.text.prompt_syntax import Text


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be.

    Args:
        name: of the file within the folder.
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

    def row(self) -> str:
        """Everything about the image as a JSON object, a line of `metadata.jsonl`."""
        return json.dumps({"file_name": self.name, **self.settings(), **self.extra}, ensure_ascii=False)

    def digest(self) -> str:
        """Of everything that decides the picture, the bundle apart; of photos, what they hold.

        Raises:
            RequestError: a start value that no file holds.
        """
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
class Planned:
    """What a file of prompts becomes with a bundle.

    Args:
        items: every image, in the order of the lines.
        digests: of their settings, by name.
        bad: lines that the bundle cannot serve. Nothing is made of them.
        weights: a digest of the bundle's files, LoRAs and embeddings.
        seed: what the seeds of lines that have none were counted from.
    """

    items: tuple[Item, ...]
    digests: Mapping[str, str]
    bad: tuple[BadLine, ...]
    weights: str
    seed: int


def plan_items(pipe: Pipeline, lines: Sequence[Line], *, seed: int) -> Planned:
    """Every image with its defaults and its seed, which depends on no other line.

    Args:
        pipe: plans, and makes nothing.
        lines: what to make; photos that they start from are files.
        seed: image k of line n, where the line has no seed, has `seed` + 4096 * (n - 1) + k.
    """
    items: list[Item] = []
    digests: dict[str, str] = {}
    bad: list[BadLine] = []
    texts: list[Sequence[Text]] = []
    for line in lines:
        try:
            plan = _plan(pipe, line, seed + MOST_IMAGES * (line.number - 1))
            texts += plan.texts
            own = _items(pipe, line, plan)
            digests |= {item.name: item.digest() for item in own}
            items += own
        except LatentRTError as error:
            bad.append(BadLine(line.number, error))
    pipe.conditioner.notice(texts)
    return Planned(tuple(items), digests, tuple(bad), weights_digest(pipe), seed)


def weights_digest(pipe: Pipeline) -> str:
    """Of everything beside the requests that decides pictures: the bundle's files, LoRAs and embeddings."""
    lora = [(lora_sha256(Path(lora.path)), lora.scale) for lora in pipe.lora]
    embeddings = {name: embedding.sha256 for name, embedding in pipe.conditioner.embeddings.items()}
    weights = [pipe.bundle.manifest.get("files"), lora, embeddings]
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()


def _plan(pipe: Pipeline, line: Line, seed: int) -> Plan:
    request = line.request if line.request.seed is not None else replace(line.request, seed=seed)
    return pipe.plan([request])


def _items(pipe: Pipeline, line: Line, plan: Plan) -> list[Item]:
    kind = work(pipe, plan)
    return [Item(*pair, line.extra, kind) for pair in zip(line.names, image_requests(plan), strict=True)]


def _file_digest(path: Any) -> str:
    try:
        return sha256_file(Path(path))
    except (OSError, TypeError) as error:
        raise RequestError(f"no file {path!r:.80} ({error})", expected="the path of a file") from error
