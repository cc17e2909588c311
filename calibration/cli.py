"""`latentrt calibrate`: a float bundle to an int8 or fp8 one, judged before it is called finished. Needs no torch."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from latentrt.backends import BACKENDS, ONNXRUNTIME, needed
from latentrt.bundle import Bundle
from latentrt.cli.arguments import count, names, size
from latentrt.cli.command import Command
from latentrt.cli.console import Bar, Console, megabytes, table
from latentrt.environment.requirement import Requirement
from latentrt.errors import RequestError
from latentrt.export.cli.export_check import add_metric, figures
from latentrt.loading import loop_graphs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from latentrt.calibration.collect import CalibrationSettings, CollectionProgress
    from latentrt.calibration.manifest import Policy
    from latentrt.calibration.package import Calibrated
    from latentrt.export.parity.gates import Evaluation
    from latentrt.export.parity.measurement import Measurement

NEEDS = (Requirement(extra="calibrate", packages=("onnx", "onnx_ir", "ml_dtypes")), ONNXRUNTIME)
COUNT, STEPS, IMAGES = 32, 20, 16
_RANGES = ("mse", "percentile", "max")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a float bundle made by `latentrt export` or `convert`")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE8", help="the directory to make")
    parser.add_argument(
        "--precision",
        default="int8",
        metavar="TYPE",
        help="int8 or fp8, of the step; or by component, also fp16 and bf16: step=int8,decoder=fp16",
    )
    parser.add_argument("--threads", type=count, metavar="N", help="threads within one engine call")
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle that is there")
    run = parser.add_argument_group("what is run")
    run.add_argument("--prompts", type=Path, metavar="FILE", help="one a line; default: a list of general ones")
    run.add_argument("--count", type=count, default=COUNT, metavar="N", help=f"how many of them; default: {COUNT}")
    run.add_argument("--negative", default="", metavar="TEXT", help="text of the unconditional branch")
    run.add_argument("--steps", type=count, metavar="N", help=f"of each trajectory; default: {STEPS}, or the bundle's")
    run.add_argument("--guidance", type=float, metavar="SCALE", help="default: the bundle's")
    run.add_argument("--size", type=size, action="append", metavar="WIDTHxHEIGHT", help="may be repeated")
    run.add_argument("--seed", type=int, default=0, metavar="N", help="of the first image; default: 0")
    run.add_argument("--batch", type=count, default=1, metavar="N", help="images that run together; default: 1")
    scales = parser.add_argument_group("how scales are chosen")
    scales.add_argument("--ranges", default="mse", metavar="METHOD", help=f"of activations: {', '.join(_RANGES)}")
    scales.add_argument("--alpha", metavar="A", help="of SmoothQuant, 0 to 1, none, or search; default: 0.8")
    gates = parser.add_argument_group("how the result is judged")
    gates.add_argument("--images", type=int, default=IMAGES, metavar="N", help=f"0: not at all; default: {IMAGES}")
    gates.add_argument("--backend", type=names, metavar="A,B", help="default: all installed that run graphs")
    gates.add_argument(
        "--min-sqnr",
        type=float,
        metavar="DB",
        help="of the network, each branch: operators return to float until it is held; default: 25, and none returns",
    )
    gates.add_argument("--min-psnr", type=float, metavar="DB", help="of the images' median; default: reported only")
    add_metric(gates)


def run(options: argparse.Namespace, console: Console) -> int:
    from latentrt.calibration.limits import check_parent, check_runs
    from latentrt.calibration.package import calibrate_bundle

    began = time.perf_counter()
    parent = Bundle.open(options.bundle)
    policy, settings, evaluation = plan(options, parent)
    check_parent(parent, options.output, policy, overwrite=options.overwrite)
    check_runs(parent, policy, settings, evaluation)
    warning = foreign_prompts(options, parent)
    if warning is not None:
        console.note(warning)
    done = calibrate_bundle(
        parent,
        options.output,
        policy=policy,
        settings=settings,
        evaluation=evaluation,
        threads=options.threads,
        overwrite=options.overwrite,
        progress=_Bars(console).show,
        status=console.status,
    )
    seconds = time.perf_counter() - began
    text = report_text(done, seconds)
    console.result(text if warning is None else f"{text}\n\n{warning}", _document(done, seconds, warning))
    return 0


COMMAND = Command(
    help="make an int8 or fp8 bundle from a float one",
    configure=configure,
    run=run,
    requires=lambda options: (*NEEDS, *needed(options.backend, default="onnxruntime")),
    essential=("--output", "--precision", "--prompts", "--count", "--min-sqnr", "--min-psnr", "--overwrite"),
)


def plan(options: argparse.Namespace, parent: Bundle) -> tuple[Policy, CalibrationSettings, Evaluation | None]:
    """The arguments, with the bundle's defaults filled in."""
    from latentrt.calibration.collect import CalibrationSettings
    from latentrt.calibration.manifest import Policy
    from latentrt.calibration.prompts import own_prompts, split
    from latentrt.export.parity.gates import MIN_SQNR_DB, Evaluation
    from latentrt.export.parity.metric import load_metric
    from latentrt.export.prompts import read_prompts
    from latentrt.samplers.registry import SAMPLERS

    defaults = parent.family.defaults
    prompts = own_prompts() if options.prompts is None else read_prompts(options.prompts)
    seen, unseen = split(prompts, options.images)
    steps = min(STEPS, defaults.steps) if options.steps is None else options.steps
    guidance = defaults.guidance if options.guidance is None else options.guidance
    sizes = (defaults.size,) if options.size is None else tuple(dict.fromkeys(options.size))
    if options.ranges not in _RANGES:
        raise RequestError(f"ranges '{options.ranges}'", expected=", ".join(_RANGES))
    policy = Policy(
        components=components(options.precision),
        ranges=options.ranges,
        alpha=smoothing_strength(options.alpha),
        min_sqnr=options.min_sqnr,
    )
    settings = CalibrationSettings(
        prompts=tuple(seen[: options.count]),
        negative=options.negative,
        sizes=sizes,
        steps=steps,
        guidance=guidance,
        sampler=SAMPLERS[defaults.sampler].for_uneven or defaults.sampler,
        seed=options.seed,
        batch=options.batch,
    )
    if options.images < 1:
        for name in ("min_psnr", "metric", "metric_drop"):
            if getattr(options, name) is not None:
                raise RequestError(f"--{name.replace('_', '-')} with --images 0", expected="images to judge")
        return policy, settings, None
    if options.metric is not None:
        load_metric(options.metric)  # before the work, not behind it
    evaluation = Evaluation(
        prompts=tuple(unseen[i % len(unseen)] for i in range(options.images)),
        negative=options.negative,
        size=sizes[0],
        steps=steps,
        guidance=guidance,
        sampler=defaults.sampler,
        seed=options.seed + EVALUATION_SEED,
        batch=max(4, options.batch),
        backends=judges() if options.backend in (None, ("all",)) else options.backend,
        min_sqnr=MIN_SQNR_DB if options.min_sqnr is None else options.min_sqnr,
        min_psnr=options.min_psnr,
        metric=options.metric,
        metric_drop=options.metric_drop,
    )
    return policy, settings, evaluation


