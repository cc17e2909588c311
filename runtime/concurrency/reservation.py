"""Who may use the engines of a pipeline: one run at a time, and one thread at a time within it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from inspect import GEN_CLOSED, getgeneratorstate
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

from latentrt.errors import RequestError

T = TypeVar("T")

_LOCK = threading.Lock()
_KNOWN: WeakKeyDictionary[object, Any] = WeakKeyDictionary()


class Reservation:
    """Lets one call in and refuses those that come between. A run holds it over many turns: between two of them the
    thread of the latest one may make calls that disturb nothing, and any thread may close."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._run: ReservedRun | None = None
        self._owner: int | None = None  # the thread of the run's latest turn
        self._worker: int | None = None  # the thread whose call or turn is under way
        self._closed = False

    @classmethod
    def of(cls, engine: object) -> Self:
        """That of the pipelines which run this engine: what it keeps for one of them, another's call would reuse."""
        with _LOCK:
            found: Self = _KNOWN.setdefault(engine, cls())
            return found

    def covers(self, engine: object) -> None:
        """Makes it the reservation of this engine too."""
        with _LOCK:
            _KNOWN[engine] = self

    def alone(self) -> AbstractContextManager[None]:
        """A call beside no run.

        Raises:
            RequestError: a run or another call is under way, or the pipeline is closed.
        """
        return self._working(lambda: self._run is None)

    def beside(self) -> AbstractContextManager[None]:
        """A call that the thread of a run may make between two turns."""
        return self._working(lambda: self._run is None or self._owner == threading.get_ident())

    @contextmanager
    def turn(self, run: ReservedRun) -> Iterator[None]:
        """A piece of `run`, whose first one takes the reservation.

        Raises:
            RequestError: as `alone`, of another run.
        """
        with self._working(lambda: self._run is None or self._run is run):
            self._run, self._owner = run, threading.get_ident()
            yield

    @contextmanager
    def last_turn(self, run: ReservedRun) -> Iterator[None]:
        """Waits for the call or turn of another thread, and releases what `run` holds. Within a call of this thread it
        begins at once: what ends as garbage may end anywhere."""
        with self._changed:
            within = self._worker == threading.get_ident()
            if not within:
                self._changed.wait_for(lambda: self._worker is None)
                self._worker = threading.get_ident()
        try:
            yield
        finally:
            if self._run is run:
                self._run = self._owner = None
            if not within:
                self._leave()

    def held_by(self, run: ReservedRun) -> bool:
        """Whether `run` is the one under way."""
        return self._run is run

    @property
    def closed(self) -> bool:
        """Whether it lets nobody in any more."""
        return self._closed

    def check_open(self) -> None:
        """Raises RequestError where it is closed."""
        if self._closed:
            raise RequestError("this pipeline is closed", expected="an open one", hint="load the bundle again")

    def close(self, free: Callable[[], None]) -> None:
        """Refuses what is yet to come, waits for the call or turn under way, stops the run, and frees.

        Raises:
            RequestError: asked from within a call.
        """
        with self._changed:
            if self._worker == threading.get_ident():
                raise RequestError("closing a pipeline from within its call", expected="the call to return first")
            self._closed = True
            self._changed.wait_for(lambda: self._worker is None)
            self._worker = threading.get_ident()
        try:
            if self._run is not None:
                self._run.close()
            free()
        finally:
            self._leave()

    @contextmanager
    def _working(self, allowed: Callable[[], bool]) -> Iterator[None]:
        with self._changed:
            self.check_open()
            if self._worker is not None or not allowed():
                raise RequestError(
                    "this pipeline is busy with another run or call",
                    expected="one run at a time, and one thread",
                    hint="finish or close the other one, or load a second pipeline",
                )
            self._worker = threading.get_ident()
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._worker = None
            self._changed.notify_all()


class ReservedRun:
    """What holds a reservation: turns, and the loop that some of them make. `with` ends it."""

    def __init__(self, reservation: Reservation) -> None:
        self._reservation = reservation
        self._loop: Generator[object, None, None] | None = None

    def turn(self) -> AbstractContextManager[None]:
        """As `Reservation.turn`."""
        return self._reservation.turn(self)

    def next(self, loop: Generator[T, None, None]) -> T | None:
        """The next value of a loop, made in a turn; None: there is no more."""
        with self.turn():
            self._loop = loop
            return next(loop, None)

    def close(self) -> None:
        """Ends the loop and frees the reservation, after the turn that another thread is in. Closing twice is fine."""
        if self._reservation.held_by(self):
            with self._reservation.last_turn(self):
                loop, self._loop = self._loop, None
                if loop is not None:
                    loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Steps(Iterator[T]):
    """A run's loop, one value at a time. Leaving it ends the run; so does `close`, from any thread."""

    def __init__(self, run: ReservedRun, loop: Generator[T, None, None]) -> None:
        self._run = run
        self._loop: Generator[T, None, None] | None = loop

    def __next__(self) -> T:
        """The next value; any thread may ask for it.

        Raises:
            RequestError: another run or another thread's call is under way, or the pipeline is closed.
        """
        loop = self._loop
        if loop is None:
            raise StopIteration
        try:
            value = self._run.next(loop)
        finally:
            if getgeneratorstate(loop) == GEN_CLOSED:  # by its last value, or by a failure; not where a turn is refused
                self.close()
        if value is None:
            raise StopIteration
        return value

    def close(self) -> None:
        """Ends the run, after the step that another thread is making. Closing twice is fine."""
        self._loop = None
        self._run.close()

    def __del__(self) -> None:
        self.close()
