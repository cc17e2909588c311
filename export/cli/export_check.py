"""`latentrt export` and `latentrt check`. Torch is imported when they run, so that help needs none of it."""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from latentrt.backends import available, needed
from latentrt.bundle import SHALLOW, STEP_CONTROL, Bundle, is_bundle
from latentrt.cli.arguments import add_lora, count, names
from latentrt.cli.command import Command
from latentrt.cli.console import Console, table
from latentrt.cli.inspect import pooling_text
from latentrt.errors import RequestError
from latentrt.export.cli.checkpoint_options import CHECKPOINT_HELP, add_checkpoint_options, opened
from latentrt.export.cli.control import opened_controlnets, recorded_controlnets
from latentrt.export.cli.convert import (
    add_range_check,
    add_step_cache_options,
    conversion_text,
    describe_conversion,
    shallow_layers,
)
from latentrt.export.cli.progress import ComponentBar, finished
from latentrt.export.extras import CONVERT_NEEDS, EXPORT_NEEDS
from latentrt.export.prompts import read_prompts
from latentrt.export.quiet import quiet

if TYPE_CHECKING:
    from latentrt.export.checkpoint.folder import Checkpoint
    from latentrt.export.parity.measurement import Measurement
    from latentrt.export.parity.reference import Reference


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
    add_step_cache_options(parser)
    parser.add_argument(
        "--pool-attention",
        action="store_true",
        help="an approximation: a U-Net's largest self-attentions look at averages of 2x2 places; judged as int8 is",
    )
    parser.add_argument(
        "--min-sqnr",
        type=float,
        metavar="DB",
        help="of --pool-attention: signal over error that the network must keep in each branch (25)",
    )
    add_range_check(parser)
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="PART",
        help="leave out a text encoder, such as text_encoder_3",
    )
    add_checkpoint_options(parser)
    parser.add_argument(
        "--controlnet",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a ControlNet to export with it; may be repeated",
    )
    group = parser.add_argument_group("what the bundle does where a request is silent; default: as the checkpoint says")
    group.add_argument("--steps", type=count, metavar="N")
    group.add_argument("--guidance", type=float, metavar="SCALE")
    group.add_argument("--sampler", metavar="NAME")
    parser.add_argument("--no-check", action="store_true", help="do not compare each component with torch")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle that is there")


def run_export(options: argparse.Namespace, console: Console) -> int:
    began = time.perf_counter()
    layers = shallow_layers(options)
    if options.min_sqnr is not None and (not options.pool_attention or options.no_check):
        other = "with --no-check" if options.pool_attention else "without --pool-attention"
        raise RequestError(f"--min-sqnr {other}", expected="--pool-attention, judged", hint="leave out --min-sqnr")
    console.status("starting torch")
    with quiet(verbose=options.verbose):
        from latentrt.export.checkpoint.family import read_family, with_defaults
        from latentrt.export.package import export_at_precision
        from latentrt.export.staging import reserved

        controlnets = opened_controlnets(options.controlnet, allow_pickle=options.allow_pickle)
        with (
            reserved(options.output, overwrite=options.overwrite),  # before a file of gigabytes is converted
            opened(options.checkpoint, options, console, beside=options.output) as checkpoint,
        ):
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
                controlnets=controlnets,
                shallow_layers=layers,
                pool_attention=options.pool_attention,
                min_sqnr=options.min_sqnr,
                range_check=options.range_check,
                check=not options.no_check,
                overwrite=options.overwrite,
                lora=options.lora,
                progress=ComponentBar(console, "exporting").show,
                status=console.status,
            )
    text, document = finished(bundle, time.perf_counter() - began)
    text += f", {len(parity)} comparisons with torch passed" if parity else ", not compared with torch"
    if pooled := pooling_text(bundle):
        text = f"{text}\n{pooled}"
    components = describe_conversion(bundle)
    if any(component["conversion"] is not None for component in components.values()):
        text = f"{text}\n\n{conversion_text(components)}"
    console.result(text, document | {"parity": parity, "components": components, "pooling": bundle.section("pooling")})
    return 0


EXPORT = Command(
    help="make a bundle from a Stable Diffusion checkpoint",
    configure=configure_export,
    run=run_export,
    requires=EXPORT_NEEDS,
    essential=(
        *("--output", "--precision", "--lora", "--vae", "--components", "--prediction", "--variant", "--allow-pickle"),
        *("--controlnet", "--steps", "--guidance", "--sampler", "--overwrite"),
    ),
)


def configure_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="what is judged")
    parser.add_argument(
        "--against",
        required=True,
        metavar="CHECKPOINT|BUNDLE",
        help="what it was made from: a checkpoint, which needs torch, or a float bundle, which does not",
    )
    add_checkpoint_options(parser)
    parser.add_argument(
        "--controlnet",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a ControlNet of the bundle, beside a checkpoint; default: the folder that it was exported from",
    )
    parser.add_argument("--backend", type=names, metavar="A,B", help="judge these; default: all that are installed")
    parser.add_argument("--quick", action="store_true", help="fewer sizes, batches and scales for each sampler")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="of the images, one a line; default: general ones")
    parser.add_argument("--seeds", type=count, default=1, metavar="N", help="images of each of them; default: 1")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML page as well")
    add_metric(parser)


def add_metric(parser: argparse._ActionsContainer) -> None:
    """The options of a measure of the user's own."""
    parser.add_argument(
        "--metric",
        metavar="MODULE:FUNCTION",
        help="a measure of yours, (images, prompts) -> a score an image, more is better; also FILE.py:FUNCTION",
    )
    parser.add_argument("--metric-drop", type=float, metavar="X", help="how much of its mean may be lost; default: any")


