"""`latentrt augment BUNDLE --yolo data.yaml -o DIR`: a dataset for detectors, made larger (docs/augment.md)."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentrt.cli.arguments import add_execution, add_memory, count, size
from latentrt.cli.command import Command
from latentrt.cli.console import Bar, Console
from latentrt.cli.opening import open_pipeline
from latentrt.environment.requirement import Requirement
from latentrt.errors import LatentRTError, RequestError

if TYPE_CHECKING:
    from latentrt.augment.run import Summary
    from latentrt.augment.scores import Score
    from latentrt.augment.settings import Augmentation
    from latentrt.augment.source import Source

SHOWN = 20  # bad files that are listed, of however many
BATCH = 4


def configure(parser: argparse.ArgumentParser) -> None:
    """Options that `latentrt generate` has as well carry the same names."""
    parser.add_argument(
        "bundle", nargs="?", metavar="BUNDLE", help="a directory made by `latentrt export`; without it, DIR is filtered"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the new dataset")
    parser.add_argument(
        "--yolo", type=Path, metavar="PATH", help="data.yaml of Ultralytics, or the folder of a classification"
    )
    parser.add_argument("--task", metavar="NAME", help="detect, segment, obb, pose or classify; default: told by files")
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="what bad labels do (stop)")
    parser.add_argument("--overwrite", action="store_true", help="make anew what is of other settings")
    parser.add_argument("--batch", type=count, default=BATCH, metavar="N", help=f"the most images at a time ({BATCH})")
    _add_pictures(parser)
    _add_filters(parser)
    group = parser.add_argument_group("request (defaults: see `latentrt inspect`)")
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    group.add_argument("--guidance", type=float, metavar="SCALE", help="classifier-free guidance; 1 is off")
    group.add_argument("--sampler", metavar="NAME", help="see `latentrt generate --help-all`")
    group.add_argument("--schedule", metavar="NAME", help="likewise")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="decides everything that is drawn (0)")
    add_memory(add_execution(parser), "that a run may take: where graphs do not fit, they load by turns")


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pictures")
    group.add_argument(
        "--mode",
        action="append",
        metavar="NAME[:STRENGTH]",
        help="image, edges, background, object, swap, insert, outpaint or prompts; several are taken by turns (image)",
    )
    group.add_argument("--copies", type=int, default=1, metavar="N", help="of each training picture (1)")
    group.add_argument("--balance", type=float, default=0.0, metavar="A", help="more of rare classes: 0 not, 1 fully")
    group.add_argument("--most-copies", type=int, default=10, metavar="N", help="of one picture, when balancing (10)")
    group.add_argument("--empty", type=float, default=0.0, metavar="SHARE", help="pictures without objects (0)")
    group.add_argument("--val", type=float, metavar="SHARE", help="of real pictures, to be val where there is none")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="templates of prompts, YAML")
    group.add_argument("--control", metavar="NAME", help="the ControlNet that reads edges")
    group.add_argument("--size", type=size, metavar="WIDTHxHEIGHT", help="what pictures are brought to first")
    group.add_argument("--fit", default="crop", metavar="NAME", help="how: resize, crop (default) or letterbox")
    group.add_argument("--visible", type=float, default=0.3, metavar="SHARE", help="least of an object to stay (0.3)")
    group.add_argument("--dilate", type=int, default=8, metavar="PX", help="around objects that stay (8)")
    group.add_argument("--extend", type=float, default=0.25, metavar="SHARE", help="of a side, for outpaint (0.25)")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filters (functions are FILE.py:NAME or MODULE:NAME)")
    group.add_argument(
        "--least",
        action="append",
        default=[],
        metavar="SCORE=VALUE",
        help="drop pictures below it; contrast=4, distance=1 and agreement=0.75 otherwise; may be repeated",
    )
    group.add_argument("--detector", metavar="FUNCTION|MODEL", help="for the score agreement; a .pt is Ultralytics'")
    group.add_argument("--text-score", metavar="FUNCTION", help="(pixels, prompt) to the score text")
    group.add_argument(
        "--score", action="append", default=[], metavar="NAME=FUNCTION", help="(sample) to a score; may be repeated"
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Everything that can be wrong is looked for before the work begins."""
    if options.bundle is None:
        return _refilter(options, console)
    from latentrt.augment.run import augment

    settings = _settings(options)
    source = _source(options, settings, console)
    with open_pipeline(options, console) as pipe:
        try:
            summary = augment(
                pipe,
                source,
                options.output,
                settings,
                batch=options.batch,
                overwrite=options.overwrite,
                progress=_progress(console),
            )
        except (KeyboardInterrupt, LatentRTError):
            if (options.output / "generated").is_dir():
                console.note(f"what was made is in {options.output}; the same command goes on")
            raise
        return _say(summary, options, console, {"bundle": options.bundle, "backend": pipe.backend})


def _refilter(options: argparse.Namespace, console: Console) -> int:
    from latentrt.augment.run import refilter

    if options.yolo is not None:
        raise RequestError("--yolo without BUNDLE", expected="both, or neither to filter what was made")
    summary = refilter(options.output, _least(options.least), _scores(options))
    return _say(summary, options, console, {})


