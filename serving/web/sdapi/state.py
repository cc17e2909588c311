"""What else AUTOMATIC1111's clients ask for: lists, options, and pictures looked at and enlarged."""

import io
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi import Request as Incoming
from PIL import Image as Pillow
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from latentrt.errors import RequestError
from latentrt.images.edges import canny
from latentrt.serving.web.failures import Json
from latentrt.serving.web.fields import NOT_HERE, AnyValue, Dictionary, Field, FieldError, Given, described, read
from latentrt.serving.web.pictures import MOST_PIXELS, base64_of, bytes_of, decoded, encoded, fitted, from_text
from latentrt.serving.web.sdapi.fields import SCHEDULERS, parsed, samplers_of, scripts_of
from latentrt.serving.web.sdapi.making import Board
from latentrt.serving.web.waiting import body_of
from latentrt.values import Listed, Number, Text, Whole

_FILTERS = {"lanczos": Pillow.Resampling.LANCZOS, "nearest": Pillow.Resampling.NEAREST}
_UPSCALERS = ("None", "Lanczos", "Nearest")
_EXTRA = (
    Field("resize_mode", Whole(0, 1)),
    Field("upscaling_resize", Number(0, 64, above=True)),
    Field("upscaling_resize_w", Whole(1, 1 << 15)),
    Field("upscaling_resize_h", Whole(1, 1 << 15)),
    Field("upscaler_1", Text(), neutral=("", "None")),
    Field("extras_upscaler_2_visibility", Number(0, 1), neutral=(0,), refused=NOT_HERE),
    Field("gfpgan_visibility", Number(0, 1), neutral=(0,), refused=NOT_HERE),
    Field("codeformer_visibility", Number(0, 1), neutral=(0,), refused=NOT_HERE),
)
_IMAGE = (Field("image", Text(), required=True),)
_IMAGES = (Field("imageList", Listed(Dictionary(), "images", most=16), required=True),)
_DETECT = (
    Field("controlnet_module", Text()),
    Field("controlnet_input_images", Listed(AnyValue(), "images", most=16), aliases=("controlnet_images",)),
    Field("controlnet_threshold_a", Number(-1, 1e6), neutral=(-1,)),
    Field("controlnet_threshold_b", Number(-1, 1e6), neutral=(-1,)),
)
_CHOSEN = (Field("sd_model_checkpoint", Text(), neutral=("",)),)
_EMPTY = (
    "hypernetworks",
    "face-restorers",
    "realesrgan-models",
    "prompt-styles",
    "script-info",
    "sd-vae",
    "sd-modules",
)
_DONE = (
    "refresh-checkpoints",
    "refresh-loras",
    "refresh-vae",
    "refresh-embeddings",
    "unload-checkpoint",
    "reload-checkpoint",
)


def routes(board: Board) -> APIRouter:
    """The lists, the options, and what pictures are asked about."""
    router = APIRouter(tags=["AUTOMATIC1111"])
    for name, answer in _answers(board).items():
        router.add_api_route(f"/sdapi/v1/{name}", _giving(answer), methods=["GET"])
    for name in _DONE:
        router.add_api_route(f"/sdapi/v1/{name}", _giving(dict), methods=["POST"])

    async def choose(incoming: Incoming) -> Json:
        chosen = read(_CHOSEN, await body_of(incoming)).get("sd_model_checkpoint")
        if chosen is not None:
            board.chosen = board.model({"sd_model_checkpoint": chosen}).name
        return Json(None)

    async def png_info(incoming: Incoming) -> Json:
        data = bytes_of(read(_IMAGE, await body_of(incoming))["image"], "image")
        return Json(await run_in_threadpool(_png_info, data))

    async def extra(incoming: Incoming) -> Json:
        body = await body_of(incoming)
        image = await run_in_threadpool(from_text, read(_IMAGE, body)["image"], "image")
        return Json({"html_info": "", "image": await run_in_threadpool(_enlarged, image, read(_EXTRA, body))})

    async def extras(incoming: Incoming) -> Json:
        body = await body_of(incoming)
        given, rows = read(_EXTRA, body), read(_IMAGES, body)["imageList"]
        images = [await run_in_threadpool(from_text, row.get("data"), "image") for row in rows]
        return Json({"html_info": "", "images": [await run_in_threadpool(_enlarged, image, given) for image in images]})

    async def detect(incoming: Incoming) -> Json:
        return Json(await run_in_threadpool(_detected, read(_DETECT, await body_of(incoming))))

    async def interrogate() -> Json:
        raise HTTPException(404, "pictures are not described here")

    posts: Mapping[str, tuple[Callable[..., Any], tuple[Field, ...]]] = {
        "/sdapi/v1/options": (choose, _CHOSEN),
        "/sdapi/v1/png-info": (png_info, _IMAGE),
        "/sdapi/v1/extra-single-image": (extra, (*_IMAGE, *_EXTRA)),
        "/sdapi/v1/extra-batch-images": (extras, (*_IMAGES, *_EXTRA)),
        "/sdapi/v1/interrogate": (interrogate, _IMAGE),
        "/controlnet/detect": (detect, _DETECT),
    }
    for path, (route, table) in posts.items():
        router.add_api_route(path, route, methods=["POST"], openapi_extra=described(table))
    controls: Mapping[str, Callable[[], Any]] = {
        "version": lambda: {"version": 2},
        "model_list": lambda: {"model_list": list(board.model().controls)},
        "module_list": lambda: {"module_list": ["none", "canny"], "module_detail": {}},
    }
    for name, answer in controls.items():
        router.add_api_route(f"/controlnet/{name}", _giving(answer), methods=["GET"])
    return router


