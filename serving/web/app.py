"""All protocols of a service as one application."""

from fastapi import FastAPI
from fastapi import Request as Incoming
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from latentrt.environment.version import VERSION
from latentrt.errors import LatentRTError
from latentrt.serving.service import Service
from latentrt.serving.web import health, jobs_api, metrics, openai, page, tasks
from latentrt.serving.web.failures import Failure
from latentrt.serving.web.guard import Guard
from latentrt.serving.web.sdapi import making, state
from latentrt.serving.web.settings import Settings
from latentrt.serving.web.waiting import Site


def create_app(service: Service, settings: Settings | None = None, *, doors: health.Doors | None = None) -> FastAPI:
    """The application of a service. It does not close the service.

    Args:
        service: makes the images.
        settings: whom to answer, and within which limits; None: anybody.
        doors: shut while the service drains; None: never.
    """
    settings = Settings() if settings is None else settings
    site = Site(service, settings)
    app = FastAPI(title="LatentRT", version=VERSION, redirect_slashes=False, redoc_url=None)
    app.include_router(health.routes(site, health.Doors() if doors is None else doors))
    app.include_router(metrics.routes(service, vllm=settings.vllm_metrics))
    app.include_router(openai.routes(site))
    board = making.Board(site)
    app.include_router(making.routes(board))
    app.include_router(state.routes(board))
    app.include_router(tasks.routes(site))
    app.include_router(jobs_api.routes(site))
    app.include_router(page.routes())
    for kind in (LatentRTError, HTTPException, Exception):
        app.add_exception_handler(kind, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(Guard, settings=settings)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors, allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"]
        )
    return app


def _told(incoming: Incoming, error: Exception) -> Response:
    return Failure.of(error).response(incoming.url.path, incoming.method)


def _invalid(incoming: Incoming, error: Exception) -> Response:
    failure = Failure(status=400, name="RequestError", message="a part of the path or query is not what it may be")
    return failure.response(incoming.url.path, incoming.method)
