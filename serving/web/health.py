"""What probes ask: whether the process lives, and whether it takes requests."""

from fastapi import APIRouter

from latentrt.environment.version import VERSION
from latentrt.serving.errors import UnknownModel
from latentrt.serving.web.failures import Json
from latentrt.serving.web.waiting import Site

LIVE = ("/health", "/healthz", "/livez", "/v2/health/live", "/ping", "/internal/ping")
READY = ("/ready", "/readyz", "/v2/health/ready")


class Doors:
    """Whether new requests are taken."""

    def __init__(self) -> None:
        self.open = True


def routes(site: Site, doors: Doors) -> APIRouter:
    """The probes. One is live as long as it answers, and ready when a model is, until it drains."""
    router = APIRouter(tags=["health"])

    def live() -> Json:
        stats = site.service.stats()
        unready = sorted(site.service.unready)
        status = "draining" if not doors.open else "loading" if unready else "ok"
        found = {"status": status, "unready": unready, "queued": stats.queued, "running": stats.running}
        return Json(found | {"faults": stats.faults, "restarts": stats.restarts})

    def ready() -> Json:
        now = doors.open and len(site.service.unready) < len(site.models)
        return Json({"ready": now}, status_code=200 if now else 503)

    def model_ready(name: str) -> Json:
        if name not in site.models:
            raise UnknownModel(f"no model {name!r}", expected=f"one of {', '.join(site.models)}")
        now = doors.open and name not in site.service.unready
        return Json({"name": name, "ready": now}, status_code=200 if now else 503)

    def version() -> Json:
        return Json({"version": VERSION})

    for paths, route in ((LIVE, live), (READY, ready)):
        for path in paths:
            router.add_api_route(path, route, methods=["GET"], include_in_schema=path == paths[0])
            router.add_api_route(path, route, methods=["HEAD"], include_in_schema=False)
    router.add_api_route("/v2/models/{name}/ready", model_ready, methods=["GET"])
    router.add_api_route("/version", version, methods=["GET"])
    return router
