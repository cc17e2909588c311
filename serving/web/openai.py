"""OpenAI's Images API: generations, edits, variations and models, as the `openai` package asks for them.

The fields are those of the public reference of `/v1/images` and of the package's own types; `seed`, `negative_prompt`,
`num_inference_steps` and `guidance_scale` are what other servers add.
"""

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import APIRouter
from fastapi import Request as Incoming
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import Response

from latentrt.errors import LatentRTError
from latentrt.images.start import STRENGTH, Image, Inpaint
from latentrt.output.result import Result
from latentrt.request import MOST_STEPS, SCALE
from latentrt.serving.errors import UnknownModel
from latentrt.serving.jobs import Job
from latentrt.serving.web.failures import Failure, Json, openai
from latentrt.serving.web.fields import SEED, Field, FieldError, Filled, Given, SizeOrAuto, described, read
from latentrt.serving.web.pictures import MEDIA, base64_of, decoded, encoded, from_text
from latentrt.serving.web.waiting import Site, body_of, changes, event_record, event_stream, finished
from latentrt.values import Flag, OneOf, Text, Whole

if TYPE_CHECKING:
    from PIL import Image as Pillow

QUALITY: Mapping[str, float] = {"low": 0.5, "medium": 1.0, "standard": 1.0, "high": 1.5, "hd": 1.5}
"""The steps of a quality, as a share of the model's own."""

_OUTPUT = (
    Field("model", Text()),
    Field("n", Whole(1, 10), to="images"),
    Field("size", SizeOrAuto(), to="size"),
    Field("quality", OneOf((*QUALITY, "auto")), neutral=("auto",)),
    Field("background", OneOf(("opaque", "transparent")), neutral=("auto", "opaque"), refused="it makes no alpha"),
    Field("output_format", OneOf(tuple(MEDIA))),
    Field("output_compression", Whole(0, 100)),
    Field("response_format", OneOf(("b64_json", "url"))),
    Field("stream", Flag()),
    Field("partial_images", Whole(0, 3)),
    Field("seed", SEED, to="seed"),
    Field("negative_prompt", Text(), to="negative"),
    Field("num_inference_steps", Whole(1, MOST_STEPS), to="steps", aliases=("steps",)),
    Field("guidance_scale", SCALE, to="guidance", aliases=("true_cfg_scale",)),
)
GENERATIONS = (Field("prompt", Filled(), to="prompt", required=True), *_OUTPUT)
EDITS = (*GENERATIONS, Field("strength", STRENGTH))
VARIATIONS = (*_OUTPUT, Field("strength", STRENGTH))

_STRENGTH = 0.75
"""Of a picture that no mask keeps, where nobody says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How results are given back."""

    format: str = "png"
    compression: int | None = None
    quality: str = "auto"
    url: bool = False

    @classmethod
    def of(cls, given: Given) -> "Form":
        return cls(
            format=given.get("output_format", "png"),
            compression=given.get("output_compression"),
            quality=given.get("quality", "auto"),
            url=given.get("response_format") == "url",
        )

    def picture(self, image: Any, text: str | None = None) -> str:
        """A picture's file in base64."""
        return base64_of(encoded(image, self.format, quality=self.compression, text=text))

    def said(self, size: str) -> dict[str, str]:
        """What answers repeat of the request."""
        return {"background": "opaque", "output_format": self.format, "quality": self.quality, "size": size}


def routes(site: Site) -> APIRouter:
    """The routes below `/v1`."""
    router = APIRouter(tags=["OpenAI"])

    async def generations(incoming: Incoming) -> Response:
        given = read(GENERATIONS, await body_of(incoming))
        return await _answer(site, incoming, GENERATIONS, given, event="image_generation")

    async def edits(incoming: Incoming) -> Response:
        body, pictures, mask = await _parts(incoming)
        given = read(EDITS, body)
        photo = _only(pictures)
        strength = given.get("strength", _STRENGTH if mask is None else 1.0)
        if mask is None:
            start: Image | Inpaint = Image(photo, strength)
        else:
            exact = given.get("size") in (None, photo.size)
            start = Inpaint(photo, _repaint(mask), strength, margin=max(photo.size) if exact else None)
        return await _answer(site, incoming, EDITS, given, event="image_edit", start=start)

    async def variations(incoming: Incoming) -> Response:
        body, pictures, _ = await _parts(incoming)
        given = read(VARIATIONS, body)
        start = Image(_only(pictures), given.get("strength", _STRENGTH))
        return await _answer(site, incoming, VARIATIONS, given, event="image_edit", prompt="", start=start)

    async def models() -> Json:
        return Json({"object": "list", "data": [_model(name) for name in (*site.models, *site.settings.aliases)]})

    async def model(name: str) -> Json:
        known = name in site.models or name in site.settings.aliases
        if not known:
            raise UnknownModel(f"no model {name!r}", expected=f"one of {', '.join(site.models)}")
        return Json(_model(name))

    for path, route, table in (
        ("/v1/images/generations", generations, GENERATIONS),
        ("/v1/images/edits", edits, EDITS),
        ("/v1/images/variations", variations, VARIATIONS),
    ):
        media = "application/json" if route is generations else "multipart/form-data"
        router.add_api_route(path, route, methods=["POST"], openapi_extra=described(table, media))
        router.add_api_route(f"{path}/", route, methods=["POST"], include_in_schema=False)
    router.add_api_route("/v1/models", models, methods=["GET"])
    router.add_api_route("/v1/models/{name:path}", model, methods=["GET"])
    return router


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _BEGAN, "owned_by": "latentrt"}


