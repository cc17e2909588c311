"""Connections: how many there may be and how long one may say nothing, and the end of a server by signals."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

_KEEP_ALIVE_S, _GOODBYE_S = 75, 5
_FILES_LEFT = 256  # for bundles, logs and what else a process opens
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Of a server.

    Args:
        most: connections at a time; more are told 503 and closed.
        head_s: seconds within which a request's line and headers are there, from when its connection is, or its first
            byte. Of bodies `Settings.body_s` says as much.
    """

    most: int = 10_000
    head_s: float = 20.0


class _Connection(H11Protocol):
    """A connection that is closed when its client says nothing, or says a request's head too slowly."""

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits = limits
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.most:
            transport.write(_FULL)
            transport.close()
        else:
            self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        begun = self.cycle is not before or (self.cycle is not None and not self.cycle.response_complete)
        if begun and self._patience is not None:
            self._patience.cancel()
            self._patience = None
        elif not begun and self._patience is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._patience = self.loop.call_later(self._limits.head_s, self.transport.close)


class Server(uvicorn.Server):
    """Answers until the first SIGTERM or SIGINT and what runs then, or until the second.

    Args:
        app: what answers.
        limits: of its connections; no more than the process may have files.
        drain: waits for what runs.
    """

    def __init__(self, app: FastAPI, *, limits: ConnectionLimits, drain: Callable[[], object]) -> None:
        limits = ConnectionLimits(min(limits.most, _files_allowed() - _FILES_LEFT), limits.head_s)
        config = uvicorn.Config(
            app,
            http=partial(_Connection, limits=limits),  # type: ignore[arg-type]
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GOODBYE_S,
        )
        super().__init__(config)
        self._drain, self._draining = drain, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second one ends."""
        if self._draining:
            self.should_exit = self.force_exit = True
            return
        self._draining = True
        threading.Thread(target=self._end, name="latentrt-drain", daemon=True).start()

    def listen(self, listener: socket.socket) -> None:
        """Answers on this socket until it is over."""
        self.run(sockets=[listener])

    def _end(self) -> None:
        self._drain()
        self.should_exit = True


def _files_allowed() -> int:
    """Files that the process may have open: as many as it may allow itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 1 << 20 if hard == resource.RLIM_INFINITY else min(hard, 1 << 20)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return most
        return soft
    return most if soft == resource.RLIM_INFINITY else soft
