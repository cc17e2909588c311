"""What public arguments may be: a table of kinds, by name, checked where an object is made or a function begins.

    _FIELDS = {"images": Whole(1, 4096), "guidance": Optional(Number(0, 1000))}
    settle(self, _FIELDS)

Whatever else is given, from text to NaN, is a RequestError that names it. What passes comes out plain: NumPy's
scalars as Python's, sequences as tuples.
"""

import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol

import numpy as np

from latentrt.errors import RequestError

_PATH_BYTES, _NAME_BYTES = 4095, 255  # what Linux takes


class Kind(Protocol):
    """What one argument may be."""

    def read(self, name: str, value: Any) -> Any:
        """The value as the runtime works with it.

        Raises:
            RequestError: anything else; it names the argument.
        """


def settle(made: Any, kinds: Mapping[str, Kind], *, of: str = "") -> None:
    """Puts the checked values in the place of the fields of a frozen dataclass that is being made.

    Args:
        of: said behind the field's name in messages.
    """
    for name, kind in kinds.items():
        object.__setattr__(made, name, kind.read(f"{name}{of}", getattr(made, name)))


def check(kinds: Mapping[str, Kind], **values: Any) -> None:
    """Checks arguments of a function that takes them as they are."""
    for name, value in values.items():
        kinds[name].read(name, value)


def shown(value: Any) -> str:
    """A value in messages: short, whatever it is."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):  # whole numbers of thousands of digits
        return f"a {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number within bounds; bools are none.

    Args:
        low, high: the bounds, both allowed; no `high` is none.
        beyond: what to do for more than `high`.
    """

    low: int = 0
    high: int | None = None
    beyond: str | None = None

    def __str__(self) -> str:
        bounds = f"at least {self.low}" if self.high is None else f"{self.low} to {self.high}"
        return f"a whole number, {bounds}"

    def read(self, name: str, value: Any) -> int:
        if not isinstance(value, int | np.integer) or isinstance(value, bool | np.timedelta64):
            raise RequestError(f"{name} is {shown(value)}", expected=str(self))
        whole = int(value)
        if whole < self.low:
            raise RequestError(f"{name} is {shown(whole)}", expected=f"at least {self.low}")
        if self.high is not None and whole > self.high:
            raise RequestError(f"{name} is {shown(whole)}", expected=f"at most {self.high}", hint=self.beyond)
        return whole


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number within bounds; bools are none.

    Args:
        low, high: the bounds.
        above: `low` itself is not allowed.
        below: `high` itself is not allowed.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False

    def __str__(self) -> str:
        if self.above:
            return f"a number above {self.low:g}, at most {self.high:g}"
        return f"a number, {self.low:g} to {'below ' if self.below else ''}{self.high:g}"

    def read(self, name: str, value: Any) -> float:
        number = _finite(value)
        if number is None or not self._holds(number):
            raise RequestError(f"{name} is {shown(value) if number is None else number}", expected=str(self))
        return number

    def _holds(self, number: float) -> bool:
        high_enough = self.low < number if self.above else self.low <= number
        return high_enough and (number < self.high if self.below else number <= self.high)


