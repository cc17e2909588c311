"""Options of `latentrt generate` for ControlNets, and `latentrt outline`, which makes pictures for some of them."""

import argparse
from pathlib import Path

from latentrt.cli.command import Command
from latentrt.cli.console import Console
from latentrt.cli.generate.pictures import check_folder
from latentrt.datasets.option_parsing import control_from
from latentrt.errors import RequestError
from latentrt.images.control import Control
from latentrt.images.edges import canny, lineart
from latentrt.output.picture_file import check_picture, write_picture

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
    """The controls that the options ask for."""
    if options.guess and not options.control:
        raise RequestError("--guess without a control", expected="--control NAME=IMAGE with it")
    return tuple(control_from(text, guess=options.guess) for text in options.control)


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", metavar="PHOTO", help="an image file")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="a .png file to write, or .jpg, .webp"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    parser.add_argument("--method", choices=sorted(METHODS), default="canny", help="edges (default), or dark strokes")


def _run(options: argparse.Namespace, console: Console) -> int:
    check_picture(options.output, overwrite=options.overwrite)
    check_folder(options.output.parent)
    replaced = options.output.exists()
    write_picture(options.output, METHODS[options.method](options.photo), overwrite=options.overwrite)
    console.result(str(options.output), {"path": str(options.output), "method": options.method, "replaced": replaced})
    return 0


OUTLINE = Command(help="make of a photo what a ControlNet for lines reads", configure=_configure, run=_run)