_BEGAN = int(time.time())


async def _answer(
    site: Site, incoming: Incoming, table: Sequence[Field], given: Given, *, event: str, **others: Any
) -> Response:
    form = Form.of(given)
    model = site.model(given.get("model"))
    if form.quality in QUALITY and "num_inference_steps" not in given and model in site.models:
        steps = site.models[model].defaults.steps
        given = given | {"num_inference_steps": max(1, round(steps * QUALITY[form.quality]))}
    job = await site.submit(model, table, given, **others)
    if given.get("stream"):
        return event_stream(_events(incoming, job, form, event, given.get("partial_images", 0)))
    result = await finished(incoming, job)
    base = str(incoming.base_url)
    return Json(await run_in_threadpool(_document, result, job, form, base))


def _document(result: Result, job: Job, form: Form, base: str) -> dict[str, Any]:
    height, width = result.images.shape[1:3]
    rows = zip(result.images, result.seeds, result.parameters(), strict=True)
    data: list[dict[str, Any]] = []
    for index, (image, seed, text) in enumerate(rows):
        place = {"url": f"{base}v1/jobs/{job.id}/images/{index}?format={form.format}"} if form.url else None
        data.append((place or {"b64_json": form.picture(image, text)}) | {"seed": seed})
    return {"created": int(job.created), "data": data, **form.said(f"{width}x{height}")}


async def _events(incoming: Incoming, job: Job, form: Form, event: str, partials: int) -> AsyncIterator[bytes]:
    """Server-sent events: previews of the first image at even distances, then every image, or the error."""
    told = 0
    async for step in changes(incoming, job):
        due = told < partials and step.done >= max(1, step.total * (told + 1) // (partials + 1))
        if due and not step.state.final and (preview := await run_in_threadpool(job.preview)) is not None:
            said = form.said("{}x{}".format(*preview.shape[2:0:-1]))
            row = {"type": f"{event}.partial_image", "b64_json": await run_in_threadpool(form.picture, preview[0])}
            yield _record(row | {"partial_image_index": told, "created_at": int(job.created)} | said)
            told += 1
    try:
        document = await run_in_threadpool(_document, job.result, job, Form(format=form.format), "")
    except LatentRTError as error:  # the status is sent: it can be told here only
        yield _record({"type": "error", **openai(Failure.of(error))})
        return
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    usage_details = {"input_tokens_details": {"text_tokens": 0, "image_tokens": 0}}
    for row in document["data"]:
        head = {"type": f"{event}.completed", "created_at": document["created"], "usage": usage | usage_details}
        yield _record(head | row | {name: document[name] for name in form.said("")})
    yield b"data: [DONE]\n\n"


def _record(row: dict[str, Any]) -> bytes:
    return event_record(row["type"], row)


async def _parts(incoming: Incoming) -> tuple[dict[str, Any], list["Pillow.Image"], "Pillow.Image | None"]:
    """The fields of a form or of JSON, its pictures and its mask."""
    if incoming.headers.get("content-type", "").startswith("application/json"):
        body = await body_of(incoming)
        rows = body.get("images")
        texts = [row.get("image_url") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        mask = body.get("mask")
        text = mask.get("image_url") if isinstance(mask, dict) else None
        return (
            body,
            [await run_in_threadpool(from_text, text, "image") for text in texts[:2]],
            None if text is None else await run_in_threadpool(from_text, text, "mask"),
        )
    async with incoming.form(max_files=17, max_fields=100) as form:
        body = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
        pictures = [await value.read() for name, value in files if name in ("image", "image[]")]
        masks = [await value.read() for name, value in files if name == "mask"]
    return (
        body,
        [await run_in_threadpool(decoded, data, "image") for data in pictures[:2]],
        await run_in_threadpool(decoded, masks[0], "mask") if masks else None,
    )


def _only(pictures: Sequence["Pillow.Image"]) -> "Pillow.Image":
    if len(pictures) != 1:
        found = "no image" if not pictures else "several images"
        raise FieldError("image", found, expected="one image: these models begin with one picture")
    return pictures[0]


def _repaint(mask: "Pillow.Image") -> Any:
    """bool [H, W], where a mask is transparent."""
    if "A" not in mask.getbands():
        raise FieldError("mask", "the mask is nowhere transparent", expected="alpha 0 where to paint")
    return np.asarray(mask.getchannel("A")) < 128
