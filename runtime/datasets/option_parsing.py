"""Start values, upscaling and guidance by the names that the command line and files of prompts have for them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from latentrt.errors import RequestError
from latentrt.images.control import Control
from latentrt.images.start import TEXT, Image, Inpaint, Outpaint, Start
from latentrt.images.upscale import Upscale
from latentrt.request import Guidance, SkipLayers

Spelling = Callable[[str], str]
"""How the user writes a name."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_CONTROL = re.compile(
    rf"(?P<name>[^=]+)=(?P<image>.+?)(?::(?P<scale>{_NUMBER})(?::(?P<start>{_NUMBER})-(?P<end>{_NUMBER}))?)?"
)


def start_from(values: Mapping[str, Any], *, spelling: Spelling = str) -> Start:
    """The start value that `image`, `mask`, `margin`, `feather`, `outpaint`, `overlap` and `strength` ask for; None is
    not given."""
    image, mask, margin, outpaint, strength = map(values.get, ("image", "mask", "margin", "outpaint", "strength"))
    for name, needed in (("feather", "margin"), ("overlap", "outpaint")):
        if values.get(name) is not None and values.get(needed) is None:
            raise RequestError(f"{spelling(name)} without {spelling(needed)}", expected=f"{spelling(needed)} with it")
    if image is None:
        for name in ("mask", "margin", "outpaint", "strength"):
            if values.get(name) is not None:
                raise RequestError(f"{spelling(name)} without a photo", expected=f"{spelling('image')} FILE with it")
        return TEXT
    given: dict[str, Any] = {} if strength is None else {"strength": strength}
    if outpaint is not None:
        if mask is not None or margin is not None:
            raise RequestError(
                f"{spelling('outpaint')} with {spelling('mask')} or {spelling('margin')}",
                expected="one of them",
                hint="make two runs",
            )
        left, right, top, bottom = outpaint
        given |= {} if values.get("overlap") is None else {"overlap": values["overlap"]}
        return Outpaint(image, left=left, right=right, top=top, bottom=bottom, **given)
    if mask is not None:
        return Inpaint(image, None if mask == "alpha" else mask, margin=margin, feather=values.get("feather"), **given)
    if margin is not None:
        mask = spelling("mask")
        raise RequestError(f"{spelling('margin')} without a mask", expected=f"{mask} FILE, or {mask} alpha")
    return Image(image, **given)


def upscale_from(values: Mapping[str, Any], *, spelling: Spelling = str) -> Upscale | None:
    """The second pass that `upscale`, `upscale_strength` and `upscale_space` ask for; None is not given."""
    named = {"strength": values.get("upscale_strength"), "space": values.get("upscale_space")}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if values.get("upscale") is not None:
        return Upscale(values["upscale"], **given)
    if given:
        name, upscale = spelling(f"upscale_{next(iter(given))}"), spelling("upscale")
        raise RequestError(f"{name} without {upscale}", expected=f"{upscale} FACTOR with it")
    return None


def guidance_from(values: Mapping[str, Any], base: float | Guidance | None = None) -> Guidance:
    """What `guidance`, `guidance_interval` and `rescale` ask for; what is None is as in `base`."""
    named = {"guidance": "scale", "guidance_interval": "interval", "rescale": "rescale"}
    given = {field: values[name] for name, field in named.items() if values.get(name) is not None}
    return replace(Guidance.of(base), **given)


def skip_layers_from(
    values: Mapping[str, Any], base: SkipLayers | None = None, *, spelling: Spelling = str
) -> SkipLayers | None:
    """What `skip_layers`, `skip_guidance` and `skip_range` ask for; what is None is as in `base`, none is none."""
    named = {"skip_layers": "layers", "skip_guidance": "scale", "skip_range": "range"}
    given = {field: values[name] for name, field in named.items() if values.get(name) is not None}
    if not given:
        return base
    if not given.get("layers", True):
        return None
    if base is not None:
        return replace(base, **given)
    if "layers" not in given:
        other = next(name for name, field in named.items() if field in given)
        raise RequestError(f"{spelling(other)} without {spelling('skip_layers')}", expected="both")
    return SkipLayers(**given)


def control_from(text: str, *, guess: bool = False, root: Path = Path()) -> Control:
    """The control that `canny=edges.png:0.8:0-0.5` asks for; scale and part of the run may be left out.

    Args:
        guess: as `Control` takes it.
        root: what the picture's path is relative to.
    """
    match = _CONTROL.fullmatch(text)
    if match is None:
        raise RequestError(f"control '{text}'", expected="NAME=IMAGE, NAME=IMAGE:0.8 or NAME=IMAGE:0.8:0-0.5")
    part = {key: float(match[key]) for key in ("scale", "start", "end") if match[key] is not None}
    return Control(match["name"], str(root / match["image"]), **part, guess=guess)


def describe_start(start: Start) -> dict[str, Any]:
    """A start value as JSON values."""
    return {"task": type(start).__name__, **{field.name: getattr(start, field.name) for field in fields(start)}}
