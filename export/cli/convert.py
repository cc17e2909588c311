"""`latentrt convert`: a bundle with LoRAs in its weights, in 16 bit, for step caching, or all of it. Needs no torch."""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentrt.bundle import Bundle
from latentrt.cli.arguments import add_lora, count
from latentrt.cli.command import Command
from latentrt.cli.console import Console, table
from latentrt.errors import RequestError
from latentrt.export.cli.progress import ComponentBar, finished
from latentrt.export.extras import CONVERT_NEEDS


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="made by `latentrt export`; float32 for another precision")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="the directory to make")
    parser.add_argument(
        "--precision", metavar="TYPE", help="fp16 or bf16; or by component: step=fp16,decoder=bf16; default: as it is"
    )
    add_lora(parser, "merge a .safetensors file into the weights for good, at SCALE (1); may be repeated")
    add_step_cache_options(parser)
    add_range_check(parser)
    parser.add_argument("--threads", type=count, metavar="N", help="threads of the range check")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle that is there")


def add_step_cache_options(parser: argparse.ArgumentParser) -> None:
    """`--step-cache` and how much of the network its shallow calls compute."""
    parser.add_argument("--step-cache", action="store_true", help="add the graphs of shallow calls, for step caching")
    parser.add_argument(
        "--shallow-layers",
        type=count,
        metavar="N",
        help="what shallow calls compute: the last N layers of a U-Net's last up block, or the first N blocks of a"
        " transformer (1)",
    )


def shallow_layers(options: argparse.Namespace) -> int | None:
    """The layers of shallow calls; None where step caching is not asked for."""
    if options.step_cache:
        return 1 if options.shallow_layers is None else int(options.shallow_layers)
    if options.shallow_layers is not None:
        raise RequestError("--shallow-layers without --step-cache", expected="both")
    return None


def add_range_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--range-check",
        default="quick",
        metavar="EFFORT",
        help="look for values too large for fp16 in runs of the float32 bundle: quick (default; one prompt, three"
        " steps, smallest size), full (four prompts, default steps and size) or none",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    from latentrt.export.bundles.step_graphs import MADE_OF_STEP
    from latentrt.export.convert.bake import bake_and_convert
    from latentrt.export.convert.precision import parse_precision

    began = time.perf_counter()
    layers = shallow_layers(options)
    if options.precision is None and not options.lora and layers is None:
        raise RequestError("nothing to do", expected="some of --precision, --lora and --step-cache")
    source = Bundle.open(options.bundle)
    named = [name for name in source.components if name not in MADE_OF_STEP]
    precision = {} if options.precision is None else parse_precision(options.precision, named)
    bundle = bake_and_convert(
        source,
        options.output,
        lora=options.lora,
        precision=precision,
        shallow_layers=layers,
        range_check=options.range_check,
        threads=options.threads,
        overwrite=options.overwrite,
        progress=ComponentBar(console, "converting").show,
        status=console.status,
    )
    text, document = finished(bundle, time.perf_counter() - began)
    components = describe_conversion(bundle)
    console.result(f"{text}\n\n{conversion_text(components)}", document | {"components": components})
    return 0


CONVERT = Command(
    help="make a bundle in fp16 or bf16, with a LoRA or for step caching from a bundle",
    configure=configure,
    run=run,
    requires=CONVERT_NEEDS,
)


def describe_conversion(bundle: Bundle) -> dict[str, Any]:
    """Precision and conversion of each component, as the manifest has them."""
    rows = bundle.manifest["components"]
    return {name: {"precision": row["precision"], "conversion": row.get("conversion")} for name, row in rows.items()}


def conversion_text(components: Mapping[str, Any]) -> str:
    """A table of the components, and below it what is in float32, or in bf16, because of the range check."""
    rows = [("component", "precision", "16-bit nodes", "float32 nodes", "largest in 16 bit")]
    warnings = []
    for name, component in components.items():
        done = component["conversion"]
        if done is None:
            rows.append((name, component["precision"], "", "", ""))
            continue
        ranges = done["range"]
        largest = "not checked" if ranges is None else f"{ranges['largest']:.4g} of {ranges['limit']:.0f}"
        precision = component["precision"]
        largest = "float32's range" if precision == "bf16" else largest
        float32 = sum(len(group["nodes"]) for group in done["float32"])
        rows.append((name, precision, str(done["nodes"]), str(float32), largest))
        fell_back = done["asked"] != precision
        if ranges is not None and ranges["beyond"]:
            warnings.append(_beyond_text(name, ranges["beyond"], ranges["limit"], fell_back=fell_back))
        elif fell_back:
            warnings.append(f"\n{name}: {_FELL_BACK}")
    return "\n".join([table(rows, left=2), *warnings])


def _beyond_text(component: str, beyond: Mapping[str, float], limit: float, *, fell_back: bool) -> str:
    worst = sorted(beyond, key=lambda name: -beyond[name])
    lines = [f"  {name}  {beyond[name]:.3g}" for name in worst[:_SHOWN]]
    if len(worst) > _SHOWN:
        lines.append(f"  and {len(worst) - _SHOWN} more: see the manifest")
    head = (
        f"{component}: {len(beyond)} nodes reach beyond {limit:.0f}, half of what fp16 holds, and stay in float32"
        f" (bf16 holds them: --precision {component}=bf16)"
    )
    return "\n".join(["", f"{component}: {_FELL_BACK}" if fell_back else head, *lines])


_FELL_BACK = "more than a quarter of the network is too large for fp16, so that all of it is bf16"
_SHOWN = 8
