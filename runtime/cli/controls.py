"""Options of `latentrt generate` for ControlNets, and `latentrt outline`, which makes pictures for some of them."""

import argparse
from pathlib import Path

from latentrt.cli.command import Command
from latentrt.cli.console import Console
from latentrt.control import Control
from latentrt.errors import RequestError
from latentrt.outlines import canny, lineart
from latentrt.tasks import control_from

METHODS = {"canny": canny, "lineart": lineart}


def add_controls(parser: argparse.ArgumentParser) -> None:
    """Named as the fields of `Control` (docs/controlnet.md)."""
    group = parser.add_argument_group("control (the names are those of `latentrt inspect`)")
    group.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="NAME=IMAGE[:SCALE[:START-END]]",
        help="a picture for a ControlNet, how much it counts (1) and in which part of the run (0-1); may be repeated",
    )
    group.add_argument("--guess", action="store_true", help="controls lead without a prompt")


def controls_of(options: argparse.Namespace) -> tuple[Control, ...]:
    """The controls that the options ask for.

    Raises:
        RequestError: another form, or values out of range.
    """
    if options.guess and not options.control:
        raise RequestError("--guess without a control", expected="--control NAME=IMAGE with it")
    return tuple(control_from(text, guess=options.guess) for text in options.control)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", metavar="PHOTO", help="an image file")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a PNG file to write")
    parser.add_argument("--method", choices=sorted(METHODS), default="canny", help="edges (default), or dark strokes")


def _run(options: argparse.Namespace, console: Console) -> int:
    from PIL import Image

    if options.output.suffix.lower() != ".png" or not options.output.parent.is_dir():
        raise RequestError(f"output '{options.output}'", expected="a PNG file in a folder that is there")
    Image.fromarray(METHODS[options.method](options.photo)).save(options.output)
    console.result(str(options.output), {"path": str(options.output), "method": options.method})
    return 0


OUTLINE = Command(help="make of a photo what a ControlNet for lines reads", configure=_configure, run=_run)