@dataclass(frozen=True, slots=True)
class Text:
    """A text that can be encoded."""

    def __str__(self) -> str:
        return "a text"

    def read(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise RequestError(f"{name} is {shown(value)}", expected=str(self))
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"{name} holds half a character at {error.start}", expected="a text that can be encoded"
            ) from error
        return str.__str__(value)


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of some names."""

    names: tuple[str, ...]

    def read(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise RequestError(f"{name} is {shown(value)}", expected=" or ".join(self.names))
        return str.__str__(value)


@dataclass(frozen=True, slots=True)
class Flag:
    """True or False."""

    def read(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool | np.bool_):
            raise RequestError(f"{name} is {shown(value)}", expected="True or False")
        return bool(value)


@dataclass(frozen=True, slots=True)
class Optional:
    """None, which means the default, or a value."""

    kind: Kind

    def read(self, name: str, value: Any) -> Any:
        return None if value is None else self.kind.read(name, value)


@dataclass(frozen=True, slots=True)
class Listed:
    """A sequence, or an array [n], of one kind of entries.

    Args:
        what: the entries are, in messages.
        least, most: how many there may be.
    """

    kind: Kind
    what: str
    least: int = 0
    most: int = 1_000_000

    def __str__(self) -> str:
        count = f"{self.least} " if self.least == self.most else ""
        return f"a list of {count}{self.what}"

    def read(self, name: str, value: Any) -> tuple[Any, ...]:
        entries = _entries(value)
        if entries is None:
            raise RequestError(f"{name} is {shown(value)}", expected=str(self))
        if not self.least <= len(entries) <= self.most:
            few = "at least" if len(entries) < self.least else "at most"
            bound = self.least if len(entries) < self.least else self.most
            expected = str(self) if self.least == self.most else f"{few} {bound}"
            raise RequestError(f"{name} holds {len(entries)} {self.what}", expected=expected)
        try:
            return tuple(self.kind.read(f"{name}[{index}]", entry) for index, entry in enumerate(entries))
        except RequestError as error:
            if self.least != self.most:
                raise
            raise RequestError(f"{name} is {shown(value)}", expected=str(self), hint=str(error)) from error


@dataclass(frozen=True, slots=True)
class Texts:
    """One text, or a sequence of them."""

    most: int
    required: bool = False

    def read(self, name: str, value: Any) -> str | tuple[str, ...]:
        if isinstance(value, str):
            return Text().read(name, value)
        entries = _entries(value)
        if entries is None or (self.required and not entries):
            found = f"{name} is {shown(value)}" if entries is None else f"no {name}"
            raise RequestError(found, expected="a text or a sequence of texts")
        return Listed(Text(), "texts", most=self.most).read(name, entries)


@dataclass(frozen=True, slots=True)
class Fractions:
    """Two fractions of a run, the smaller first."""

    def read(self, name: str, value: Any) -> tuple[float, float]:
        entries = _entries(value)
        match [_finite(entry) for entry in entries[:3]] if entries is not None else []:
            case [float(first), float(second)] if 0 <= first <= second <= 1:
                return first, second
        raise RequestError(f"{name} is {shown(value)}", expected="two fractions, 0 to 1, the smaller first")


@dataclass(frozen=True, slots=True)
class Size:
    """(width, height) in pixels, or a text such as `768x512`."""

    def read(self, name: str, value: Any) -> tuple[int, int]:
        given = value
        if isinstance(value, str):
            sides = value.lower().split("x")
            if len(sides) != 2 or not all(side.isascii() and side.isdecimal() and len(side) < 10 for side in sides):
                raise RequestError(f"{name} is {shown(value)}", expected="WIDTHxHEIGHT in pixels, such as 768x512")
            given = [int(side) for side in sides]
        width, height = Listed(Whole(0, 1 << 20), "whole numbers", least=2, most=2).read(name, given)
        return width, height


@dataclass(frozen=True, slots=True)
class Instance:
    """An object of one of some classes."""

    classes: tuple[type, ...]
    hint: str | None = None

    def __str__(self) -> str:
        return " or ".join(kind.__name__ for kind in self.classes)

    def read(self, name: str, value: Any) -> Any:
        if not isinstance(value, self.classes):
            raise RequestError(f"{name} is {shown(value)}", expected=str(self), hint=self.hint)
        return value


@dataclass(frozen=True, slots=True)
class FilePath:
    """A path that the system takes, as text or `PathLike`."""

    def read(self, name: str, value: Any) -> str | PathLike[str]:
        path = os.fspath(value) if isinstance(value, str | PathLike) else None
        if not isinstance(path, str):
            raise RequestError(f"{name} is {shown(value)}", expected="a path")
        try:
            encoded = os.fsencode(path)
        except UnicodeEncodeError as error:
            raise RequestError(f"{name} is {shown(path)}", expected="a path of whole characters") from error
        longest = max(map(len, encoded.split(os.sep.encode())))
        if not path or b"\0" in encoded or len(encoded) > _PATH_BYTES or longest > _NAME_BYTES:
            raise RequestError(f"{name} is {shown(path)}", expected="a path that the system takes")
        return value  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Function:
    """Something to call."""

    def read(self, name: str, value: Any) -> Any:
        if not callable(value):
            raise RequestError(f"{name} is {shown(value)}", expected="a function")
        return value


@dataclass(frozen=True, slots=True)
class Named:
    """A mapping from texts to one kind of values."""

    kind: Kind

    def read(self, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise RequestError(f"{name} is {shown(value)}", expected="a mapping by name")
        return {Text().read(f"a name in {name}", key): self.kind.read(f"{name}[{key!r}]", value[key]) for key in value}


def _finite(value: Any) -> float | None:
    """The number as a float; None for what is no number, NaN and infinities."""
    if isinstance(value, bool | np.timedelta64) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _entries(value: Any) -> Sequence[Any] | None:
    """A sequence's entries; None for what is none."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim == 1 else None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray | memoryview):
        return None
    try:
        len(value)
    except OverflowError:  # a range of more than the machine can count
        return None
    return value


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
