"""`latentrt build`. Needs TensorRT, no torch, and onnx for LoRAs only; TensorRT is imported when the command runs."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentrt.backends import available, needed
from latentrt.bundle import Bundle
from latentrt.cli.arguments import add_lora, names, size
from latentrt.cli.command import Command
from latentrt.cli.compiled import prune_compiled
from latentrt.cli.console import Bar, Console, megabytes
from latentrt.errors import RequestError
from latentrt.export.cli.rewrite import engines_folder, run_rewrite
from latentrt.export.engines.build import BuildProgress, FinishedEngine, build_engines
from latentrt.export.engines.prune import prune_engines
from latentrt.export.engines.ranges import Ranges, SizeSpan, Span
from latentrt.export.extras import MERGE_NEEDS


def sizes(text: str) -> SizeSpan:
    """`512x512` or `512x512..1024x1024`."""
    return SizeSpan(*map(size, _ends(text)))


def span(text: str) -> Span:
    """`2` or `1..4`."""
    return Span(*map(_number, _ends(text)))


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory made by `latentrt export`")
    parser.add_argument(
        "--backend",
        required=True,
        metavar="NAME",
        help="tensorrt-rtx (needs no GPU) or tensorrt (builds on the GPU); onnxruntime with --device cuda (needs no "
        "GPU); openvino with --prune",
    )
    parser.add_argument("--device", metavar="NAME", help="cuda, the only one that anything is built for")
    parser.add_argument(
        "--gpus",
        type=names,
        metavar="A,B",
        help="architectures or cards, such as sm89,sm120 or rtx4090,l40s;"
        " default: sm80 and later, and sm75 if it has the number formats",
    )
    parser.add_argument("--components", type=names, metavar="A,B", help="build these; default: all")
    parser.add_argument(
        "--weight-streaming", action="store_true", help="let the runtime keep part of the weights in host memory"
    )
    add_lora(parser, "engines with a .safetensors file in their weights, at SCALE (1); may be repeated")
    parser.add_argument("--cache-dir", metavar="DIR", help="where engines are kept; default: in the bundle")
    parser.add_argument(
        "--prune",
        action="store_true",
        help="afterwards remove engines of graphs that are not in the bundle, and of other versions of TensorRT; of "
        "openvino, which compiles on first use, all compiled graphs",
    )
    group = parser.add_argument_group("sizes that the engines serve, one (512x512, 1) or a range (1..4)")
    group.add_argument("--size", type=sizes, metavar="WxH..WxH", help="in pixels; default: the bundle's size")
    group.add_argument("--batch", type=span, metavar="N..N", help="images at a time; default: 1")
    group.add_argument("--branches", type=span, metavar="N..N", help="guidance branches; default: 1..2")
    group.add_argument("--context", type=span, metavar="N..N", help="tokens of a prompt; default: 77..231")


def run(options: argparse.Namespace, console: Console) -> int:
    bundle = Bundle.open(options.bundle)
    if options.device not in (None, "cuda"):
        raise RequestError(f"device '{options.device}'", expected="cuda: for the CPU nothing is built")
    if options.backend == "onnxruntime" and options.device == "cuda":
        return run_rewrite(bundle, options, console)
    if options.backend == "onnxruntime" and not options.prune:
        raise RequestError(
            "backend 'onnxruntime' compiles nothing for the CPU", hint="for NVIDIA GPUs add --device cuda"
        )
    if options.prune and options.backend in available():
        return _prune_compiled(bundle, options, console)
    ranges = Ranges.of(
        bundle.family, size=options.size, batch=options.batch, branches=options.branches, context=options.context
    )
    folder = engines_folder(bundle, options.cache_dir)
    began = time.perf_counter()
    engines = build_engines(
        bundle,
        backend=options.backend,
        folder=folder,
        ranges=ranges,
        gpus=options.gpus,
        components=options.components,
        lora=options.lora,
        weight_streaming=options.weight_streaming,
        progress=_Builds(console).show,
    )
    seconds = time.perf_counter() - began
    pruned = prune_engines(bundle, backend=options.backend, folder=folder) if options.prune else []
    for found in pruned:
        record = found.built.record
        name = f"{record.component:<14} {','.join(record.gpus):<12}"
        console.note(f"{name} {megabytes(found.bytes):>10}  removed: {found.reason}")
    text = _text(engines, folder, seconds)
    if options.prune:
        size = megabytes(sum(found.bytes for found in pruned))
        text += f"; {_engines(len(pruned))} removed ({size})" if pruned else "; none was outdated"
    console.result(
        text, {**_document(bundle, engines, folder, seconds), "removed": [found.describe() for found in pruned]}
    )
    return 0


def _prune_compiled(bundle: Bundle, options: argparse.Namespace, console: Console) -> int:
    """What is compiled on first use is not built, only removed."""
    rows = prune_compiled(bundle, options.backend, None if options.cache_dir is None else Path(options.cache_dir))
    count, size = sum(row["graphs"] for row in rows), sum(row["bytes"] for row in rows)
    console.result(
        f"{count} compiled graphs removed ({megabytes(size)})", {"bundle": str(bundle.root), "removed": rows}
    )
    return 0


BUILD = Command(
    help="build engines of a bundle for NVIDIA GPUs ahead of time",
    configure=configure,
    run=run,
    requires=lambda options: (*MERGE_NEEDS, *needed([options.backend])) if options.lora else (),
)


class _Builds:
    """Shows the engines as they come and go."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Bar | None = None

    def show(self, event: BuildProgress) -> None:
        if self._bar is None:
            self._bar = Bar(self._console, "building", total=event.count)
        if event.seconds is None:
            self._bar.update(event.position, text=f"{event.component} for {event.gpus}  {event.phase}")
            return
        took = "built before" if event.reused else f"{event.seconds:6.1f} s"
        self._console.note(f"{event.component:<14} {event.gpus:<12} {megabytes(event.bytes):>10}  {took}")


def _text(engines: Sequence[FinishedEngine], folder: Path, seconds: float) -> str:
    built = [engine for engine in engines if not engine.reused]
    size_bytes = megabytes(sum(engine.record.plan_bytes for engine in engines))
    if not built:
        return f"{folder}: nothing to build, {_engines(len(engines))} there ({size_bytes})"
    kept = f", {len(engines) - len(built)} there" if len(engines) > len(built) else ""
    return f"{folder}: {_engines(len(built))} built in {seconds:.0f} s{kept} ({size_bytes})"


def _engines(count: int) -> str:
    return f"{count} engine{'s' if count > 1 else ''}"


def _document(bundle: Bundle, engines: Sequence[FinishedEngine], folder: Path, seconds: float) -> dict[str, Any]:
    rows = [
        {
            "component": engine.record.component,
            "backend": engine.record.variant,
            "version": engine.record.version,
            "gpus": list(engine.record.gpus),
            "precision": engine.record.precision,
            "folder": str(engine.folder),
            "bytes": engine.record.plan_bytes,
            "weights_bytes": engine.record.weights_bytes,
            "activation_bytes": engine.record.activation_bytes,
            "options": dict(engine.record.options),
            "seconds": engine.record.seconds,
            "kept": engine.reused,
        }
        for engine in engines
    ]
    return {"bundle": str(bundle.root), "folder": str(folder), "seconds": seconds, "engines": rows}


def _ends(text: str) -> tuple[str, str]:
    low, dots, high = text.partition("..")
    return low, high if dots else low


def _number(text: str) -> int:
    if not text.isdecimal():
        raise RequestError(f"'{text}'", expected="a whole number, or a range such as 1..4")
    return int(text)
