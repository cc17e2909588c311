"""Hugging Face's tasks text-to-image and image-to-image, as `huggingface_hub.InferenceClient` asks an endpoint.

Source: `@huggingface/tasks`, the specifications of both tasks.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi import Request as Incoming
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from latentrt.images.start import STRENGTH, TEXT, Image
from latentrt.request import MOST_STEPS, SCALE
from latentrt.samplers.noise_schedule import SAMPLER_OF_SCHEDULER
from latentrt.serving.web.fields import SEED, Dictionary, Field, FieldError, Filled, Given, described, read
from latentrt.serving.web.pictures import MEDIA, decoded, encoded, from_text, looks_like_picture
from latentrt.serving.web.waiting import Site, body_of, finished
from latentrt.values import Text, Whole

_SIDE = Whole(1, 1 << 15)
_BODY = (Field("inputs", Filled(), required=True), Field("parameters", Dictionary()))
PARAMETERS = (
    Field("prompt", Text(), to="prompt"),
    Field("negative_prompt", Text(), to="negative"),
    Field("guidance_scale", SCALE, to="guidance"),
    Field("num_inference_steps", Whole(1, MOST_STEPS), to="steps"),
    Field("seed", SEED, to="seed", neutral=(-1,)),
    Field("width", _SIDE),
    Field("height", _SIDE),
    Field("target_size", Dictionary()),
    Field("scheduler", Text()),
    Field("strength", STRENGTH),
)
_SIDES = (Field("width", _SIDE, required=True), Field("height", _SIDE, required=True))
SCHEDULERS: Mapping[str, str] = {
    name: SAMPLER_OF_SCHEDULER[name]
    for name in (
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DDIMScheduler",
        "DDPMScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "LCMScheduler",
        "TCDScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
    )
}
"""Samplers by the classes of diffusers that they equal."""


def routes(site: Site) -> APIRouter:
    """`/` for the first model, `/models/NAME` for each."""
    router = APIRouter(tags=["Hugging Face"])

    async def root(incoming: Incoming) -> Response:
        return await _made(site, incoming, None)

    async def named(name: str, incoming: Incoming) -> Response:
        return await _made(site, incoming, name)

    router.add_api_route("/", root, methods=["POST"], openapi_extra=described(_BODY))
    router.add_api_route("/models/{name:path}", named, methods=["POST"], openapi_extra=described(_BODY))
    return router


async def _made(site: Site, incoming: Incoming, model: str | None) -> Response:
    given: Given = {}
    media = incoming.headers.get("content-type", "").split(";")[0]
    # The client names no type where it sends a file as it is.
    spelled = media == "application/json" or (await incoming.body()).lstrip()[:1] == b"{"
    start: Any = TEXT
    if spelled:
        body = read(_BODY, await body_of(incoming))
        given = read(PARAMETERS, body.get("parameters", {}))
        if looks_like_picture(body["inputs"]):
            photo = await run_in_threadpool(from_text, body["inputs"], "image")
            start = Image(photo, given.get("strength", 0.75))
        else:
            given["prompt"] = body["inputs"]
    else:
        start = Image(await run_in_threadpool(decoded, await incoming.body(), "image"))
    form = _form(incoming.headers.get("accept", ""))
    given = {"prompt": ""} | given
    size, sampler = _size(site, model, given), _sampler(given)
    job = await site.submit(model, PARAMETERS, given, start=start, size=size, sampler=sampler)
    result = await finished(incoming, job)
    text = result.parameters()[0]
    return Response(await run_in_threadpool(encoded, result.images[0], form, text=text), media_type=MEDIA[form])


def _size(site: Site, model: str | None, given: Given) -> tuple[int, int] | None:
    if "target_size" in given:
        sides = read(_SIDES, given["target_size"])
        return sides["width"], sides["height"]
    known = site.models.get(site.model(model))
    if ("width" not in given and "height" not in given) or known is None:
        return None
    width, height = known.defaults.size
    return given.get("width", width), given.get("height", height)


def _sampler(given: Given) -> str | None:
    name = given.get("scheduler")
    if name is None:
        return None
    if name not in SCHEDULERS and name not in SCHEDULERS.values():
        raise FieldError("scheduler", f"no scheduler {name!r}", expected=f"one of {', '.join(SCHEDULERS)}")
    return SCHEDULERS.get(name, name)


def _form(accept: str) -> str:
    """The first format that a client takes; PNG where it takes any."""
    wanted = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    return next((form for media in wanted for form, own in MEDIA.items() if own == media), "png")
