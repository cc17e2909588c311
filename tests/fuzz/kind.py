"""What is fuzzed: a kind of input, how one is made from a seed, and what takes it."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Make = Callable[[random.Random], bytes]
Try = Callable[[bytes], object]


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Args:
        name: of the kind.
        prepare: makes what the target needs in an empty folder. Of what it returns, the first makes an input, the
            second takes one: it returns, or raises one of the project's errors. Anything else is a fault.
        share: of a number of inputs that all kinds divide among them.
    """

    name: str
    prepare: Callable[[Path], tuple[Make, Try]]
    share: int = 4


def from_corpus(corpus: Sequence[bytes], change: Callable[[bytes, random.Random], bytes]) -> Make:
    """Inputs that are changed members of a corpus."""
    return lambda rng: change(rng.choice(corpus), rng)


def safetensors(header: Mapping[str, Any], data: bytes) -> bytes:
    """A file of tensors with any header."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data
