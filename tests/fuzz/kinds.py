"""All kinds, by name."""

import os
import random
import time
from pathlib import Path

from fuzz import bundle_kinds, request_kinds
from fuzz.kind import Kind, Make, Try

KINDS = {kind.name: kind for kind in (*bundle_kinds.KINDS, *request_kinds.KINDS)}


def _faulty(folder: Path) -> tuple[Make, Try]:
    """A target with one fault of each sort, to test what looks for them."""

    def use(data: bytes) -> None:
        match data:
            case b"raise":
                raise KeyError("inside")
            case b"abort":
                os.abort()
            case b"hang":
                time.sleep(1000)

    return lambda rng: rng.choice((b"raise", b"abort", b"hang", *[b"pass"] * 5)), use


def kind_of(name: str) -> Kind:
    """By its name; `faulty` is one with faults."""
    return Kind(name, _faulty) if name == "faulty" else KINDS[name]


def input_of(name: str, make: Make, *, seed: int, index: int) -> bytes:
    """Input `index` of a kind, the same on every machine."""
    return make(random.Random(f"{seed} {name} {index}"))
