"""Which values of a setting an export carries, in words and as a test of a value."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard


@dataclass(frozen=True, slots=True)
class Values:
    """Values that a setting may have: a test of them, and what they are, for the reader of an error."""

    holds: Callable[[object], bool]
    words: str


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


WHOLE = Values(lambda value: _is_whole(value) and value > 0, "a whole number above 0")
COUNT = Values(lambda value: _is_whole(value) and value >= 0, "a whole number, 0 or more")
ODD = Values(lambda value: _is_whole(value) and value > 0 and value % 2 == 1, "an odd number above 0")
EVEN = Values(lambda value: _is_whole(value) and value > 0 and value % 2 == 0, "an even number above 0")
NUMBER = Values(_is_number, "a number")
POSITIVE = Values(lambda value: _is_number(value) and value > 0, "a number above 0")
FLAG = Values(lambda value: isinstance(value, bool), "true or false")


def only(*values: object) -> Values:
    """These alone; True is not 1, nor False 0."""
    kinds = tuple((isinstance(value, bool), value) for value in values)
    return Values(lambda value: (isinstance(value, bool), value) in kinds, " or ".join(map(_json, values)))


def optional(values: Values) -> Values:
    """These, or null."""
    return Values(lambda value: value is None or values.holds(value), f"{values.words}, or null")


def listed(values: Values, *, empty: bool = False) -> Values:
    """A list of these."""
    return Values(
        lambda value: _is_list(value) and (empty or len(value) > 0) and all(map(values.holds, value)),
        f"a list, of each {values.words}",
    )


def each(values: Values) -> Values:
    """One of these for all levels of a network, or a list of them."""
    many = listed(values)
    return Values(lambda value: values.holds(value) or many.holds(value), f"{values.words}, or a list of such")


def pair(values: Values) -> Values:
    """One of these, or two in a list."""
    return Values(
        lambda value: values.holds(value) or (_is_list(value) and len(value) == 2 and all(map(values.holds, value))),
        f"{values.words}, or two in a list",
    )


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _json(value: object) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