def foreign_prompts(options: argparse.Namespace, parent: Bundle) -> str | None:
    """What to say where the model is calibrated, and judged, on prompts that are none of the user's."""
    if options.prompts is not None:
        return None
    return (
        f"no --prompts: {parent.name} is calibrated and judged on general ones. A model that was tuned for a narrow"
        " subject loses much more in its images than in its network then: give prompts as it is used with, and"
        " --min-psnr, which gates the images, too"
    )


EVALUATION_SEED = 100_000  # far from the seeds of the images to calibrate on


def judges() -> tuple[str, ...]:
    """The installed backends that run a graph as it is."""
    return tuple(row.name for row in BACKENDS if row.installed() and not row.prebuilt)


def components(text: str) -> dict[str, str]:
    """Precision by component: `int8`, of the step, or `step=int8,decoder=fp16`."""
    from latentrt.calibration.formats import FORMATS
    from latentrt.export.passes.half import FORMATS as HALVES

    pairs = [("step", text)] if "=" not in text else [part.strip().split("=", 1) for part in text.split(",") if part]
    chosen: dict[str, str] = {}
    for name, *precision in pairs:
        if len(precision) != 1 or precision[0] not in (*FORMATS, *HALVES) or name in chosen:
            raise RequestError(
                f"precision '{text}'",
                expected=f"{', '.join(FORMATS)}, of the step, or each component once, as in step=int8,decoder=fp16",
                hint="for 16 bit alone: `latentrt convert`",
            )
        chosen[name] = precision[0]
    return chosen