def _settings(options: argparse.Namespace) -> "Augmentation":
    from latentrt.augment.modes import Mode
    from latentrt.augment.settings import Augmentation
    from latentrt.augment.templates import Templates, read_templates
    from latentrt.augment.variants import Copies
    from latentrt.request import Request

    templates = Templates() if options.prompts is None else read_templates(options.prompts)
    copies = Copies(
        modes=tuple(map(Mode.read, options.mode or ["image"])),
        **{name: getattr(options, name) for name in ("copies", "balance", "most_copies", "empty", "seed", "fit")},
        size=options.size,
    )
    if options.empty and templates.background is None:
        raise RequestError("--empty without a template", expected="background in --prompts FILE")
    request = Request(
        "",
        negative=templates.negative,
        size=options.size,
        **{name: getattr(options, name) for name in ("steps", "guidance", "sampler", "schedule")},
    )
    return Augmentation(
        copies=copies,
        templates=templates,
        request=request,
        scores=_scores(options),
        least=_least(options.least),
        **{name: getattr(options, name) for name in ("control", "visible", "dilate", "extend")},
    )


def _source(options: argparse.Namespace, settings: "Augmentation", console: Console) -> "Source":
    import numpy as np

    from latentrt.augment.labels import Form
    from latentrt.augment.source import Source, read_source, split_off
    from latentrt.augment.templates import EVERY

    if options.yolo is None:
        names = tuple(name for name in settings.templates.classes if name != EVERY)
        if [mode.name for mode in settings.copies.modes] != ["prompts"] or not names:
            raise RequestError("no --yolo", expected="a dataset, or --mode prompts and --prompts FILE with classes")
        return Source(Form("classify", names), (), (), {})
    console.status(f"reading {options.yolo}")
    source = read_source(options.yolo, task=options.task)
    for bad in source.bad[:SHOWN]:
        console.note(str(bad))
    if source.bad and options.on_error == "stop":
        raise RequestError(
            f"bad labels or pictures in {options.yolo}: {len(source.bad)}, the first is {source.bad[0]}",
            hint="correct them, or leave them out with --on-error skip",
        )
    if options.val is not None:
        if source.of("val"):
            raise RequestError("--val, and the dataset has val", expected="one of them")
        order = np.random.default_rng(options.seed).random(len(source.of("train")))
        source = split_off(source, options.val, order=order)
    if source.form.task != "classify" and not source.of("val"):
        raise RequestError(
            f"no val in {options.yolo}", expected="real pictures to judge by", hint="--val 0.2 takes some"
        )
    return source


def _scores(options: argparse.Namespace) -> dict[str, "Score"]:
    from latentrt.augment.scores import agreement_with, loaded, text_score, ultralytics_detector

    found: dict[str, Score] = {}
    if options.detector is not None:
        model = options.detector.endswith(".pt")
        detector = ultralytics_detector(options.detector) if model else loaded(options.detector)
        found["agreement"] = agreement_with(detector)
    if options.text_score is not None:
        found["text"] = text_score(loaded(options.text_score))
    for text in options.score:
        name, spec = _pair(text, "NAME=FILE.py:FUNCTION")
        found[name] = loaded(spec)
    return found


def _least(texts: list[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, value = _pair(text, "SCORE=VALUE, such as agreement=0.6")
        try:
            found[name] = float(value)
        except ValueError:
            raise RequestError(f"--least {text}", expected="SCORE=VALUE, such as agreement=0.6") from None
    return found


def _pair(text: str, expected: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise RequestError(f"'{text}'", expected=expected)
    return name, value


def _progress(console: Console) -> Any:
    bars: dict[str, Bar] = {}

    def update(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = Bar(console, what, total=total, lines=what == "images")
        bars[what].update(done)

    return update


def _say(summary: "Summary", options: argparse.Namespace, console: Console, about: Mapping[str, Any]) -> int:
    lines = [
        f"{summary.kept} of {summary.made} pictures kept beside {summary.real} real ones in {options.output},"
        f" {summary.new} of them new",
        *(f"dropped for {name}: {times}" for name, times in summary.dropped.items()),
        *(f"nothing to do, {reason}: {times}" for reason, times in summary.skipped.items()),
        f"{options.output / 'report.html'}",
    ]
    document = {
        **about,
        "folder": str(options.output),
        **asdict(summary),
        "report": str(options.output / "report.html"),
    }
    console.result("\n".join(lines), document)
    return 0


ESSENTIAL = (
    *("--output", "--yolo", "--copies", "--mode", "--prompts", "--balance", "--least", "--detector", "--seed"),
    *("--steps", "--guidance", "--backend"),
)
COMMAND = Command(
    help="make a YOLO dataset larger with a bundle",
    configure=configure,
    run=run,
    requires=(Requirement(extra="augment", packages=("yaml",)),),
    essential=ESSENTIAL,
)
