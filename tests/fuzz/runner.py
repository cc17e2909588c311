"""Runs kinds of inputs in child processes, and keeps what went wrong with its seed and input."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuzz.kinds import input_of, kind_of

TESTS = Path(__file__).parents[1]
PATIENCE_S = 60.0
"""An input that takes longer is one that hangs."""


@dataclass(frozen=True)
class Fault:
    """An input that ended in something else than one of the project's errors."""

    kind: str
    seed: int
    index: int
    what: str
    detail: str


@dataclass
class Count:
    """What became of a kind's inputs."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    faults: list[Fault] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        faults = [{name: value for name, value in asdict(fault).items() if name != "detail"} for fault in self.faults]
        return {"inputs": self.inputs, "accepted": self.accepted, "refused": self.refused, "faults": faults}


@dataclass(frozen=True)
class Work:
    """So many inputs of a kind, from one on."""

    kind: str
    count: int
    start: int = 0


def run(
    works: Sequence[Work],
    *,
    seed: int,
    seconds: float = 0.0,
    patience_s: float = PATIENCE_S,
    progress: Callable[[str, Count], None] = lambda *_: None,
) -> Mapping[str, Count]:
    """Tries inputs, one process after the other: each begins where the last one died.

    Args:
        works: in order.
        seed: from which all inputs are made.
        seconds: for each of them; 0 is no limit.
        patience_s: how long an input may take.
        progress: called after each kind.
    """
    counts = {work.kind: Count() for work in works}
    left = list(works)
    while left:
        left = _one_process(left, counts, seed=seed, seconds=seconds, patience_s=patience_s, progress=progress)
    return counts


def keep(fault: Fault, folder: Path) -> Path:
    """Writes the input and what it led to; returns the input's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{fault.kind}-{fault.seed}-{fault.index}"
    with tempfile.TemporaryDirectory() as work:
        make, _ = kind_of(fault.kind).prepare(Path(work))
        path.write_bytes(input_of(fault.kind, make, seed=fault.seed, index=fault.index))
    path.with_name(f"{path.name}.txt").write_text(f"{fault.what}\n\n{fault.detail}\n")
    return path


def _one_process(
    works: Sequence[Work],
    counts: Mapping[str, Count],
    *,
    seed: int,
    seconds: float,
    patience_s: float,
    progress: Callable[[str, Count], None],
) -> list[Work]:
    """Runs a child until it is done or dies; returns what is left."""
    with tempfile.TemporaryDirectory(prefix="latentrt-fuzz-") as folder, tempfile.TemporaryFile("w+") as errors:
        paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        child = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "fuzz.child", str(seed), folder, str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write("".join(f"{work.kind} {work.start} {work.count}\n" for work in works))
        child.stdin.close()
        left, began = list(works), -1
        lines = _Lines(child.stdout.fileno())
        while (line := lines.next(patience_s if began >= 0 else 20 * patience_s)) is not None:
            code, _, rest = line.partition(" ")
            if not left:
                break
            count = counts[left[0].kind]
            if code == "B":
                began = int(rest)
            elif code == "D":
                progress(left[0].kind, count)
                left, began = left[1:], -1
            elif code in ("A", "R", "F"):
                count.inputs += 1
                count.accepted += code == "A"
                count.refused += code == "R"
                if code == "F":
                    what, detail = json.loads(rest)
                    count.faults.append(Fault(left[0].kind, seed, began, what, detail))
        hangs = lines.waiting
        if hangs:
            child.kill()
        ended = child.wait()
        child.stdout.close()
        if not left:
            return []
        errors.seek(0)
        said = errors.read()[-4000:]
    if began < 0:
        raise RuntimeError(f"{left[0].kind} could not begin, exit code {ended}:\n{said}")
    what = f"no end within {patience_s:g} s" if hangs else f"the process ended, {_ending(ended)}"
    count.inputs += 1
    count.faults.append(Fault(left[0].kind, seed, began, what, said))
    done = began + 1 - left[0].start
    return [Work(left[0].kind, left[0].count - done, began + 1), *left[1:]]


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _Lines:
    """Lines of a pipe, with a limit of time for each."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._rest = b""
        self.waiting = False

    def next(self, patience_s: float) -> str | None:
        """The next line; None at the end, or with `waiting` set where none came in time."""
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._pipe], [], [], patience_s)
            if not ready:
                self.waiting = True
                return None
            data = os.read(self._pipe, 1 << 16)
            if not data:
                return None
            self._rest += data
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()
