"""The page at `/`: files that a browser reads as they are, without a build step and without any other site."""

from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter
from fastapi import Request as Incoming
from starlette.exceptions import HTTPException
from starlette.responses import Response

_MEDIA = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_RULES = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FIRST = "index.html"


def routes() -> APIRouter:
    """`/`, and what it is made of below `/static`."""
    router = APIRouter(include_in_schema=False)
    # Read once: a name of the path is looked up, and never becomes a path of this machine.
    found = {each.name: each.read_bytes() for each in files(__package__).joinpath("static").iterdir() if each.is_file()}

    def answer(incoming: Incoming, name: str) -> Response:
        if name not in found:
            raise HTTPException(404, "nothing is here")
        tag = f'"{sha256(found[name]).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Content-Security-Policy": _RULES}
        if incoming.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(found[name], media_type=_MEDIA[name.rpartition(".")[2]], headers=headers)

    def first(incoming: Incoming) -> Response:
        return answer(incoming, _FIRST)

    router.add_api_route("/", first, methods=["GET", "HEAD"])
    router.add_api_route("/static/{name}", answer, methods=["GET", "HEAD"])
    return router
