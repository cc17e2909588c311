"""What is found out on the nodes before anything is made: the plan, and whether each node sees what the driver sees."""

import logging
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from latentrt.datasets.items import Item, Planned, plan_items
from latentrt.datasets.request_file import Line
from latentrt.datasets.store import Store
from latentrt.errors import EnvironmentLacks, LatentRTError
from latentrt.ray_data.opening import Facts, Opening, check_pictures


@dataclass(frozen=True, slots=True)
class Look:
    """What a node is asked to compare.

    Args:
        store: where images go, or the nearest folder of it that is there.
        token: a file there that the driver has written.
    """

    opening: Opening
    store: Store
    token: str


@dataclass(frozen=True, slots=True)
class PlannedThere:
    """A plan that a process of the cluster made, what it was made with, and what was warned of: logger and message."""

    planned: Planned
    facts: Facts
    warnings: tuple[tuple[str, str], ...]


def plan_there(look: Look, lines: Sequence[Line], seed: int) -> PlannedThere | LatentRTError:
    """Plans where images are made: the driver may lack the bundle's backend, or a GPU. Errors are returned, since Ray
    wraps those that are raised."""
    try:
        _check_store(look)
        with _warnings() as warned, look.opening.open() as pipe:
            return PlannedThere(plan_items(pipe, lines, seed=seed), Facts.of(pipe), tuple(warned))
    except LatentRTError as error:
        return here(error)


def look_there(look: Look, facts: Facts, items: Sequence[Item], digests: Mapping[str, str]) -> LatentRTError | None:
    """What speaks against making images on this node; None: nothing."""
    try:
        _check_store(look)
        with look.opening.open() as pipe:
            facts.check(Facts.of(pipe), where="this node")
        check_pictures(items, digests)
    except LatentRTError as error:
        return here(error)
    return None


def here(error: LatentRTError) -> LatentRTError:
    """The same error, with the name of this machine."""
    again = type(error).__new__(type(error))
    LatentRTError.__init__(again, f"on {socket.gethostname()}: {error.found}", expected=error.expected, hint=error.hint)
    return again


def not_shared(store: Store) -> EnvironmentLacks:
    """The error of a node that does not see what the driver has written."""
    return EnvironmentLacks(
        f"{store.path()} is not the driver's folder",
        expected="an output that all nodes share",
        hint="give a path on a shared file system, or an address such as s3://bucket/folder",
    )


def _check_store(look: Look) -> None:
    """Looks for the driver's file, and tries to store one.

    Raises:
        EnvironmentLacks: another storage is at this place, or it cannot be written to.
    """
    try:
        seen = look.store.exists(look.token)
    except OSError:
        seen = False
    if not seen:
        raise not_shared(look.store)
    own = run_token()
    look.store.write(own, b"")
    look.store.remove(own)


def run_token() -> str:
    """A name of a file that is removed when a run begins in the same place."""
    return f".latentrt-{secrets.token_hex(8)}.tmp"


@contextmanager
def _warnings() -> Iterator[list[tuple[str, str]]]:
    """Collects what the library warns of meanwhile."""
    found: list[tuple[str, str]] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append((record.name, record.getMessage()))  # type: ignore[method-assign]
    log = logging.getLogger("latentrt")
    log.addHandler(handler)
    try:
        yield found
    finally:
        log.removeHandler(handler)
