"""Options of `latentrt generate` that say what a run begins with, and how large the result becomes."""

import argparse
from dataclasses import fields
from typing import Any

from latentrt.errors import RequestError
from latentrt.request import Request
from latentrt.start import TEXT, Image, Inpaint, Outpaint, Start
from latentrt.upscale import SPACES, Upscale


def add_starts(parser: argparse.ArgumentParser) -> None:
    """Named as the fields of the start values (docs/tasks.md)."""
    group = parser.add_argument_group("start (default: from the text alone)")
    group.add_argument("--image", metavar="FILE", help="a photo to start from")
    group.add_argument("--strength", type=float, help="above 0, at most 1: how far from the photo (0.75; a part: 1)")
    group.add_argument("--mask", metavar="FILE", help="white where to paint; `alpha`: where the photo is transparent")
    group.add_argument("--margin", type=int, metavar="PX", help="work on the masked part alone, with so much around it")
    group.add_argument("--outpaint", type=_sides, metavar="L,R,T,B", help="continue the photo by so many pixels")
    group = parser.add_argument_group("large images")
    group.add_argument("--upscale", type=float, metavar="FACTOR", help="enlarge the result, refine it in a second run")
    group.add_argument("--upscale-strength", type=float, metavar="SHARE", help="of the second run (0.5)")
    group.add_argument("--upscale-space", choices=SPACES, help="what is enlarged (latent)")
    group.add_argument(
        "--tile", type=_tile, default="auto", metavar="PX", help="decode in parts; or auto (default), none"
    )


def start_of(options: argparse.Namespace) -> Start:
    """The start value that the options ask for.

    Raises:
        RequestError: options that do not go together, or values out of range.
    """
    if options.image is None:
        for name in ("mask", "margin", "outpaint", "strength"):
            if getattr(options, name) is not None:
                raise RequestError(f"--{name} without a photo", expected="--image FILE with it")
        return TEXT
    given: dict[str, Any] = {} if options.strength is None else {"strength": options.strength}
    if options.outpaint is not None:
        if options.mask is not None or options.margin is not None:
            raise RequestError("--outpaint with --mask or --margin", expected="one of them", hint="make two runs")
        left, right, top, bottom = options.outpaint
        return Outpaint(options.image, left=left, right=right, top=top, bottom=bottom, **given)
    if options.mask is not None:
        mask = None if options.mask == "alpha" else options.mask
        return Inpaint(options.image, mask, margin=options.margin, **given)
    if options.margin is not None:
        raise RequestError("--margin without a mask", expected="--mask FILE, or --mask alpha")
    return Image(options.image, **given)


def upscale_of(options: argparse.Namespace) -> Upscale | None:
    """The second pass that the options ask for.

    Raises:
        RequestError: as `start_of`.
    """
    named = {"strength": options.upscale_strength, "space": options.upscale_space}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if options.upscale is not None:
        return Upscale(options.upscale, **given)
    if given:
        raise RequestError(f"--upscale-{next(iter(given))} without --upscale", expected="--upscale FACTOR with it")
    return None


def describe_start(start: Start) -> dict[str, Any]:
    """A start value as JSON values."""
    values = {field.name: getattr(start, field.name) for field in fields(start)}
    return {"task": type(start).__name__, **values}


def start_metadata(request: Request) -> dict[str, str | int | float]:
    """What the `parameters` text says of it, by the names that other programs use."""
    found: dict[str, str | int | float] = {}
    if (strength := getattr(request.start, "strength", None)) is not None:
        found["Denoising strength"] = strength
    if request.upscale is not None:
        found |= {"Hires upscale": request.upscale.factor, "Hires upscaler": request.upscale.space}
        found["Denoising strength"] = request.upscale.strength
    return found


def _sides(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise RequestError(f"outpaint '{text}'", expected="LEFT,RIGHT,TOP,BOTTOM in pixels, such as 0,128,0,0")
    return tuple(int(part) for part in parts)


def _tile(text: str) -> int | str | None:
    if text in ("auto", "none"):
        return None if text == "none" else text
    if not text.isdecimal():
        raise RequestError(f"tile '{text}'", expected="a number of pixels, auto or none")
    return int(text)
