"""Processes that can import these benchmarks (`latentrt.bench.worker`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentrt.bench.worker import Worker

ROOT = Path(__file__).resolve().parents[2]


def worker(opener: str, options: Mapping[str, Any], *, log: Path, interpreter: str | None = None) -> Worker:
    """A worker of this checkout."""
    return Worker(opener, options, log=log, interpreter=interpreter, paths=[ROOT])


def ask_apart(opener: str, options: Mapping[str, Any], *, log: Path, timeout_s: float) -> Any:
    """One question to a process of its own. Raises as `Worker.ask`."""
    with worker(opener, options, log=log) as process:
        process.open(timeout_s=timeout_s)
        return process.ask({}, timeout_s=timeout_s)