def run_check(options: argparse.Namespace, console: Console) -> int:
    bundle = Bundle.open(options.bundle)
    prompts = None if options.prompts is None else read_prompts(options.prompts)
    backends = available() if options.backend in (None, ("all",)) else options.backend
    from latentrt.bench.machine import PACKAGES, provenance
    from latentrt.export.parity.check import run_check as check
    from latentrt.export.parity.metric import load_metric
    from latentrt.export.parity.report import render
    from latentrt.files.atomic import write_whole

    if options.metric is not None:
        load_metric(options.metric)
    with _reference(bundle, options, console) as reference:
        left_out = _left_out(bundle, reference)
        measurements = check(
            bundle,
            reference,
            backends=backends,
            quick=options.quick,
            metric=options.metric,
            metric_drop=options.metric_drop,
            prompts=None if prompts is None else [prompt for prompt in prompts for _ in range(options.seeds)],
            progress=console.status,
        )
    if options.report is not None:
        parent = Bundle.open(options.against) if is_bundle(options.against) else None
        title = f"{bundle.name}, compared with {options.against}"
        where = provenance(bundle, packages=PACKAGES)
        page = render(bundle, measurements, title=title, parent=parent, where=where)
        write_whole(options.report, page.encode())
    rows = measurements.rows
    failed = [row for row in rows if not row.passed]
    document = {
        "bundle": options.bundle,
        "against": options.against,
        "passed": not failed,
        "not_compared": left_out,
        "rows": [asdict(row) | {"passed": row.passed} for row in rows],
    }
    console.result(check_report(rows, left_out), document)
    return 1 if failed else 0


CHECK = Command(
    help="compare a bundle with its checkpoint or with the bundle that it was made from",
    configure=configure_check,
    run=run_check,
    requires=lambda options: (
        *(CONVERT_NEEDS if is_bundle(options.against) else EXPORT_NEEDS),
        *needed(options.backend, default="onnxruntime"),
    ),
)


@contextmanager
def _reference(bundle: Bundle, options: argparse.Namespace, console: Console) -> "Iterator[Reference]":
    """What `--against` names; of a checkpoint, torch is silent meanwhile."""
    if is_bundle(options.against):
        from latentrt.export.parity.reference import BundleReference

        if options.controlnet:
            raise RequestError("--controlnet with a bundle", expected="it with a checkpoint: a bundle has its own")
        parent = Bundle.open(options.against)
        if not bundle.made_from(parent):
            console.note(f"{options.bundle} was not made from {options.against} as it is now; compared all the same")
        with closing(BundleReference(parent)) as reference:
            yield reference
        return
    console.status("starting torch")
    with quiet(verbose=options.verbose):
        from latentrt.export.parity.torch.reference import TorchReference

        controlnets, wrong = recorded_controlnets(
            bundle, opened_controlnets(options.controlnet, allow_pickle=options.allow_pickle)
        )
        for line in wrong:
            console.note(line)
        with (
            opened(options.against, options, console) as checkpoint,
            closing(
                TorchReference(_as_exported(checkpoint, bundle), controlled=bundle, controlnets=controlnets)
            ) as reference,
        ):
            yield reference


def _as_exported(checkpoint: "Checkpoint", bundle: Bundle) -> "Checkpoint":
    """The checkpoint without the text encoders that the bundle was exported without."""
    for part in bundle.left_out:
        if part in checkpoint.text_encoders:
            checkpoint = checkpoint.without(part)
    return checkpoint


def _left_out(bundle: Bundle, reference: "Reference") -> list[str]:
    """Components that are not compared."""
    from latentrt.export.parity.approximation import approximate

    coarse = approximate(bundle, reference)
    compared = {*reference.components} - {*SHALLOW.values()}
    compared |= {SHALLOW[name] for name in compared & SHALLOW.keys() if name not in coarse}
    if STEP_CONTROL in coarse and not {*bundle.controls} & {*reference.controls}:
        compared.discard(STEP_CONTROL)  # an approximation is judged along runs with a control
    return [name for name in bundle.components if name not in compared]


def check_report(rows: Sequence["Measurement"], left_out: Sequence[str] = ()) -> str:
    """The rows as text, grouped by subject, and a last line with the verdict and the components that were left out."""
    blocks = []
    subjects: dict[str, list[Measurement]] = {}
    for row in rows:
        subjects.setdefault(row.subject, []).append(row)
    for subject, group in subjects.items():
        cells = [("", "backend", "value", "limit", "unit", "")]
        cells += [(f"  {row.case}", row.backend, *figures(row), row.unit, _verdict(row)) for row in group]
        blocks.append(f"{subject}\n{table(cells, left=2)}")
    judged = [row for row in rows if row.limit is not None]
    failed = sum(not row.passed for row in judged)
    verdict = f"{failed} of {len(judged)} gates failed" if failed else f"all {len(judged)} gates passed"
    if left_out:
        verdict = f"{verdict}; not compared: {', '.join(left_out)}"
    return "\n\n".join([*blocks, verdict])


def figures(row: "Measurement") -> tuple[str, str]:
    """The value and its limit."""
    if row.limit is None:
        return f"{row.value:.4g}", "-"
    return f"{row.value:.3g}", f"{'>=' if row.higher_is_better else '<='} {row.limit:.3g}"


def _verdict(row: "Measurement") -> str:
    return "" if row.limit is None else "ok" if row.passed else "FAILED"
