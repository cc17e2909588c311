"""A server in a thread of the tests, on a port of its own."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn

from latentrt.pipeline import Pipeline
from latentrt.serving.service import Service
from latentrt.serving.web.app import create_app
from latentrt.serving.web.health import Doors
from latentrt.serving.web.settings import Settings
from latentrt.testing import fake_pipeline

WAIT_S = 60.0


class Gate:
    """Lets steps of a fake pipeline through: all of them, or so many."""

    def __init__(self, pipe: Pipeline) -> None:
        engine = pipe.engines["step"]
        self._made, self._changed, self._left = engine.function, threading.Condition(), None
        engine.function = self._step
        self.calls = 0

    def _step(self, feed):
        with self._changed:
            assert self._changed.wait_for(lambda: self._left is None or self._left > 0, WAIT_S)
            self._left = None if self._left is None else self._left - 1
            self.calls += 1
        return self._made(feed)

    def shut(self) -> None:
        self.let(0)

    def let(self, steps: int) -> None:
        """So many more, and then none."""
        with self._changed:
            self._left = steps
            self._changed.notify_all()

    def open(self) -> None:
        with self._changed:
            self._left = None
            self._changed.notify_all()


@dataclass(frozen=True)
class Live:
    """What a test knows of its server.

    Args:
        full: the status of an answer that says so.
        lag_s: seconds within which a cancelled job's steps have ended, where others make them.
        inside: what it does can be seen, and its steps held back, in this process.
    """

    url: str
    service: Service
    gate: Gate
    seen: list[str]
    doors: Doors
    full: int = 429
    lag_s: float = 0.0
    inside: bool = True

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def client(self, **options) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=WAIT_S, trust_env=False, **options)


Serve = Callable[..., Live]


def until(condition: Callable[[], object], what: str = "it") -> None:
    """Waits for what another thread does."""
    for _ in range(int(WAIT_S / 0.01)):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} did not happen in {WAIT_S} s")


def free_port() -> int:
    """One that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def running(app) -> Iterator[tuple[str, list[str]]]:
    """An application behind HTTP: its address, and what was asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seen = []

        async def counted(scope, receive, send):
            if scope["type"] == "http":
                seen.append(f"{scope['method']} {scope['path']}")
            await app(scope, receive, send)

        config = uvicorn.Config(counted, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started, "the start")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
        finally:
            server.should_exit = True
            thread.join(WAIT_S)


@contextmanager
def listening(service: Service, settings: Settings | None = None) -> Iterator[tuple[str, list[str], Doors]]:
    """A service behind HTTP: its address, what was asked, and its doors."""
    doors = Doors()
    with running(create_app(service, settings, doors=doors)) as (url, seen):
        yield url, seen, doors


@contextmanager
def serving(folder: Path, settings: Settings | None = None, **options) -> Iterator[Live]:
    """A service of fakes behind HTTP."""
    options = {"queue": 64, "batch_gain": 0, **options}
    pipe = fake_pipeline(folder)
    gate = Gate(pipe)
    with Service({"fake": pipe}, **options) as service, listening(service, settings) as (url, seen, doors):
        try:
            yield Live(url, service, gate, seen, doors)
        finally:
            gate.open()
