"""`latentrt build --backend onnxruntime --device cuda`. Needs onnx, and neither a GPU nor onnxruntime."""

import argparse
from pathlib import Path

from latentrt.backends import backend_row
from latentrt.backends.onnxruntime.cuda import describe_rewritten
from latentrt.bundle import Bundle
from latentrt.cli.console import Console, megabytes
from latentrt.environment.requirement import check_requirements
from latentrt.errors import EnvironmentLacks, RequestError
from latentrt.export.engines.ranges import Ranges
from latentrt.export.extras import REWRITE_NEEDS
from latentrt.loading import cache_folder


def engines_folder(bundle: Bundle, asked: str | None) -> Path:
    """Where engines are written."""
    folder = cache_folder(bundle, asked)
    if folder is None:
        where = "the bundle and the user's cache" if asked is None else asked
        raise EnvironmentLacks(f"engines cannot be written to {where}", hint="choose another folder with --cache-dir")
    return folder


def run_rewrite(bundle: Bundle, options: argparse.Namespace, console: Console) -> int:
    """Makes the graphs; one serves every size, so that sizes are checked and otherwise of no meaning."""
    for name, given in (("--gpus", options.gpus), ("--weight-streaming", options.weight_streaming)):
        if given:
            raise RequestError(f"{name} with onnxruntime", expected="a TensorRT backend", hint=f"leave out {name}")
    if options.lora:
        raise RequestError(
            "--lora with onnxruntime",
            expected="a TensorRT backend",
            hint="make a bundle with the LoRA in it: latentrt convert BUNDLE -o OTHER --lora FILE:SCALE",
        )
    Ranges.of(bundle.family, size=options.size, batch=options.batch, branches=options.branches, context=options.context)
    check_requirements("latentrt build --backend onnxruntime --device cuda", REWRITE_NEEDS)
    from latentrt.export.engines.rewrite import FinishedGraph, prune_rewritten, rewrite_graphs

    folder = engines_folder(bundle, options.cache_dir)

    def show(graph: FinishedGraph) -> None:
        record = graph.found.record
        changes = ", ".join(f"{count} {name}" for name, count in record.changes.items() if count)
        took = "built before" if graph.reused else f"{graph.seconds:6.1f} s"
        console.note(f"{record.component:<14} {changes:<40} {megabytes(record.bytes):>10}  {took}")

    made = rewrite_graphs(bundle, folder=folder, components=options.components, progress=show)
    for slow in backend_row("onnxruntime").slow_on([part.graph for part in bundle.components.values()], device="cuda"):
        console.note(slow)
    pruned = prune_rewritten(bundle, folder=folder) if options.prune else []
    for found, reason in pruned:
        console.note(f"{found.record.component:<14} {megabytes(found.record.bytes):>10}  removed: {reason}")
    new = sum(not graph.reused for graph in made)
    text = f"{folder}: {_count(new)} rewritten for CUDA, {len(made) - new} there; they serve every size"
    document = {
        "bundle": str(bundle.root),
        "folder": str(folder),
        "graphs": [{**describe_rewritten(graph.found), "kept": graph.reused} for graph in made],
        "removed": [describe_rewritten(found, reason) for found, reason in pruned],
    }
    console.result(text + (f"; {_count(len(pruned))} removed" if options.prune else ""), document)
    return 0


def _count(number: int) -> str:
    return f"{number} graph{'' if number == 1 else 's'}"