def _giving(answer: Callable[[], Any]) -> Callable[[], Json]:
    def route() -> Json:
        return Json(answer())

    return route


def _answers(board: Board) -> dict[str, Callable[[], Any]]:
    """What each list holds."""
    return {
        "options": lambda: _options(board),
        "sd-models": lambda: [_checkpoint(name) for name in board.site.models],
        "samplers": lambda: [
            {"name": row.label, "aliases": list(row.aliases), "options": {}} for row in samplers_of(board.model())
        ],
        "schedulers": lambda: [
            {"name": ours, "label": label, "aliases": [label], "default_rho": -1, "need_inner_model": False}
            for label, ours in SCHEDULERS.items()
        ],
        "upscalers": lambda: [
            {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4} for name in _UPSCALERS
        ],
        "latent-upscale-modes": lambda: [{"name": "Latent"}],
        "loras": lambda: [{"name": name, "alias": name, "path": name, "metadata": {}} for name in board.model().loras],
        "embeddings": lambda: {"loaded": {}, "skipped": {}},
        "scripts": lambda: dict.fromkeys(("txt2img", "img2img"), scripts_of(board.model())),
        "memory": lambda: {"ram": _memory(), "cuda": {"error": "unavailable"}},
        "cmd-flags": dict,
        **dict.fromkeys(_EMPTY, list),
    }


def _options(board: Board) -> dict[str, Any]:
    return {
        "sd_model_checkpoint": board.model().name,
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
        "live_previews_enable": True,
    }


def _checkpoint(name: str) -> dict[str, Any]:
    return {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}


def _memory() -> dict[str, int]:
    page, pages, free = (os.sysconf(name) for name in ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    return {"free": page * free, "used": page * (pages - free), "total": page * pages}


def _png_info(data: bytes) -> dict[str, Any]:
    decoded(data, "image")  # within limits, and whole
    with Pillow.open(io.BytesIO(data)) as image:
        image.load()
        text = str(image.info.get("parameters", ""))
    return {"info": text, "items": {"parameters": text} if text else {}, "parameters": parsed(text) if text else {}}


def _enlarged(image: Pillow.Image, given: Given) -> str:
    """The picture at its new size, in base64; without an upscaler it stays as it is."""
    name = given.get("upscaler_1")
    if name is not None:
        if name.lower() not in _FILTERS:
            raise FieldError("upscaler_1", f"no upscaler {name!r}", expected=" or ".join(_UPSCALERS))
        if given.get("resize_mode", 0) == 1:
            size = given.get("upscaling_resize_w", 512), given.get("upscaling_resize_h", 512)
        else:
            factor = given.get("upscaling_resize", 2.0)
            size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
        if size[0] * size[1] > MOST_PIXELS:
            raise RequestError(f"an image of {size[0]}x{size[1]} px", expected=f"at most {MOST_PIXELS} pixels")
        cropped = fitted(image, size, 1) if given.get("resize_mode", 0) == 1 else image
        image = cropped.resize(size, _FILTERS[name.lower()])
    return base64_of(encoded(np.asarray(image.convert("RGB")), "png"))


def _detected(given: Given) -> dict[str, Any]:
    module, pictures = given.get("controlnet_module", "none"), given.get("controlnet_input_images", [])
    if module not in ("none", "canny"):
        raise FieldError("controlnet_module", f"no module {module!r}", expected="none or canny")
    images = [from_text(picture, "image") for picture in pictures]
    low, high = given.get("controlnet_threshold_a", 100.0), given.get("controlnet_threshold_b", 200.0)
    made = [
        canny(each, low=low, high=high) if module == "canny" else np.asarray(each.convert("RGB")) for each in images
    ]
    return {"images": [base64_of(encoded(each, "png")) for each in made], "info": "Success"}
