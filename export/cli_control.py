"""`latentrt control`: ControlNets added to a bundle; and the option of `latentrt export` for them."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentrt.bundle import Bundle
from latentrt.cli.command import Command, Requirement
from latentrt.cli.console import Console, megabytes
from latentrt.errors import RequestError
from latentrt.export.cli_progress import ComponentBar
from latentrt.export.quiet import quiet

if TYPE_CHECKING:
    from latentrt.export.controlnets import ControlNet

EXTRA = Requirement(extra="export", packages=("torch", "diffusers", "transformers", "onnx", "onnxscript"))


def opened_controlnets(given: Sequence[str]) -> "list[ControlNet]":
    """The ControlNets of options such as `canny=FOLDER`.

    Raises:
        RequestError: another form, or a name given twice.
        CheckpointError: a folder that holds none.
    """
    from latentrt.export.controlnets import ControlNet

    found: list[ControlNet] = []
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not folder:
            raise RequestError(f"ControlNet '{text}'", expected="NAME=FOLDER, such as canny=controlnets/canny")
        if name in [net.name for net in found]:
            raise RequestError(f"two ControlNets of the name '{name}'", expected="a name for each")
        found.append(ControlNet.open(name, Path(folder)))
    return found


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory made by `latentrt export`")
    parser.add_argument("controlnets", nargs="+", metavar="NAME=FOLDER", help="ControlNets in diffusers' layout")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="the directory to make")
    parser.add_argument("--no-check", action="store_true", help="do not compare each ControlNet with torch")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle that is there")


def run(options: argparse.Namespace, console: Console) -> int:
    began = time.perf_counter()
    source = Bundle.open(options.bundle)
    console.status("starting torch")
    with quiet(verbose=options.verbose):
        from latentrt.export.controlnets import add_controlnets

        bundle = add_controlnets(
            source,
            options.output,
            opened_controlnets(options.controlnets),
            check=not options.no_check,
            overwrite=options.overwrite,
            progress=ComponentBar(console, "exporting").show,
        )
    seconds = time.perf_counter() - began
    size = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    text = f"{bundle.root}: {megabytes(size)} in {seconds:.0f} s, controls {', '.join(bundle.controls)}"
    document = {"bundle": str(bundle.root), "bytes": size, "seconds": seconds, "controls": list(bundle.controls)}
    console.result(text, document)
    return 0


CONTROL = Command(help="add ControlNets to a bundle", configure=configure, run=run, requires=EXTRA)
