"""What stands before every route: who asks, from which page, how much is sent; and a log without prompts."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentrt.serving.web.failures import Failure, Refused
from latentrt.serving.web.settings import Settings

log = logging.getLogger("latentrt.serving.access")

OPEN_TO_ALL = frozenset(
    """
    / /health /healthz /livez /ready /readyz /ping /v2/health/live /v2/health/ready /internal/ping /docs /openapi.json
    /favicon.ico
    """.split()  # noqa: SIM905
)
"""Paths that need no key: probes ask for them, and a browser before it can give one. Making images always needs it."""


class Guard:
    """The application behind its checks.

    Args:
        app: what answers.
        settings: whom, and how much.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Process-Time"] = f"{time.perf_counter() - began:.4f}"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._answer(scope, receive, noting)
        finally:
            _log(scope, status, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
        except Refused as error:
            scheme = "Basic" if self._settings.users else "Bearer"
            failure = Failure.of(error)
            response = failure.response(scope["path"], scope["method"])
            if failure.status == 401:
                response.headers["WWW-Authenticate"] = f'{scheme} realm="latentrt"'
            await response(scope, receive, send)
            return
        await self._app(scope, self._limited(receive, headers), send)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._settings.hosts is not None and _name(host) not in self._settings.hosts:
            raise Refused(
                421, "the name that this server is asked by is not its own", expected=" or ".join(self._settings.hosts)
            )
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD") and not self._own(origin, host):
            raise Refused(403, "a page of another site asks", expected="one that --cors allows", code="origin")
        size = headers.get("content-length", "0")
        if not (size.isascii() and size.isdecimal()):
            raise Refused(400, "Content-Length is no number", expected="the number of bytes")
        if int(size[:20]) > self._settings.body_bytes:
            raise self._too_large()
        path = scope["path"]
        free = (path in OPEN_TO_ALL or path.startswith("/static/")) and scope["method"] in ("GET", "HEAD")
        if free or scope["method"] == "OPTIONS":
            return
        if not self._settings.admits(headers.get("authorization", ""), headers.get("api-key", "")):
            raise Refused(401, "no key, or a wrong one", expected="a key of this server", code="invalid_api_key")

    def _own(self, origin: str, host: str) -> bool:
        return bool({"*", origin} & {*self._settings.cors}) or urlsplit(origin).netloc.lower() == host.lower()

    def _too_large(self) -> Refused:
        return Refused(413, "the request is too large", expected=f"at most {self._settings.body_bytes} bytes")

    def _limited(self, receive: Receive, headers: Headers) -> Receive:
        """Counts the bytes of the body, and how long it takes."""
        left, until, whole = self._settings.body_bytes, time.monotonic() + self._settings.body_s, False

        async def limited() -> Message:
            nonlocal left, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise Refused(408, "the request's body did not arrive", expected="all of it in time") from None
            left -= len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if left < 0:
                raise self._too_large()
            return message

        return limited


def _name(host: str) -> str:
    """A host without its port, in lower case."""
    return (urlsplit(f"//{host}").hostname or "") if "//" not in host and "@" not in host else ""


def _log(scope: Scope, status: int, seconds: float) -> None:
    """One line for a request: nothing of its body or its query."""
    client = scope.get("client")
    fields = {
        "method": scope["method"],
        "path": scope["path"][:200],
        "status": status,
        "ms": round(seconds * 1e3, 1),
        "client": None if client is None else client[0],
    }
    log.info("%s %s %s", fields["method"], json.dumps(fields["path"])[1:-1], status, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """Log records as a line of JSON each."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {"message": record.getMessage()})
        line = {"time": round(self._clock(), 3), "level": record.levelname.lower(), "logger": record.name, **fields}
        if record.exc_info is not None:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)
