"""Our own small API, which the page uses: make a job, look at it, follow its events, cancel it, fetch its pictures."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi import Request as Incoming
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from latentrt.errors import RequestError
from latentrt.images.start import STRENGTH, TEXT, Image, Inpaint, Start
from latentrt.lora.file import SCALE as LORA_SCALE
from latentrt.request import MOST_STEPS, SCALE
from latentrt.serving.jobs import Event, Job, JobState
from latentrt.serving.web.failures import Failure, Json, openai
from latentrt.serving.web.fields import SEED, Dictionary, Field, Filled, Given, read, schema
from latentrt.serving.web.pictures import MEDIA, base64_of, encoded, from_text
from latentrt.serving.web.waiting import Site, body_of, changes, event_record, event_stream
from latentrt.values import Listed, Number, OneOf, Size, Text, Whole

JOB = (
    Field("prompt", Text(), to="prompt", required=True),
    Field("negative", Text(), to="negative"),
    Field("model", Text()),
    Field("id", Filled()),
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
    Field("loras", Listed(Dictionary(), "LoRAs", most=16)),
)
_START = (
    Field("image", Text(), required=True),
    Field("mask", Text()),
    Field("strength", STRENGTH),
    Field("margin", Whole(0, 1 << 15)),
)
_LORA = (Field("name", Text(), required=True), Field("scale", LORA_SCALE))
_FORMAT = (Field("format", OneOf(tuple(MEDIA))),)


def routes(site: Site) -> APIRouter:
    """The routes below `/v1/jobs`, and what a client has to know before."""
    router = APIRouter(tags=["jobs"])

    async def create(incoming: Incoming) -> Json:
        given = read(JOB, await body_of(incoming))
        start = await run_in_threadpool(_start, given.get("start"))
        loras = [(row["name"], row.get("scale", 1.0)) for row in (read(_LORA, row) for row in given.get("loras", ()))]
        job = await site.submit(given.get("model"), JOB, given, id=given.get("id"), loras=loras, start=start)
        return Json(document(job), status_code=202, headers={"Location": f"/v1/jobs/{job.id}"})

    async def look(name: str) -> Json:
        return Json(document(site.service.job(name)))

    async def cancel(name: str) -> Json:
        return Json(document(site.service.cancel(name)))

    async def events(name: str, incoming: Incoming) -> Response:
        return event_stream(_events(incoming, site.service.job(name)))

    async def image(name: str, index: int, incoming: Incoming) -> Response:
        form = read(_FORMAT, incoming.query_params).get("format", "png")
        result = site.service.job(name).result
        if not 0 <= index < len(result.images):
            raise RequestError(f"no image {index}", expected=f"0 to {len(result.images) - 1}")
        text = result.parameters()[index]
        data = await run_in_threadpool(encoded, result.images[index], form, text=text)
        return Response(data, media_type=MEDIA[form])

    async def capabilities() -> Json:
        return Json({"models": [asdict(model) for model in site.models.values()]})

    described = {"requestBody": {"content": {"application/json": {"schema": schema(JOB)}}}}
    router.add_api_route("/v1/jobs", create, methods=["POST"], status_code=202, openapi_extra=described)
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
        "id": job.id,
        "model": job.model,
        "state": str(job.state),
        "position": job.position,
        "done": job.done,
        "total": job.total,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "seeds": list(job.seeds),
        "request": asked | {"size": list(request.size) if request.size is not None else None},
        "images": [],
        "error": None,
    }
    if job.state is JobState.DONE:
        found["images"] = [f"/v1/jobs/{job.id}/images/{index}" for index in range(len(job.result.images))]
        found["parameters"] = job.result.parameters()
    elif job.error is not None:
        found["error"] = openai(Failure.of(job.error))["error"]
    return found


async def _events(incoming: Incoming, job: Job) -> AsyncIterator[bytes]:
    """Every change; a preview beside it where there is one. Who listens does not own the job."""
    async for event in changes(incoming, job, owned=False):
        row: dict[str, Any] = {"state": str(event.state), **_place(event)}
        if event.state.final:
            row = document(job)
        elif event.done and (preview := await run_in_threadpool(job.preview)) is not None:
            data = await run_in_threadpool(encoded, preview[0], "jpeg")
            row["preview"] = f"data:image/jpeg;base64,{base64_of(data)}"
        yield event_record(event.state, row)


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
    return Inpaint(photo, mask, given.get("strength", 1.0), margin=given.get("margin"))
