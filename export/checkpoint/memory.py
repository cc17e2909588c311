"""Whether a checkpoint's largest graph fits into memory: asked in advance, since the system's answer is to kill."""

import gc
from collections.abc import Iterable
from math import prod
from pathlib import Path

from latentrt.backends import host_memory
from latentrt.errors import EnvironmentLacks
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.checkpoint.single_file.weights import Weights
from latentrt.export.staging import available_memory

# Measured with an MMDiT of 0.67 B parameters: 1.40 times its float32 weights when it is loaded, 1.32 in the trace and
# 1.33 in ONNX Runtime, which follow each other; 0.44 GB before all that.
FACTOR = 1.5
BASE_BYTES = 500_000_000


def check_memory(checkpoint: Checkpoint, parts: Iterable[str], *, optional: Iterable[str]) -> None:
    """Looks at the headers of the weights alone.

    Args:
        parts: those with a graph; one is in memory at a time.
        optional: those that `--without` can leave out.

    Raises:
        EnvironmentLacks: a part needs more than is free.
    """
    free = available_memory()
    needed = {part: needed_bytes(checkpoint.weight_files(part)) for part in parts}
    beyond = {part: size for part, size in needed.items() if free is not None and size > free}
    if free is None or not beyond:
        return
    listed = ", ".join(f"{part} about {size / 1e9:.1f} GB" for part, size in beyond.items())
    avoidable = all(part in set(optional) for part in beyond)
    options = " ".join(f"--without {part}" for part in beyond)
    raise EnvironmentLacks(
        f"{free / 1e9:.1f} GB of memory are free",
        expected=f"room for each part in float32: {listed}",
        hint=f"leave it out with {options}" if avoidable else "export on a machine with more memory",
    )


def needed_bytes(files: Iterable[Path]) -> int:
    """Peak memory of exporting and comparing what these files hold, an estimate."""
    return int(BASE_BYTES + FACTOR * 4 * sum(map(count_parameters, files)))


def count_parameters(path: Path) -> int:
    """Numbers in a file of weights, whatever their type."""
    return sum(map(prod, Weights.open(path, allow_pickle=True).shapes.values()))  # pickles reach here if allowed


def give_back() -> None:
    """Returns what is free to the system. What a trace leaves behind refers to itself; and of 1.0 GB that a text
    encoder took in ONNX Runtime, glibc kept 0.96."""
    gc.collect()
    host_memory.give_back()
