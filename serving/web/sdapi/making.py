"""AUTOMATIC1111's `/sdapi/v1`: txt2img, img2img, progress and interrupt.

Source: AUTOMATIC1111/stable-diffusion-webui, `modules/api/api.py`; what else its clients ask for is in `state`.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi import Request as Incoming
from numpy.typing import NDArray
from PIL import Image as Pillow
from starlette.concurrency import run_in_threadpool

from latentrt.environment.version import VERSION
from latentrt.images.start import TEXT, Image, Inpaint, Start
from latentrt.images.upscale import Upscale
from latentrt.serving.errors import JobCancelled
from latentrt.serving.jobs import Job, JobState
from latentrt.serving.model import ModelInfo
from latentrt.serving.web.failures import Json
from latentrt.serving.web.fields import Field, FieldError, Given, described, read
from latentrt.serving.web.pictures import base64_of, encoded, fitted, from_text
from latentrt.serving.web.sdapi.fields import (
    IMAGE_TO_IMAGE,
    TEXT_TO_IMAGE,
    controls_of,
    label_of,
    refused_script,
    sampler_of,
    settings_of,
    size_of,
    tags_of,
    upscale_of,
)
from latentrt.serving.web.waiting import Site, body_of, finished
from latentrt.values import Flag, Text

_STRENGTH = 0.75
_TASK = (Field("id_task", Text()), Field("live_preview", Flag()))


@dataclass(slots=True)
class Board:
    """The jobs of these routes that run or wait, oldest first, and the model that clients have chosen."""

    site: Site
    chosen: str | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    interrupted: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def model(self, given: Given | None = None) -> ModelInfo:
        """The model of a request, or the chosen one.

        Raises:
            FieldError: no such model.
        """
        name = (given or {}).get("sd_model_checkpoint", self.chosen)
        found = self.site.model(name)
        if found not in self.site.models:
            known = ", ".join(self.site.models)
            raise FieldError("sd_model_checkpoint", f"no model {found!r}", expected=f"one of {known}")
        return self.site.models[found]

    def current(self) -> Job | None:
        """The oldest that is not over."""
        return next((job for job in self.jobs.values() if not job.state.final), None)

    def interrupt(self) -> None:
        """Ends the current job; its request is answered with what there is."""
        job = self.current()
        if job is None:
            return
        preview = job.preview()
        if preview is None:
            width, height = job.request.size if job.request.size is not None else (64, 64)
            preview = np.zeros((len(job.seeds), height // 8, width // 8, 3), np.uint8)
        self.interrupted[job.id] = preview
        job.cancel()


def routes(board: Board) -> APIRouter:
    """The routes that make pictures."""
    router = APIRouter(tags=["AUTOMATIC1111"])

    async def txt2img(incoming: Incoming) -> Json:
        body = await body_of(incoming)
        given = read(TEXT_TO_IMAGE, body)
        refused_script(body)
        return await _made(incoming, board, body, given, upscale=upscale_of(given, body))

    async def img2img(incoming: Incoming) -> Json:
        body = await body_of(incoming)
        given = read(IMAGE_TO_IMAGE, body)
        refused_script(body)
        return await _made(incoming, board, body, given, photo=True)

    async def interrupt() -> Json:
        board.interrupt()
        return Json({})

    async def progress(skip_current_image: bool = False) -> Json:
        return Json(await run_in_threadpool(_progress, board.current(), not skip_current_image))

    async def task(incoming: Incoming) -> Json:
        given = read(_TASK, await body_of(incoming))
        return Json(await run_in_threadpool(_task, board, given.get("id_task", ""), given.get("live_preview", True)))

    async def pending() -> Json:
        waiting = [job.id for job in board.jobs.values() if job.state is JobState.QUEUED]
        return Json({"size": len(waiting), "tasks": waiting})

    router.add_api_route("/sdapi/v1/txt2img", txt2img, methods=["POST"], openapi_extra=described(TEXT_TO_IMAGE))
    router.add_api_route("/sdapi/v1/img2img", img2img, methods=["POST"], openapi_extra=described(IMAGE_TO_IMAGE))
    router.add_api_route("/sdapi/v1/interrupt", interrupt, methods=["POST"])
    router.add_api_route("/sdapi/v1/skip", interrupt, methods=["POST"])
    router.add_api_route("/sdapi/v1/progress", progress, methods=["GET"])
    router.add_api_route("/internal/progress", task, methods=["POST"], openapi_extra=described(_TASK))
    router.add_api_route("/internal/pendingTasks", pending, methods=["GET"])
    return router


async def _made(
    incoming: Incoming,
    board: Board,
    body: Mapping[str, Any],
    given: Given,
    *,
    upscale: Upscale | None = None,
    photo: bool = False,
) -> Json:
    settings = settings_of(given)
    model = board.model(settings)
    size = size_of(given, model)
    prompt, loras = tags_of(given.get("prompt", ""))
    negative, _ = tags_of(given.get("negative_prompt", ""))
    init = await run_in_threadpool(_init, given) if photo else None
    start = TEXT if init is None else await run_in_threadpool(_start, given, init, size or model.defaults.size)
    control = await run_in_threadpool(controls_of, given, size or model.defaults.size, model, init)
    job = await board.site.submit(
        model.name,
        TEXT_TO_IMAGE,
        given,
        id=given.get("force_task_id"),
        loras=loras,
        prompt=prompt,
        negative=negative,
        images=given.get("batch_size", 1) * given.get("n_iter", 1),
        size=size if init is None else size or model.defaults.size,
        clip_skip=settings.get("CLIP_stop_at_last_layers", 1) - 1,
        start=start,
        control=control,
        upscale=upscale,
        **sampler_of(given, model),
    )
    board.jobs[job.id] = job
    try:
        result = await finished(incoming, job)
        images, texts = result.images, result.parameters()
    except JobCancelled:
        if job.id not in board.interrupted:
            raise
        images, texts = _enlarged(board.interrupted[job.id], job), [""] * len(job.seeds)
    finally:
        board.jobs.pop(job.id, None)
        board.interrupted.pop(job.id, None)
    return Json(await run_in_threadpool(_answer, job, images, texts, body, given))


def _answer(
    job: Job, images: NDArray[np.uint8], texts: list[str], body: Mapping[str, Any], given: Given
) -> dict[str, Any]:
    sent = zip(images, texts, strict=True) if given.get("send_images", True) else ()
    files = [base64_of(encoded(image, "png", text=text or None)) for image, text in sent]
    return {"images": files, "parameters": dict(body), "info": json.dumps(_info(job, images, texts, given))}


def _info(job: Job, images: NDArray[np.uint8], texts: list[str], given: Given) -> dict[str, Any]:
    request, seeds = job.request, list(job.seeds)
    height, width = images.shape[1:3]
    return {
        "prompt": given.get("prompt", ""),
        "all_prompts": [given.get("prompt", "")] * len(seeds),
        "negative_prompt": given.get("negative_prompt", ""),
        "all_negative_prompts": [given.get("negative_prompt", "")] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": width,
        "height": height,
        "sampler_name": label_of(request.sampler),
        "cfg_scale": request.guidance,
        "steps": request.steps,
        "batch_size": given.get("batch_size", 1),
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": job.model,
        "sd_model_hash": "",
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": getattr(request.start, "strength", None),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.created)),
        "clip_skip": request.clip_skip + 1,
        "is_using_inpainting_conditioning": False,
        "version": f"LatentRT {VERSION}",
    }


def _enlarged(previews: NDArray[np.uint8], job: Job) -> NDArray[np.uint8]:
    """Previews at the size that was asked for."""
    height, width = previews.shape[1:3]
    size = job.request.size if job.request.size is not None else (width * 8, height * 8)
    rows = (Pillow.fromarray(preview).resize(size, Pillow.Resampling.BICUBIC) for preview in previews)
    return np.stack([np.asarray(row) for row in rows])


def _init(given: Given) -> Pillow.Image:
    images = given.get("init_images", ())
    if len(images) != 1:
        raise FieldError("init_images", f"{len(images)} init images", expected="one")
    return from_text(images[0], "init image")


def _start(given: Given, photo: Pillow.Image, size: tuple[int, int]) -> Start:
    mode, strength = given.get("resize_mode", 0), given.get("denoising_strength", _STRENGTH)
    photo = fitted(photo, size, mode)
    if "mask" not in given:
        return Image(photo, strength)
    mask = np.asarray(fitted(from_text(given["mask"], "mask").convert("L"), size, mode)) >= 128
    if given.get("inpainting_mask_invert", False):
        mask = ~mask
    part = given.get("inpaint_full_res", True)
    margin = given.get("inpaint_full_res_padding", 0) if part else max(size)
    return Inpaint(photo, mask, strength, margin=margin, feather=given.get("mask_blur"))


def _progress(job: Job | None, pictured: bool) -> dict[str, Any]:
    """AUTOMATIC1111's arithmetic: nothing is being made, or a hundredth and the share of the steps."""
    share, left, image = 0.0, 0.0, None
    if job is not None:
        share = min(1.0, 0.01 + job.done / max(1, job.total))
        elapsed = 0.0 if job.started is None else time.time() - job.started
        left = elapsed / share - elapsed
        preview = job.preview() if pictured else None
        image = None if preview is None else base64_of(encoded(preview[0], "png"))
    state = {
        "skipped": False,
        "interrupted": False,
        "stopping_generation": False,
        "job": "" if job is None else job.id,
        "job_count": 0 if job is None else 1,
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(None if job is None else job.created)),
        "job_no": 0,
        "sampling_step": 0 if job is None else job.done,
        "sampling_steps": 0 if job is None else job.total,
    }
    return {"progress": share, "eta_relative": left, "state": state, "current_image": image, "textinfo": None}


def _task(board: Board, name: str, pictured: bool) -> dict[str, Any]:
    job = board.jobs.get(name)
    found = _progress(job, pictured)
    image = found["current_image"]
    return {
        "active": job is not None and job.state is JobState.RUNNING,
        "queued": job is not None and job.state is JobState.QUEUED,
        "completed": job is None,
        "progress": found["progress"],
        "eta": found["eta_relative"],
        "live_preview": None if image is None else f"data:image/png;base64,{image}",
        "id_live_preview": -1 if job is None else job.done,
        "textinfo": None,
    }
