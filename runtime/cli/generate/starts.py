"""Options of `latentrt generate` that say what a run begins with, and how large the result becomes."""

import argparse
from pathlib import Path

from latentrt.cli.generate.latents import read_latent
from latentrt.datasets.option_parsing import start_from, upscale_from
from latentrt.errors import RequestError
from latentrt.images.start import Latent, Start
from latentrt.images.upscale import SPACES, Upscale


def add_starts(parser: argparse.ArgumentParser) -> None:
    """Named as the fields of the start values (docs/tasks.md)."""
    group = parser.add_argument_group("start (default: from the text alone)")
    group.add_argument("--image", metavar="FILE", help="a photo to start from")
    group.add_argument("--strength", type=float, help="above 0, at most 1: how far from the photo (0.75; a part: 1)")
    group.add_argument("--mask", metavar="FILE", help="white where to paint; `alpha`: where the photo is transparent")
    group.add_argument("--margin", type=int, metavar="PX", help="work on the masked part alone, with so much around it")
    group.add_argument("--feather", type=int, metavar="PX", help="with --margin: pixels over which the part fades in")
    group.add_argument("--outpaint", type=_sides, metavar="L,R,T,B", help="continue the photo by so many pixels")
    group.add_argument("--overlap", type=int, metavar="PX", help="of the photo, repainted beside what is added (16)")
    group.add_argument("--latent", metavar="FILE", help="go on with a latent that --output-latent wrote (.npy)")
    group.add_argument(
        "--denoising-start", type=float, metavar="SHARE", help="of the steps, that the latent has behind it"
    )
    group = parser.add_argument_group("large images")
    group.add_argument("--upscale", type=float, metavar="FACTOR", help="enlarge the result, refine it in a second run")
    group.add_argument("--upscale-strength", type=float, metavar="SHARE", help="of the second run (0.5)")
    group.add_argument("--upscale-space", choices=SPACES, help="what is enlarged (latent)")
    group.add_argument(
        "--tile", type=_tile, default="auto", metavar="PX", help="decode in parts; or auto (default), none"
    )


def start_of(options: argparse.Namespace) -> Start:
    """The start value that the options ask for."""
    if options.latent is not None:
        for name in ("image", "mask", "margin", "feather", "outpaint", "overlap"):
            if getattr(options, name) is not None:
                raise RequestError(f"{option(name)} with --latent", expected="one of them")
        return Latent(
            read_latent(Path(options.latent)), denoising_start=options.denoising_start, strength=options.strength
        )
    if options.denoising_start is not None:
        raise RequestError("--denoising-start without a latent", expected="--latent FILE with it")
    return start_from(vars(options), spelling=option)


def upscale_of(options: argparse.Namespace) -> Upscale | None:
    """The second pass that the options ask for."""
    return upscale_from(vars(options), spelling=option)


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


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
