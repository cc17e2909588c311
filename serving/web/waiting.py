"""Jobs as something to await. A client that goes takes its job with it."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fastapi import Request as Incoming
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from latentrt.errors import RequestError
from latentrt.output.result import Result
from latentrt.request import Request
from latentrt.serving.jobs import Event, Job
from latentrt.serving.model import ModelInfo
from latentrt.serving.service import Service
from latentrt.serving.web.failures import Refused
from latentrt.serving.web.fields import Field, for_request, named
from latentrt.serving.web.settings import Settings

_LOOK_EVERY_S = 0.02
"""Waiting takes no thread: a job is looked at so often."""


@dataclass(frozen=True, slots=True)
class Site:
    """What routes have in common."""

    service: Service
    settings: Settings
    models: Mapping[str, ModelInfo] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", self.service.models)

    def model(self, name: str | None) -> str:
        """The name that the service knows a model by; an unknown one as it is."""
        if name is None:
            return next(iter(self.models))
        return name if name in self.models else self.settings.aliases.get(name, name)

    async def submit(
        self,
        model: str | None,
        table: Sequence[Field],
        given: Mapping[str, Any],
        *,
        id: str | None = None,
        loras: Sequence[tuple[str, float]] = (),
        **others: Any,
    ) -> Job:
        """A job of what a table's fields ask for, and of other fields of a request.

        Raises:
            LatentRTError: as `Service.submit`; of a request's field by the name that it has in the protocol.
        """

        def make() -> Job:
            try:
                request = Request(**(for_request(table, dict(given)) | others))
                return self.service.submit(self.model(model), request, id=id, loras=loras)
            except RequestError as error:
                raise (named(error, table) if type(error) is RequestError else error) from error

        return await run_in_threadpool(make)


async def changes(incoming: Incoming, job: Job, *, owned: bool = True) -> AsyncIterator[Event]:
    """A job's events. If it is `owned` by the request, it is cancelled when that ends before it."""
    events = job.subscribe()
    try:
        while not events.over:
            event = events.get(0)
            if event is not None:
                yield event
            elif await incoming.is_disconnected():
                return
            else:
                await asyncio.sleep(_LOOK_EVERY_S)
    finally:
        if owned:
            job.cancel()


def event_stream(records: AsyncIterator[bytes]) -> StreamingResponse:
    """Server-sent events as an answer."""
    return StreamingResponse(records, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def event_record(name: str, row: Mapping[str, Any]) -> bytes:
    """One of them."""
    return f"event: {name}\ndata: {json.dumps(row)}\n\n".encode()


async def finished(incoming: Incoming, job: Job) -> Result:
    """What a job made.

    Raises:
        LatentRTError: why there is nothing.
    """
    async for _ in changes(incoming, job):
        pass
    return job.result


async def body_of(incoming: Incoming) -> dict[str, Any]:
    """The object of JSON that a request holds.

    Raises:
        Refused: there is none.
    """
    data = await incoming.body()
    try:
        body = json.loads(data, parse_constant=_unknown, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is not JSON", expected="an object of JSON") from error
    if not isinstance(body, dict):
        raise Refused(400, "the body is no object", expected="an object of JSON")
    return body


def _unknown(text: str) -> NoReturn:
    raise ValueError(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
