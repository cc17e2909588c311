"""`latentrt export` and `latentrt check`. Torch is imported when they run, so that help needs none of it."""

import argparse
import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from latentrt.backends import available
from latentrt.bundle import Bundle
from latentrt.cli.arguments import add_lora, count, names
from latentrt.cli.command import Command, Requirement
from latentrt.cli.console import Console, megabytes, table
from latentrt.errors import EnvironmentLacks, RequestError
from latentrt.export.cli_checkpoint import CHECKPOINT_HELP, add_checkpoint_options, opened
from latentrt.export.cli_convert import add_range_check, conversion_text, describe_conversion
from latentrt.export.cli_progress import ComponentBar
from latentrt.export.quiet import quiet

if TYPE_CHECKING:
    from latentrt.export.parity.check import Metric, Row

EXTRA = Requirement(extra="export", packages=("torch", "diffusers", "transformers", "onnx", "onnxscript"))


def configure_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="the directory to make")
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="TYPE",
        help="fp32 (default), fp16 or bf16; or by component: step=fp16,decoder=bf16",
    )
    add_lora(parser, "merge a .safetensors file into the weights for good, at SCALE (1); may be repeated")
    add_range_check(parser)
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="PART",
        help="leave out a text encoder, such as text_encoder_3",
    )
    add_checkpoint_options(parser)
    group = parser.add_argument_group("what the bundle does where a request is silent; default: as the checkpoint says")
    group.add_argument("--steps", type=count, metavar="N")
    group.add_argument("--guidance", type=float, metavar="SCALE")
    group.add_argument("--sampler", metavar="NAME")
    parser.add_argument("--no-check", action="store_true", help="do not compare each component with torch")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle that is there")


def run_export(options: argparse.Namespace, console: Console) -> int:
    began = time.perf_counter()
    console.status("starting torch")
    with quiet(verbose=options.verbose):
        from latentrt.export.family import read_family, with_defaults
        from latentrt.export.package import export_at_precision
        from latentrt.export.staging import check_target

        check_target(options.output, overwrite=options.overwrite)  # before a file of gigabytes is converted
        with opened(options.checkpoint, options, console, beside=options.output) as checkpoint:
            for part in options.without:
                checkpoint = checkpoint.without(part)
            family = with_defaults(
                read_family(checkpoint), steps=options.steps, guidance=options.guidance, sampler=options.sampler
            )
            bundle, parity = export_at_precision(
                checkpoint,
                options.output,
                family=family,
                precision=options.precision,
                range_check=options.range_check,
                check=not options.no_check,
                overwrite=options.overwrite,
                lora=options.lora,
                progress=ComponentBar(console, "exporting").show,
                status=console.status,
            )
    seconds = time.perf_counter() - began
    size = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    checked = f"{len(parity)} comparisons with torch passed" if parity else "not compared with torch"
    text = f"{bundle.root}: {megabytes(size)} in {seconds:.0f} s, {checked}"
    components = describe_conversion(bundle)
    if any(component["conversion"] is not None for component in components.values()):
        text = f"{text}\n\n{conversion_text(components)}"
    document = {"bundle": str(bundle.root), "bytes": size, "seconds": seconds, "parity": parity}
    console.result(text, document | {"components": components})
    return 0


EXPORT = Command(
    help="make a bundle from a Stable Diffusion checkpoint",
    configure=configure_export,
    run=run_export,
    requires=EXTRA,
)


def configure_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory made by `latentrt export`")
    parser.add_argument("--against", required=True, metavar="CHECKPOINT", help="what the bundle was made from")
    add_checkpoint_options(parser)
    parser.add_argument("--backend", type=names, metavar="A,B", help="judge these; default: all that are installed")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, batches and scales for each sampler")
    parser.add_argument(
        "--metric",
        metavar="MODULE:FUNCTION",
        help="a measure of yours, (images, prompts) -> float; also FILE.py:FUNCTION",
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="for the metric, one a line")


def run_check(options: argparse.Namespace, console: Console) -> int:
    bundle = Bundle.open(options.bundle)
    metric = None if options.metric is None else load_metric(options.metric)
    prompts = {} if options.prompts is None else {"prompts": read_prompts(options.prompts)}
    backends = available() if options.backend in (None, ("all",)) else options.backend
    if not backends:
        raise EnvironmentLacks("no backend is installed", hint='install one with: pip install "latentrt[onnxruntime]"')
    console.status("starting torch")
    with quiet(verbose=options.verbose):
        from latentrt.export.parity.check import run_check as check

        with opened(options.against, options, console) as checkpoint:
            rows = check(
                bundle,
                checkpoint,
                backends=backends,
                quick=options.quick,
                metric=metric,
                progress=console.status,
                **prompts,
            )
    failed = [row for row in rows if not row.passed]
    document = {
        "bundle": options.bundle,
        "against": options.against,
        "passed": not failed,
        "rows": [asdict(row) | {"passed": row.passed} for row in rows],
    }
    console.result(check_report(rows), document)
    return 1 if failed else 0


CHECK = Command(
    help="compare a bundle with its checkpoint, component by component and image by image",
    configure=configure_check,
    run=run_check,
    requires=EXTRA,
)


def check_report(rows: Sequence["Row"]) -> str:
    """The rows as text, grouped by subject in the order given, and a last line with the verdict."""
    blocks = []
    for subject, group in groupby(rows, key=lambda row: row.subject):
        cells = [("", "backend", "value", "limit", "unit", "")]
        cells += [(f"  {row.case}", row.backend, *_figures(row), row.unit, _verdict(row)) for row in group]
        blocks.append(f"{subject}\n{_aligned(cells)}")
    judged = [row for row in rows if row.limit is not None]
    failed = sum(not row.passed for row in judged)
    verdict = f"{failed} of {len(judged)} gates failed" if failed else f"all {len(judged)} gates passed"
    return "\n\n".join([*blocks, verdict])


def load_metric(name: str) -> "Metric":
    """The function called `module:function` or `path.py:function`.

    Raises:
        RequestError: there is none.
    """
    place, _, attribute = name.rpartition(":")
    expected = "MODULE:FUNCTION or FILE.py:FUNCTION"
    if not place or not attribute:
        raise RequestError(f"metric '{name}'", expected=expected)
    try:
        module = _module_from(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        raise RequestError(
            f"metric '{name}': {place} cannot be imported ({type(error).__name__}: {error})", expected=expected
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise RequestError(f"metric '{name}': {place} has no function {attribute}", expected=expected)
    metric: Callable[..., float] = function
    return metric


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not empty.

    Raises:
        RequestError: no such file, or no line.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"prompts {path} cannot be read ({error})", expected="a UTF-8 text file") from error
    if not (prompts := [line for line in lines if line]):
        raise RequestError(f"prompts {path} is empty", expected="one prompt a line")
    return prompts


def _module_from(path: Path) -> ModuleType:
    """A file as a module; its folder is searched for what it imports, as Python does for scripts."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    sys.path.insert(0, str(path.parent.resolve()))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _figures(row: "Row") -> tuple[str, str]:
    if row.limit is None:
        return f"{row.value:.4g}", "-"
    return f"{row.value:.3g}", f"{'>=' if row.higher_is_better else '<='} {row.limit:.3g}"


def _verdict(row: "Row") -> str:
    word = "" if row.limit is None else "ok" if row.passed else "FAILED"
    return f"{word}  {row.note}".strip()


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    return table(rows, left=2)
