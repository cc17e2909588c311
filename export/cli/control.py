"""`latentrt control`: ControlNets added to a bundle; and the option of `latentrt export` for them."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentrt.bundle import Bundle
from latentrt.cli.command import Command
from latentrt.cli.console import Console
from latentrt.errors import CheckpointError, RequestError
from latentrt.export.cli.progress import ComponentBar, finished
from latentrt.export.extras import EXPORT_NEEDS
from latentrt.export.quiet import quiet

if TYPE_CHECKING:
    from latentrt.export.controlnets.controlnet import ControlNet


def opened_controlnets(given: Sequence[str], *, allow_pickle: bool = False) -> "list[ControlNet]":
    """The ControlNets of options such as `canny=FOLDER`, each of a name of its own."""
    from latentrt.export.controlnets.controlnet import ControlNet

    found: list[ControlNet] = []
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not folder:
            raise RequestError(f"ControlNet '{text}'", expected="NAME=FOLDER, such as canny=controlnets/canny")
        if name in [net.name for net in found]:
            raise RequestError(f"two ControlNets of the name '{name}'", expected="a name for each")
        found.append(ControlNet.open(name, Path(folder), allow_pickle=allow_pickle))
    return found


def recorded_controlnets(bundle: Bundle, given: "Sequence[ControlNet]") -> "tuple[list[ControlNet], list[str]]":
    """The ControlNets that a bundle was made with, those given and others from the folders that its manifest names; and
    for each that is not there any more, what is wrong."""
    from latentrt.export.controlnets.controlnet import ControlNet

    if strange := [net.name for net in given if net.name not in bundle.controls]:
        known = ", ".join(bundle.controls)
        raise RequestError(f"ControlNet '{strange[0]}'", expected=f"one of {known}" if known else "none: it has none")
    origins = bundle.section("controlnets") or {}
    found, wrong = {net.name: net for net in given}, []
    for name in bundle.controls:
        if name in found:
            continue
        try:
            net = ControlNet.open(name, Path(origins.get(name, {}).get("source", "")))
            if net.provenance()["sha256"] != origins[name]["sha256"]:
                raise CheckpointError(f"{net.root} has changed since")
            found[name] = net
        except CheckpointError as error:
            wrong.append(f"controlnet-{name} is not compared ({error.found}): give it with --controlnet {name}=FOLDER")
    return list(found.values()), wrong


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory made by `latentrt export`")
    parser.add_argument("controlnets", nargs="+", metavar="NAME=FOLDER", help="ControlNets, folders or files")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="the directory to make")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read .pth and .bin too, tensors and plain values only"
    )
    parser.add_argument("--no-check", action="store_true", help="do not compare each ControlNet with torch")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle that is there")


def run(options: argparse.Namespace, console: Console) -> int:
    began = time.perf_counter()
    source = Bundle.open(options.bundle)
    console.status("starting torch")
    with quiet(verbose=options.verbose):
        from latentrt.export.controlnets.controlnet import add_controlnets

        bundle = add_controlnets(
            source,
            options.output,
            opened_controlnets(options.controlnets, allow_pickle=options.allow_pickle),
            check=not options.no_check,
            overwrite=options.overwrite,
            progress=ComponentBar(console, "exporting").show,
        )
    text, document = finished(bundle, time.perf_counter() - began)
    console.result(f"{text}, controls {', '.join(bundle.controls)}", document | {"controls": list(bundle.controls)})
    return 0


CONTROL = Command(help="add ControlNets to a bundle", configure=configure, run=run, requires=EXPORT_NEEDS)
