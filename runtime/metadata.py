"""How an image was made, as the text that is kept inside its PNG."""

from collections.abc import Sequence
from typing import Any

import latentrt
from latentrt.lora import Lora
from latentrt.png import parameters_text
from latentrt.request import Request


def image_parameters(request: Request, seeds: Sequence[int], *, model: str, lora: Sequence[Lora] = ()) -> list[str]:
    """The `parameters` text of each image of a request whose defaults and final size are filled in."""
    texts = zip(request.prompts, request.negatives, strict=True)
    extra: dict[str, str | int | float] = {"RescaleCFG": request.rescale} if request.rescale else {}
    if request.clip_skip:
        extra["Clip skip"] = request.clip_skip + 1  # whose 1 is the last layer
    if request.guidance_interval != (0, 1):
        extra["Guidance interval"] = "{} {}".format(*request.guidance_interval)
    if request.eta is not None:
        extra["Eta"] = request.eta
    if request.skip_layers:
        extra |= {"Skip layers": " ".join(map(str, request.skip_layers)), "Skip guidance": request.skip_guidance}
    extra |= _start(request) | _controls(request)
    if lora:
        extra["Lora"] = " ".join(map(str, lora))
    fields: Any = {name: getattr(request, name) for name in ("steps", "sampler", "schedule", "guidance", "size")}
    return [
        parameters_text(
            prompt, negative=negative, seed=seed, model=model, version=latentrt.__version__, extra=extra, **fields
        )
        for (prompt, negative), seed in zip((pair for pair in texts for _ in range(request.images)), seeds, strict=True)
    ]


def _start(request: Request) -> dict[str, str | int | float]:
    """What it begins with and whether it is upscaled, by the names that other programs use."""
    found: dict[str, str | int | float] = {}
    if (strength := getattr(request.start, "strength", None)) is not None:
        found["Denoising strength"] = strength
    if request.upscale is not None:
        found |= {"Hires upscale": request.upscale.factor, "Hires upscaler": request.upscale.space}
        found["Denoising strength"] = request.upscale.strength
    return found


def _controls(request: Request) -> dict[str, str]:
    found = [f"{c.name} {c.scale:g} {c.start:g}-{c.end:g}{' guess' if c.guess else ''}" for c in request.control]
    return {"ControlNet": "; ".join(found)} if found else {}
