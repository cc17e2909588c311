"""A file of many requests: one JSON object a line, or plain text, a prompt a line (docs/bulk.md)."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from latentrt.datasets.option_parsing import control_from, guidance_from, skip_layers_from, start_from, upscale_from
from latentrt.errors import LatentRTError, RequestError
from latentrt.images.start import SIDE, STRENGTH
from latentrt.images.upscale import FACTOR, SPACES
from latentrt.request import GUIDANCE, LAYERS, REQUEST, SCALE, SKIP_LAYERS, Request
from latentrt.values import FilePath, Fractions, Kind, Listed, OneOf, Text, shown

NAME_BYTES = 200  # file systems take 255
OWN_COLUMNS = ("file_name", "image")  # of the image-folder convention, besides the request's


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is right by itself.

    Args:
        number: of the line in its file, from 1.
        request: what it asks for, on top of the defaults.
        names: of its images, relative to the folder that they go to.
        extra: columns of the caller's own, for the metadata.
    """

    number: int
    request: Request
    names: tuple[str, ...]
    extra: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot be used, and why."""

    number: int
    error: LatentRTError

    def __str__(self) -> str:
        return f"line {self.number}: {self.error}"


def read_lines(texts: Iterable[str], *, defaults: Request, root: Path) -> tuple[list[Line], list[BadLine]]:
    """Reads lines; empty ones are passed over. A line that begins with `{` is JSON, any other is a prompt.

    Args:
        defaults: what a line leaves out; its prompt and its seed are not used.
        root: what paths of photos and masks are relative to.
    """
    lines: list[Line] = []
    bad: list[BadLine] = []
    taken: dict[str, int] = {}
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = _line(number, text.strip(), defaults, root)
            for name in line.names:
                if name in taken:
                    raise RequestError(f"file_name '{name}' is that of line {taken[name]}", expected="another name")
        except LatentRTError as error:
            bad.append(BadLine(number, error))
            continue
        taken |= dict.fromkeys(line.names, number)
        lines.append(line)
    return lines, bad


def _line(number: int, text: str, defaults: Request, root: Path) -> Line:
    row = _row(text)
    name, extra = row.pop("file_name", f"{number:06d}.png"), _extra(row.pop("metadata", {}))
    if unknown := row.keys() - _KEYS.keys():
        raise RequestError(
            f"unknown key '{min(unknown)}'",
            expected=f"one of {', '.join(sorted(_KEYS))}, file_name, metadata",
            hint="keys of your own go into metadata",
        )
    given = {key: _value(key, value) for key, value in row.items() if value is not None}
    if "prompt" not in given:
        raise RequestError("no prompt", expected="a text")
    fields = {key: value for key, value in given.items() if key in _FIELDS}
    photos = {key: str(root / given[key]) for key in ("image", "mask") if given.get(key, "alpha") != "alpha"}
    if given.keys() & {"image", "mask", "margin", "feather", "outpaint", "overlap", "strength"}:
        fields["start"] = start_from({**given, **photos})
    if any(key.startswith("upscale") for key in given):
        fields["upscale"] = upscale_from(given)
    if given.keys() & {"guidance", "guidance_interval", "rescale"}:
        fields["guidance"] = guidance_from(given, defaults.guidance)
    if any(key.startswith("skip_") for key in given):
        fields["skip_layers"] = skip_layers_from(given, defaults.skipping)
    if "control" in given:
        fields["control"] = tuple(control_from(text, root=root) for text in given["control"])
    request = replace(defaults, **{"seed": None, **fields})
    return Line(number, request, _names(name, request.images), extra)


def _row(text: str) -> dict[str, Any]:
    if not text.startswith("{"):
        return {"prompt": text}
    try:
        row = json.loads(text, parse_constant=_no_constant)
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not JSON ({error})", expected="an object a line, or a prompt") from error
    return dict(row)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _extra(extra: Any) -> Mapping[str, Any]:
    if not isinstance(extra, dict):
        raise RequestError(f"metadata is {extra!r}", expected="an object")
    if ours := extra.keys() & {*REQUEST, *OWN_COLUMNS}:
        raise RequestError(f"metadata has the key '{min(ours)}'", expected="keys that the request does not have")
    return extra


def _names(name: Any, images: int) -> tuple[str, ...]:
    path = PurePosixPath(name) if isinstance(name, str) and name.isprintable() and "\\" not in name else None
    if (
        path is None
        or path.suffix.lower() != ".png"
        or path.is_absolute()
        or ".." in path.parts
        or max(len(part.encode()) for part in path.parts) > NAME_BYTES
    ):
        raise RequestError(f"file_name is {name!r}", expected="the name of a PNG file within the folder")
    if images == 1:
        return (str(path),)
    return tuple(str(path.with_name(f"{path.stem}-{image}{path.suffix}")) for image in range(images))


def _value(key: str, value: Any) -> Any:
    kind = _KEYS[key]
    if isinstance(kind, Listed | Fractions) and not isinstance(value, list):
        raise RequestError(f"{key} is {shown(value)}", expected="a list")
    return kind.read(key, value)


_OBJECTS = ("start", "control", "upscale", "guidance", "skip_layers")
_FIELDS: dict[str, Kind] = {name: kind for name, kind in REQUEST.items() if name not in _OBJECTS} | dict.fromkeys(
    ("prompt", "negative"), Text()
)
_TASKS: dict[str, Kind] = {
    "guidance": SCALE,
    "guidance_interval": GUIDANCE["interval"],
    "rescale": GUIDANCE["rescale"],
    "skip_layers": LAYERS,
    "skip_guidance": SKIP_LAYERS["scale"],
    "skip_range": SKIP_LAYERS["range"],
    "image": FilePath(),
    "mask": FilePath(),
    "margin": SIDE,
    "feather": SIDE,
    "overlap": SIDE,
    "outpaint": Listed(SIDE, "whole numbers", least=4, most=4),
    "strength": STRENGTH,
    "control": Listed(Text(), "texts"),
    "upscale": FACTOR,
    "upscale_strength": STRENGTH,
    "upscale_space": OneOf(SPACES),
}
_KEYS = {**_FIELDS, **_TASKS}