def smoothing_strength(text: str | None) -> float | str | None:
    """A number from 0 to 1, or `search`; `none` is None."""
    from latentrt.calibration.manifest import SEARCH
    from latentrt.calibration.smooth import ALPHA

    if text is None:
        return ALPHA
    if text.lower() in ("none", SEARCH):
        return None if text.lower() == "none" else SEARCH
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise RequestError(f"alpha '{text}'", expected=f"0 to 1, none or {SEARCH}")
    return value


def report_text(done: Calibrated, seconds: float) -> str:
    """Sizes, what stayed float, and the measurements."""
    from latentrt.export.parity.report import REPORT

    calibration = done.bundle.manifest["calibration"]
    parts = [
        f"{done.bundle.root}: {megabytes(done.bytes_after)} of {megabytes(done.bytes_before)} "
        f"({done.bytes_after / done.bytes_before:.3f}) in {seconds:.0f} s"
    ]
    tried = calibration["policy"]["alphas_tried"]
    if tried is not None:
        ratios = ", ".join(f"{alpha} {value:.1f} dB" for alpha, value in tried.items())
        parts.append(f"alpha {calibration['policy']['alpha']}, the best of {ratios}")
    for name, row in calibration["components"].items():
        precision = calibration["policy"]["precision"][name]
        cells = [(f"{name}: {len(row['quantised'])} operators in {precision}", "")]
        cells += [(f"  {len(group['operators'])} in float", group["reason"]) for group in row["float"]]
        parts.append(table(cells, left=2))
        parts += [budget_text(row["budget"])] if row["budget"] is not None and row["budget"]["returned"] else []
    if done.rows:
        parts += [measurements(done.rows), "all gates passed"]
    parts += _limits(done.bundle)
    parts.append(f"report: {done.bundle.root / REPORT}")
    return "\n\n".join(parts)


def budget_text(budget: Mapping[str, Any]) -> str:
    """What a search returned to float, what it won and what it costs."""
    ratio, size = budget["sqnr_db"], budget["bytes"]
    return (
        f"{len(budget['returned'])} operators returned to float: {ratio['before']:.1f} to {ratio['after']:.1f} dB, "
        f"{megabytes(size['before'])} to {megabytes(size['after'])}, {budget['work_returned']:.1%} of the work"
    )


def measurements(rows: Sequence[Measurement]) -> str:
    """The judgement as a table."""
    cells = [("", "", "backend", "value", "limit", "unit")]
    cells += [(row.subject, row.case, row.backend, *figures(row), row.unit) for row in rows]
    return table(cells, left=3)


def _document(done: Calibrated, seconds: float, warning: str | None) -> dict[str, object]:
    return {
        "bundle": str(done.bundle.root),
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
        "seconds": seconds,
        "warnings": [] if warning is None else [warning],
        "limits": _limits(done.bundle),
        "calibration": done.bundle.manifest["calibration"],
    }


def _limits(bundle: Bundle) -> list[str]:
    """Which backends cannot run it, or gain nothing by it."""
    return [limit for row in BACKENDS for limit in row.limits(loop_graphs(bundle))]


class _Bars:
    """One bar a pass."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, Bar] = {}

    def show(self, name: str, event: CollectionProgress) -> None:
        if name not in self._bars:
            self._bars[name] = Bar(self._console, f"collecting {name}", total=event.total - event.resumed)
            if event.resumed:
                self._console.note(f"{name}: {event.resumed} of {event.total} calls kept from an earlier run")
        self._bars[name].update(event.done - event.resumed)
