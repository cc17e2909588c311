"""Errors as answers: one table from an error to a status, and a form for each protocol."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from latentrt.errors import LatentRTError, RequestError
from latentrt.serving.errors import JobCancelled, NotAccepting, QueueFull, UnknownJob, UnknownModel
from latentrt.serving.web.fields import FieldError

_RETRY_S = 5.0


class Refused(RequestError):  # noqa: N818 - reads as what it is
    """A request that is refused before anybody looks at what it asks for.

    Args:
        status: of HTTP.
        code: for programs.
    """

    def __init__(self, status: int, found: str, *, code: str | None = None, expected: str | None = None) -> None:
        self.status, self.code = status, code
        super().__init__(found, expected=expected)


class Json(JSONResponse):
    """JSON in ASCII, so that half characters of a client's text cannot stop an answer."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a client is told.

    Args:
        status: of HTTP.
        name: of the error's class.
        message: what was found, what was expected, what to do next.
        kind: in OpenAI's words.
        param: the field that is to blame.
        code: for programs.
        retry_after: seconds after which to ask again; None: the same would happen again.
        headers: more of them.
    """

    status: int
    name: str
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after: float | None = None
    headers: Mapping[str, str] | None = None

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """What an error comes to; of one that nobody meant to raise, nothing is told."""
        name, message = type(error).__name__, str(error)
        match error:
            case HTTPException():
                headers = None if error.headers is None else dict(error.headers)
                code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
                return cls(status=error.status_code, name=name, message=str(error.detail), code=code, headers=headers)
            case QueueFull():
                wait = max(1.0, error.retry_after)
                kind, code = "rate_limit_error", "queue_full"
                return cls(status=429, name=name, message=message, kind=kind, code=code, retry_after=wait)
            case NotAccepting():
                kind, code = "server_error", "not_accepting"
                return cls(status=503, name=name, message=message, kind=kind, code=code, retry_after=_RETRY_S)
            case Refused():
                kind = "authentication_error" if error.status == 401 else "invalid_request_error"
                return cls(status=error.status, name=name, message=message, kind=kind, code=error.code)
            case UnknownModel():
                return cls(status=404, name=name, message=message, param="model", code="model_not_found")
            case UnknownJob():
                return cls(status=404, name=name, message=message, code="job_not_found")
            case JobCancelled():
                return cls(status=409, name=name, message=message, code="cancelled")
            case FieldError():
                return cls(status=400, name=name, message=message, param=error.param)
            case RequestError():
                return cls(status=400, name=name, message=message)
            case LatentRTError():
                return cls(status=500, name=name, message=message, kind="server_error", code="engine")
        return cls(
            status=500, name="Exception", message="an error of the server; its log says more", kind="server_error"
        )

    def response(self, path: str, method: str) -> Json:
        """The answer in the form of the protocol that the path belongs to."""
        headers = dict(self.headers or {})
        if self.retry_after is not None:
            headers["Retry-After"] = str(math.ceil(self.retry_after))
        elif self.status >= 500 or self.status == 409:
            headers["x-should-retry"] = "false"
        return Json(form_of(path, method)(self), status_code=self.status, headers=headers)


def openai(failure: Failure) -> dict[str, Any]:
    """The error object of OpenAI's interfaces."""
    keys = {"message": failure.message, "type": failure.kind, "param": failure.param, "code": failure.code}
    return {"error": keys}


def _sdapi(failure: Failure) -> dict[str, Any]:
    return {"error": failure.name, "detail": failure.message, "body": "", "errors": failure.message}


def _task(failure: Failure) -> dict[str, Any]:
    return {"error": failure.message}


_FORMS: Mapping[str, Callable[[Failure], dict[str, Any]]] = {
    "/sdapi/": _sdapi,
    "/controlnet/": _sdapi,
    "/internal/": _sdapi,
    "/models/": _task,
}


def form_of(path: str, method: str) -> Callable[[Failure], dict[str, Any]]:
    """The form of errors below a path."""
    if path == "/" and method == "POST":
        return _task
    return next((form for prefix, form in _FORMS.items() if path.startswith(prefix)), openai)
