"""A file of many requests: one JSON object a line, or plain text, a prompt a line (docs/bulk.md)."""

import json
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Union, get_args, get_origin, get_type_hints

from latentrt.errors import LatentRTError, RequestError
from latentrt.request import Prompts, Request
from latentrt.tasks import control_from, start_from, upscale_from

MOST_IMAGES = 4096  # of one line
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


@dataclass(frozen=True, slots=True)
class _Form:
    """What a key takes: one value of a type, or a list of so many of them (0: any number)."""

    kind: type
    listed: bool = False
    count: int = 0

    def __str__(self) -> str:
        one, many = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers")}.get(
            self.kind, ("a text", "texts")
        )
        return f"a list of {self.count} {many}" if self.count else f"a list of {many}" if self.listed else one

    def read(self, key: str, value: Any) -> Any:
        """The value as the request takes it."""
        if self.listed and isinstance(value, list) and len(value) == (self.count or len(value)):
            return tuple(self._one(key, entry, value) for entry in value)
        return self._one(key, value if not self.listed else None, value)

    def _one(self, key: str, entry: Any, value: Any) -> Any:
        if self.kind is float and type(entry) in (int, float) and abs(entry) < 1e300 and math.isfinite(entry):
            return float(entry)
        if self.kind is not float and type(entry) is self.kind:
            return entry
        raise RequestError(f"{key} is {value!r}", expected=str(self))


def read_lines(texts: Iterable[str], *, defaults: Request, root: Path) -> tuple[list[Line], list[BadLine]]:
    """Reads lines; empty ones are passed over. A line that begins with `{` is JSON, any other is a prompt.

    Args:
        texts: the lines of a file.
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
    forms = {**_FIELDS, **_TASKS}
    if unknown := row.keys() - forms.keys():
        raise RequestError(
            f"unknown key '{min(unknown)}'",
            expected=f"one of {', '.join(sorted(forms))}, file_name, metadata",
            hint="keys of your own go into metadata",
        )
    given = {key: _value(key, value, forms[key]) for key, value in row.items() if value is not None}
    if "prompt" not in given:
        raise RequestError("no prompt", expected="a text")
    fields = {key: value for key, value in given.items() if key in _FIELDS}
    photos = {key: str(root / given[key]) for key in ("image", "mask") if given.get(key, "alpha") != "alpha"}
    if given.keys() & {"image", "mask", "margin", "outpaint", "strength"}:
        fields["start"] = start_from({**given, **photos})
    if any(key.startswith("upscale") for key in given):
        fields["upscale"] = upscale_from(given)
    if "control" in given:
        fields["control"] = tuple(control_from(text, root=root) for text in given["control"])
    request = replace(defaults, **{"seed": None, **fields})
    if request.images > MOST_IMAGES:
        raise RequestError(f"images is {request.images}", expected=f"1 to {MOST_IMAGES} of a line")
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
    if ours := extra.keys() & {*get_type_hints(Request), *OWN_COLUMNS}:
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


def _value(key: str, value: Any, form: _Form) -> Any:
    if key == "size" and isinstance(value, str):
        width, _, height = value.lower().partition("x")
        value = [int(side) if side.isdecimal() else side for side in (width, height)]
    return form.read(key, value)


def _form(hint: Any) -> _Form | None:
    """What JSON value a field of this type takes; None where it has none."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    (option, *others) = [option for option in options if option is not types.NoneType]
    if option in (int, float, str):
        return _Form(option) if not others or hint == Prompts else None
    entries = [entry for entry in get_args(option) if entry is not Ellipsis]
    if others or get_origin(option) not in (Sequence, tuple) or entries[0] not in (int, float, str):
        return None
    return _Form(entries[0], listed=True, count=len(entries) if get_origin(option) is tuple else 0)


_FIELDS = {name: form for name, hint in get_type_hints(Request).items() if (form := _form(hint)) is not None}
_TASKS = {
    "image": _Form(str),
    "mask": _Form(str),
    "margin": _Form(int),
    "outpaint": _Form(int, listed=True, count=4),
    "strength": _Form(float),
    "control": _Form(str, listed=True),
    "upscale": _Form(float),
    "upscale_strength": _Form(float),
    "upscale_space": _Form(str),
}
