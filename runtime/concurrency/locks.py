"""One process at a time at a place: a lock that ends with its process and says who has it."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from latentrt.errors import InUseError
from latentrt.files.atomic import storage_errors

_HELD = threading.local()


@contextmanager
def lock_target(path: Path) -> Iterator[None]:
    """Keeps every other process and thread from making what is to lie at `path`, by a file beside it.

    Raises:
        InUseError: another one is at it; says which.
        EnvironmentLacks: the folder cannot be written to.
    """
    place = Path(os.path.realpath(path))
    with _locked(place.with_name(f".{place.name}.lock"), place):
        yield


@contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Keeps every other process and thread from filling the folder `path`, which is made, by a file in it."""
    place = Path(os.path.realpath(path))
    with _locked(place / ".latentrt.lock", place):
        yield


@contextmanager
def _locked(file: Path, place: Path) -> Iterator[None]:
    """Within a block that has the lock already, there is nothing to do."""
    held: set[Path] = _HELD.__dict__.setdefault("files", set())
    if file in held:
        yield
        return
    from filelock import FileLock, SoftFileLock, Timeout  # here: 30 ms that `import latentrt` need not take

    lock = FileLock(file, timeout=0, thread_local=False)
    with storage_errors(place):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise _in_use(file, place) from None
    held.add(file)
    try:
        if not isinstance(lock, SoftFileLock):  # which has words of its own there
            with suppress(OSError):  # a full disk
                file.write_text(json.dumps(_myself()), encoding="utf-8")
        yield
    finally:
        held.discard(file)
        with suppress(OSError):  # while it is held: whoever waits for it sees that it has gone, and makes another
            file.unlink()
        lock.release()


def _myself() -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
    }


def _in_use(file: Path, place: Path) -> InUseError:
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"  # that has begun or ended just now
    return InUseError(
        f"{place} is being made by {who}",
        expected="one process at a time",
        hint="wait for it, or choose another path",
    )
