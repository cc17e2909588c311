"""How an image was made, as the text that is kept inside its file."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from latentrt.environment.version import VERSION
from latentrt.images.framing import Size
from latentrt.images.start import Start, Text
from latentrt.lora import Lora
from latentrt.output.png import number, parameters_text
from latentrt.request import Guidance, Request

Extra = dict[str, str | int | float]

_STANDARD = ("steps", "sampler", "schedule", "guidance")
_APART = frozenset({*_STANDARD, "prompt", "negative", "seed", "images", "size", "output", "start", "control"})
_APART |= {"upscale", "skip_layers", "cache"}

_ELSEWHERE = ("photo", "mask", "x", "strength")
"""Fields of start values that are files, or have a name of the field."""


def image_parameters(
    request: Request, seeds: Sequence[int], *, model: str, size: Size, lora: Sequence[Lora] = ()
) -> list[str]:
    """The `parameters` text of each image of a request: everything that decides the picture, but for what is in files.

    Args:
        size: (width, height) of the finished images, said where the request has none of its own.
        lora: what the weights hold.
    """
    texts = zip(request.prompts, request.negatives, strict=True)
    extra = _settings(request) | _start(request, size) | _controls(request)
    if lora:
        extra["Lora"] = " ".join(f"{Path(each.path).stem}:{number(each.scale)}" for each in lora)
    standard: dict[str, Any] = {name: getattr(request, name) for name in _STANDARD}
    standard["guidance"] = Guidance.of(request.guidance).scale
    standard["size"] = request.size if request.size is not None and request.upscale is not None else size
    return [
        parameters_text(prompt, negative=negative, seed=seed, model=model, version=VERSION, extra=extra, **standard)
        for (prompt, negative), seed in zip((pair for pair in texts for _ in range(request.images)), seeds, strict=True)
    ]


def _settings(request: Request) -> Extra:
    """Every field that has no place of its own and is not as it is by itself."""
    found: Extra = {}
    for field in fields(Request):
        value = getattr(request, field.name)
        if field.name not in _APART and value != field.default:
            found[field.name.replace("_", " ").capitalize()] = _words(value)
    guidance, plain = Guidance.of(request.guidance), Guidance()
    if guidance.interval != plain.interval:
        found["Guidance interval"] = _words(guidance.interval)
    if guidance.rescale != plain.rescale:
        found["RescaleCFG"] = guidance.rescale
    if (skipped := request.skipping) is not None:
        found |= {"Skip layers": _words(tuple(skipped.layers)), "Skip guidance": skipped.scale}
        found["Skip range"] = _words(skipped.range)
    if (cache := request.caching) is not None:
        found["Step cache"] = cache.interval if cache.interval is not None else _words(cache.deep)
    if request.clip_skip:
        found["Clip skip"] = request.clip_skip + 1  # whose 1 is the last layer
    return found


def _start(request: Request, size: Size) -> Extra:
    """What it begins with and whether it is upscaled, by the names that other programs use."""
    found: Extra = {}
    if (strength := getattr(request.start, "strength", None)) is not None:
        found["Denoising strength"] = strength
    if not isinstance(request.start, Text):
        found["Start"] = " ".join([type(request.start).__name__, *_task(request.start)])
        if request.upscale is None and request.size != size:  # a part of the photo, or as large as the photo is
            found["Start size"] = "own" if request.size is None else "{}x{}".format(*request.size)
    if request.upscale is not None:
        found |= {"Hires upscale": request.upscale.factor, "Hires upscaler": request.upscale.space}
        found["Hires strength" if "Denoising strength" in found else "Denoising strength"] = request.upscale.strength
    return found


def _task(start: Start) -> list[str]:
    values = ((field.name, getattr(start, field.name)) for field in fields(start) if field.name not in _ELSEWHERE)
    return [f"{name}={number(value)}" for name, value in values if value is not None]


def _controls(request: Request) -> Extra:
    found = [
        f"{each.name} {number(each.scale)} {number(each.start)}-{number(each.end)}{' guess' if each.guess else ''}"
        for each in request.control
    ]
    return {"ControlNet": "; ".join(found)} if found else {}


def _words(value: Any) -> str | int | float:
    """A value of a request as the text holds it."""
    if isinstance(value, tuple):
        return " ".join(number(entry) for entry in value)
    return value  # type: ignore[no-any-return]
