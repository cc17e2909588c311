"""A protocol's fields as tables: what each may be, and which field of a request it is.

    _TABLE = (Field("prompt", Text(), to="prompt", required=True), Field("n", Whole(1, 10), to="images"))
    given = read(_TABLE, body)
    Request(**for_request(_TABLE, given))

`null` is an absent field, unknown fields are ignored, and numbers may come as text, as forms send them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from latentrt.errors import RequestError
from latentrt.values import Flag, Kind, Listed, Number, OneOf, Size, Text, Whole, shown

Given = dict[str, Any]

SEED = Whole(0, (1 << 63) - 1)
"""What every protocol's seed may be: the numbers that JSON's readers hold."""
NOT_HERE = "this server has nothing like it; leave it out"
"""Why a field is refused that other servers follow."""


class FieldError(RequestError):
    """A field of a protocol that is not what it may be.

    Args:
        param: the field's name.
    """

    def __init__(self, param: str, found: str, *, expected: str | None = None, hint: str | None = None) -> None:
        self.param = param
        super().__init__(found, expected=expected, hint=hint)

    @classmethod
    def of(cls, error: RequestError, param: str) -> "FieldError":
        return cls(param, error.found, expected=error.expected, hint=error.hint)


@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    Args:
        name: in the protocol.
        kind: what it may be.
        to: the field of a request that it is; None: the route itself reads it.
        aliases: other names that clients use; the first that is given counts.
        neutral: values that mean the same as its absence.
        required: it must be there.
        refused: why every other value is refused; None: it is not.
    """

    name: str
    kind: Kind
    to: str | None = None
    aliases: tuple[str, ...] = ()
    neutral: tuple[Any, ...] = ()
    required: bool = False
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class AnyValue:
    """Whatever is given, as it is."""

    def read(self, name: str, value: Any) -> Any:
        return value


@dataclass(frozen=True, slots=True)
class Filled:
    """A text that holds more than spaces."""

    def read(self, name: str, value: Any) -> str:
        text = Text().read(name, value)
        if not text.strip():
            raise RequestError(f"{name} is empty", expected="a text")
        return text


@dataclass(frozen=True, slots=True)
class Name:
    """A name that a client gives: it stands in addresses, headers and lists."""

    def read(self, name: str, value: Any) -> str:
        text = Text().read(name, value)
        if not text.strip() or len(text) > 128 or not text.isascii() or not text.isprintable() or "/" in text:
            raise RequestError(f"{name} is {shown(text)}", expected="1 to 128 printable characters of ASCII without /")
        return text


@dataclass(frozen=True, slots=True)
class Dictionary:
    """An object of JSON."""

    def read(self, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise RequestError(f"{name} is {shown(value)}", expected="an object")
        return value


@dataclass(frozen=True, slots=True)
class SizeOrAuto:
    """`WIDTHxHEIGHT`, or `auto`, which is None."""

    def read(self, name: str, value: Any) -> tuple[int, int] | None:
        Text().read(name, value)
        size: tuple[int, int] | None = None if value == "auto" else Size().read(name, value)
        return size


def read(table: Iterable[Field], body: Mapping[str, Any]) -> Given:
    """The fields of the table that are given, by their names there.

    Raises:
        FieldError: a field is missing, is not what it may be, or is refused.
    """
    given: Given = {}
    for field in table:
        value = next((body[name] for name in (field.name, *field.aliases) if body.get(name) is not None), None)
        if value is None or any(_same(value, neutral) for neutral in field.neutral):
            if field.required:
                raise FieldError(field.name, f"no {field.name}", expected=f"the field {field.name}")
            continue
        if field.refused is not None:
            raise FieldError(field.name, f"{field.name} is {shown(value)}", hint=field.refused)
        try:
            given[field.name] = field.kind.read(field.name, plain(value, field.kind))
        except RequestError as error:
            raise FieldError.of(error, field.name) from error
    return given


def for_request(table: Iterable[Field], given: Given) -> Given:
    """The given fields that are a request's, by the names there."""
    return {field.to: given[field.name] for field in table if field.to is not None and field.name in given}


def plain(value: Any, kind: Kind) -> Any:
    """A value as its kind has it: numbers and flags out of text, whole numbers out of such as 20.0."""
    if isinstance(kind, Listed) and isinstance(value, list):
        return [plain(entry, kind.kind) for entry in value]
    if isinstance(kind, Flag):
        flags = {"true": True, "1": True, "false": False, "0": False}
        return flags.get(str(value).lower(), value) if isinstance(value, str | int) else value
    if isinstance(value, str) and isinstance(kind, Whole | Number) and len(value) < 40:
        try:
            value = int(value) if isinstance(kind, Whole) else float(value)
        except ValueError:
            return value
    if isinstance(kind, Whole) and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def named(error: RequestError, table: Iterable[Field]) -> RequestError:
    """An error of a request's field as one of the protocol's field that it came from, where there is one."""
    first = error.found.split(maxsplit=1)[0].rstrip(",") if error.found else ""
    sides = {"width": "size", "height": "size"}
    for field in table:
        if field.to is not None and (field.to == first or field.to == sides.get(first)):
            return FieldError.of(error, field.name)
    return error


def schema(table: Iterable[Field]) -> dict[str, Any]:
    """The table as the description of a body in OpenAPI."""
    rows = list(table)
    required = [field.name for field in rows if field.required]
    properties = {field.name: _schema(field.kind) for field in rows if field.refused is None}
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


def described(table: Iterable[Field], media: str = "application/json") -> dict[str, Any]:
    """The table as what a route of FastAPI says of its body."""
    return {"requestBody": {"content": {media: {"schema": schema(table)}}}}


def _schema(kind: Kind) -> dict[str, Any]:
    match kind:
        case Whole(low, high):
            return {"type": "integer", "minimum": low} | ({} if high is None else {"maximum": high})
        case Number():
            return {"type": "number", "minimum": kind.low, "maximum": kind.high}
        case Flag():
            return {"type": "boolean"}
        case OneOf(names):
            return {"type": "string", "enum": list(names)}
        case Dictionary():
            return {"type": "object"}
        case Listed():
            return {"type": "array", "items": _schema(kind.kind)}
        case AnyValue():
            return {}
    return {"type": "string"}


def _same(value: Any, neutral: Any) -> bool:
    if isinstance(neutral, str) and isinstance(value, str):
        return value.strip().lower() == neutral.lower()
    return bool(value == neutral) and isinstance(value, bool) <= isinstance(neutral, bool | int)
