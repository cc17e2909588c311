"""Our own small API, which the page uses: make a job, look at it, follow its events, cancel it, fetch its pictures."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from fastapi import Request as Incoming
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from latentrt.errors import RequestError
from latentrt.images.control import Control
from latentrt.images.edges import canny
from latentrt.images.start import STRENGTH, TEXT, Image, Inpaint, Start
from latentrt.images.upscale import FACTOR, SPACES, Upscale
from latentrt.lora.file import SCALE as LORA_SCALE
from latentrt.request import MOST_STEPS, SCALE
from latentrt.serving.jobs import Event, Job, JobState
from latentrt.serving.web.failures import Failure, Json, openai
from latentrt.serving.web.fields import SEED, Dictionary, Field, Given, Name, described, read
from latentrt.serving.web.pictures import MEDIA, base64_of, encoded, from_text
from latentrt.serving.web.waiting import Site, body_of, changes, event_record, event_stream
from latentrt.values import Flag, Listed, Number, OneOf, Size, Text, Whole

JOB = (
    Field("prompt", Text(), to="prompt", required=True),
    Field("negative", Text(), to="negative"),
    Field("model", Text()),
    Field("id", Name()),
    Field("seed", SEED, to="seed", neutral=(-1,)),
    Field("images", Whole(1, 16), to="images"),
    Field("size", Size(), to="size"),
    Field("steps", Whole(1, MOST_STEPS), to="steps"),
    Field("guidance", SCALE, to="guidance"),
    Field("sampler", Text(), to="sampler"),
    Field("schedule", Text(), to="schedule"),
    Field("clip_skip", Whole(0, 1000), to="clip_skip"),
    Field("eta", Number(0, 1), to="eta"),
    Field("start", Dictionary()),
    Field("controls", Listed(Dictionary(), "controls", most=16)),
    Field("loras", Listed(Dictionary(), "LoRAs", most=16)),
    Field("upscale", Dictionary()),
)
_START = (
    Field("image", Text(), required=True),
    Field("mask", Text()),
    Field("strength", STRENGTH),
    Field("margin", Whole(0, 1 << 15)),
    Field("feather", Whole(0, 1024)),
)
_CONTROL = (
    Field("name", Text(), required=True),
    Field("image", Text(), required=True),
    Field("scale", Number(-1000, 1000)),
    Field("start", Number(0, 1)),
    Field("end", Number(0, 1)),
    Field("guess", Flag()),
    Field("edges", Flag()),
)
_LORA = (Field("name", Text(), required=True), Field("scale", LORA_SCALE))
_UPSCALE = (Field("factor", FACTOR), Field("strength", STRENGTH), Field("space", OneOf(SPACES)))
_SHOW = (Field("format", OneOf(tuple(MEDIA))),)


def routes(site: Site) -> APIRouter:
    """The routes below `/v1/jobs`, and what a client has to know before."""
    router = APIRouter(tags=["jobs"])

    async def create(incoming: Incoming) -> Json:
        given = read(JOB, await body_of(incoming))
        start = await run_in_threadpool(_start, given.get("start"))
        loras = [(row["name"], row.get("scale", 1.0)) for row in (read(_LORA, row) for row in given.get("loras", ()))]
        control = await run_in_threadpool(_controls, given.get("controls", ()))
        upscale = Upscale(**read(_UPSCALE, given["upscale"])) if "upscale" in given else None
        name, model = given.get("id"), given.get("model")
        job = await site.submit(model, JOB, given, id=name, loras=loras, start=start, control=control, upscale=upscale)
        return Json(document(job), status_code=202, headers={"Location": f"/v1/jobs/{quote(job.id)}"})

    async def every() -> Json:
        return Json(await run_in_threadpool(_overview, site))

    async def look(name: str) -> Json:
        return Json(document(site.service.job(name)))

    async def cancel(name: str) -> Json:
        return Json(document(site.service.cancel(name)))

    async def events(name: str, incoming: Incoming) -> Response:
        return event_stream(_events(incoming, site.service.job(name)))

    async def image(name: str, index: int, incoming: Incoming) -> Response:
        form = read(_SHOW, incoming.query_params).get("format", "png")
        result = site.service.job(name).result
        if not 0 <= index < len(result.images):
            raise RequestError(f"no image {index}", expected=f"0 to {len(result.images) - 1}")
        text = result.parameters()[index]
        data = await run_in_threadpool(encoded, result.images[index], form, text=text)
        return Response(data, media_type=MEDIA[form])

    async def capabilities() -> Json:
        return Json({"models": [asdict(model) for model in site.models.values()]})

    router.add_api_route("/v1/jobs", create, methods=["POST"], status_code=202, openapi_extra=described(JOB))
    router.add_api_route("/v1/jobs", every, methods=["GET"])
    router.add_api_route("/v1/jobs/{name}", look, methods=["GET"])
    router.add_api_route("/v1/jobs/{name}", cancel, methods=["DELETE"])
    router.add_api_route("/v1/jobs/{name}/cancel", cancel, methods=["POST"])
    router.add_api_route("/v1/jobs/{name}/events", events, methods=["GET"])
    router.add_api_route("/v1/jobs/{name}/images/{index}", image, methods=["GET"])
    router.add_api_route("/v1/capabilities", capabilities, methods=["GET"])
    return router


def document(job: Job) -> dict[str, Any]:
    """What a client sees of a job."""
    request = job.request
    asked = {name: getattr(request, name) for name in ("steps", "sampler", "schedule", "clip_skip", "images")}
    found: dict[str, Any] = {
        **_line(job),
        "started": job.started,
        "finished": job.finished,
        "seeds": list(job.seeds),
        "request": asked | {"size": _size(job)},
        "images": [],
        "error": None,
    }
    if job.state is JobState.DONE:
        found["images"] = [f"/v1/jobs/{quote(job.id)}/images/{index}" for index in range(len(job.result.images))]
        found["parameters"] = job.result.parameters()
    elif job.error is not None:
        found["error"] = openai(Failure.of(job.error))["error"]
    return found


def _line(job: Job) -> dict[str, Any]:
    """A job in the list: nothing of what it is to show."""
    place = {} if job.replica is None else {"replica": job.replica}
    return place | {
        "id": job.id,
        "model": job.model,
        "state": str(job.state),
        "position": job.position,
        "done": job.done,
        "total": job.total,
        "created": job.created,
    }


def _size(job: Job) -> list[int] | None:
    return None if job.request.size is None else list(job.request.size)


def _overview(site: Site) -> dict[str, Any]:
    """The jobs that run or wait, the next ones first, and how many images of which are in the present engine calls."""
    jobs = [job for job in site.service.jobs() if not job.state.final]
    rows = [_line(job) | {"images": len(job.seeds), "size": _size(job)} for job in jobs]
    stats = site.service.stats()
    return {
        "jobs": sorted(rows, key=lambda row: (row["position"], row["created"])),
        "running": stats.running,
        "waiting": stats.queued,
        "in_flight": site.service.in_flight(),
        "images": stats.images,
    }


async def _events(incoming: Incoming, job: Job) -> AsyncIterator[bytes]:
    """Every change; previews of the images beside it where there are any. Who listens does not own the job."""
    async for event in changes(incoming, job, owned=False):
        row: dict[str, Any] = {"state": str(event.state), **_place(event)}
        if event.state.final:
            row = document(job)
        elif event.done and (previews := await run_in_threadpool(_previews, job)):
            row["previews"] = previews
        yield event_record(event.state, row)


def _previews(job: Job) -> list[str]:
    small = job.preview()
    pictures = () if small is None else (base64_of(encoded(image, "jpeg")) for image in small)
    return [f"data:image/jpeg;base64,{picture}" for picture in pictures]


def _place(event: Event) -> dict[str, int]:
    return {"position": event.position, "done": event.done, "total": event.total}


def _start(body: Given | None) -> Start:
    if body is None:
        return TEXT
    given = read(_START, body)
    photo = from_text(given["image"], "image")
    if "mask" not in given:
        return Image(photo, given.get("strength", 0.75))
    mask = from_text(given["mask"], "mask")
    margin, feather = given.get("margin"), given.get("feather")
    return Inpaint(photo, mask, given.get("strength", 1.0), margin=margin, feather=feather)


def _controls(rows: Sequence[Given]) -> list[Control]:
    """ControlNets and their pictures; of a picture that `edges` is said of, its edges."""
    found = []
    for row in rows:
        given = read(_CONTROL, row)
        picture = from_text(given["image"], "control's image")
        image = canny(picture) if given.get("edges", False) else picture
        options = {name: given[name] for name in ("scale", "start", "end", "guess") if name in given}
        found.append(Control(given["name"], image, **options))
    return found
