"""Seeded damage to bytes and to JSON values."""

import copy
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import Any

Path = tuple[str | int, ...]


class Mark(Enum):
    """What stands for no value at all."""

    REMOVED = "removed"


REMOVED = Mark.REMOVED
"""In place of a value: its key, or its place in the list, goes."""
WRONG: Sequence[tuple[str, Any]] = (
    ("removed", REMOVED),
    ("null", None),
    ("true", True),
    ("false", False),
    ("zero", 0),
    ("one", 1),
    ("two", 2),
    ("negative", -3),
    ("fraction", 0.5),
    ("huge", 10**30),
    ("large", 2**40),
    ("beyond 4096", 5000),
    ("NaN", math.nan),
    ("infinite", math.inf),
    ("empty text", ""),
    ("text", "x"),
    ("upwards", "../x"),
    ("absolute", "/etc/passwd"),
    ("NUL", "a\0b"),
    ("half a surrogate pair", "\ud800"),
    ("empty list", []),
    ("nested list", [[[]]]),
    ("list of null", [None]),
    ("empty object", {}),
    ("object", {"x": {"y": None}}),
)


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Paths of all that is in a JSON value."""
    if path:
        yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from places(member, (*path, key))


def replaced(value: Any, path: Path, wrong: Any) -> Any:
    """A copy in which something else stands at a place."""
    *parents, last = path
    result = copy.deepcopy(value)
    holder = result
    for key in parents:
        holder = holder[key]
    if wrong is REMOVED:
        del holder[last]
    else:
        holder[last] = copy.deepcopy(wrong)
    return result


def wrong_json(value: Any, rng: random.Random, *, most: int = 3) -> Any:
    """A copy with a few things wrong."""
    for _ in range(rng.choice((1, 1, 1, 2, most))):
        found = list(places(value))
        if not found:
            return value
        value = replaced(value, rng.choice(found), _something(value, found, rng))
    return value


def wrong_text(value: Any, rng: random.Random) -> bytes:
    """JSON with things wrong, or with its bytes damaged."""
    text = json.dumps(wrong_json(value, rng)).encode()
    return wrong_bytes(text, rng) if rng.random() < 0.15 else text


def wrong_bytes(data: bytes, rng: random.Random) -> bytes:
    """A copy with a few of its bytes changed, cut out, doubled, put in, or with its end cut off."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        rng.choice(_DAMAGE)(result, rng)
    return bytes(result)


def _something(value: Any, found: Sequence[Path], rng: random.Random) -> Any:
    """One of what is always wrong, a small change of a number, or what stands elsewhere in the same value."""
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(WRONG)[1]
    if kind < 0.8:
        return rng.choice(
            (rng.randint(-10, 100), rng.uniform(-2, 2), 2 ** rng.randint(0, 70), 10 ** rng.uniform(-30, 30))
        )
    other = value
    for key in rng.choice(found):
        other = other[key]
    return other


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(data: bytearray, rng: random.Random) -> None:
    """A length or an offset becomes another."""
    size = rng.choice((2, 4, 8))
    if len(data) >= size:
        at = rng.randrange(len(data) - size + 1)
        value = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, rng.randrange(1 << 16)))
        data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, rng.choice(("little", "big")))


def _cut(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.randrange(1, 32)]


def _double(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[at : at + rng.randrange(1, 64)]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.randbytes(rng.randrange(1, 16))


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data) + 1) :]


_DAMAGE: Sequence[Callable[[bytearray, random.Random], None]] = (
    _flip,
    _flip,
    _set,
    _set,
    _number,
    _cut,
    _double,
    _insert,
    _truncate,
)
