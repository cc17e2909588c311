"""`latentrt bench BUNDLE`: how long each stage takes on this machine, and against what else."""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import entry_points
from itertools import product
from typing import Any

from latentrt.backends import BACKENDS, available, choose
from latentrt.bundle import Bundle
from latentrt.cli.arguments import count, names, size
from latentrt.cli.command import Command
from latentrt.cli.console import Bar, Console, table
from latentrt.cli.contest import PEERS, Contender, Measurement, Workload, measure_apart
from latentrt.cli.machine import provenance
from latentrt.errors import EnvironmentLacks
from latentrt.request import check_size

PROMPT = "a lighthouse on a cliff at dusk, oil on canvas"
PACKAGES = ("numpy", "tokenizers", "openvino", "onnxruntime", "torch", "diffusers", "transformers")
STAGES = ("text_ms", "step_ms", "decode_ms", "total_ms")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory made by `latentrt export`")
    parser.add_argument("--against", metavar="CHECKPOINT", help="measure torch on the bundle's checkpoint as well")
    parser.add_argument("--backend", type=names, default=("auto",), metavar="A,B", help="names, auto (default), all")
    parser.add_argument("--compute", type=names, default=("fp32",), metavar="A,B", help="fp32 (default), bf16")
    parser.add_argument("--threads", type=int, metavar="N", help="threads within one call, of every contender")
    parser.add_argument("--cache-dir", metavar="DIR", help="where compiled graphs are kept; default: in the bundle")
    group = parser.add_argument_group("work")
    group.add_argument("--size", type=size, metavar="WIDTHxHEIGHT", help="in pixels")
    group.add_argument("--batch", type=count, default=1, metavar="N", help="images at once (1)")
    group.add_argument("--steps", type=count, default=10, metavar="N", help="denoising steps of a run (10)")
    group.add_argument("--guidance", type=float, metavar="SCALE", help="1 is off and halves the network's batch")
    group.add_argument("--repeat", type=count, default=3, metavar="N", help="measured runs (3)")
    group.add_argument("--warmup", type=int, default=1, metavar="N", help="runs before that (1)")
    group.add_argument("--rounds", type=count, default=1, metavar="N", help="turns of each contender (1)")


def run(options: argparse.Namespace, console: Console) -> int:
    bundle = Bundle.open(options.bundle)
    defaults = bundle.family.defaults
    workload = Workload(
        prompt=PROMPT,
        size=check_size(bundle.family.defaults.size if options.size is None else options.size, bundle.family),
        batch=options.batch,
        steps=options.steps,
        guidance=defaults.guidance if options.guidance is None else options.guidance,
        threads=options.threads,
        repeat=options.repeat,
        warmup=options.warmup,
    )
    contenders = [*_own(options), *_peers(options.against)]
    results = compete(contenders, workload, rounds=options.rounds, console=console)
    document = {
        "provenance": provenance(bundle, packages=PACKAGES),
        "workload": asdict(workload) | {"rounds": options.rounds},
        "results": results,
    }
    console.result(report(document), document)
    return 0


COMMAND = Command(help="measure latency and memory on this machine", configure=configure, run=run)


def compete(
    contenders: Sequence[Contender], workload: Workload, *, rounds: int, console: Console
) -> list[dict[str, Any]]:
    """Measures all contenders, one process after the other, by turns; ratios are to the first peer, if there is one.

    Raises:
        LatentRTError: what a contender raised.
    """
    turns = [(turn, contender) for turn in range(rounds) for contender in contenders]
    measured: dict[str, list[Measurement]] = {contender.name: [] for contender in contenders}
    for turn, contender in turns:
        label = contender.name if rounds == 1 else f"{contender.name}, turn {turn + 1} of {rounds}"
        latest = measure_apart(contender, workload, progress=_progress(label, workload, console))
        measured[contender.name].append(latest)
        console.note(f"{label}: {summary([latest], batch=workload.batch)['step_ms']['median']:.1f} ms a step")
    rows = [{"name": name, **summary(turns, batch=workload.batch)} for name, turns in measured.items()]
    reference = next((c.name for c in contenders if not c.opener.startswith(__package__)), None)
    base = next((row for row in rows if row["name"] == reference), None)
    return [row | ratios(row, base) for row in rows]


def summary(turns: Sequence[Measurement], *, batch: int) -> dict[str, Any]:
    """Median, 95th percentile and samples of each stage in milliseconds, images per second, memory."""
    samples = [sample for turn in turns for sample in turn.samples]
    stages = {
        "text_ms": [sample.text_ms for sample in samples],
        "step_ms": [call for sample in samples for call in sample.steps_ms],
        "decode_ms": [sample.decode_ms for sample in samples],
        "total_ms": [sample.total_ms for sample in samples],
    }
    return {
        **{name: _spread(values) for name, values in stages.items()},
        "images_per_s": batch / (statistics.median(stages["total_ms"]) / 1e3),
        "load_s": max(turn.load_s for turn in turns),
        "peak_memory_mb": max(turn.peak_memory_mb for turn in turns),
    }


def ratios(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> dict[str, Any]:
    """How many times as fast as `base`, by medians."""
    if base is None:
        return {}
    return {
        "against": base["name"],
        "step_speedup": base["step_ms"]["median"] / row["step_ms"]["median"],
        "total_speedup": base["total_ms"]["median"] / row["total_ms"]["median"],
    }


def report(document: Mapping[str, Any]) -> str:
    """The document as text."""
    work, where, results = document["workload"], document["provenance"], document["results"]
    versus = "against" in results[0]
    heads = ["", *(f"{stage.removesuffix('_ms')} ms" for stage in STAGES), "images/s", "peak MB", "load s"]
    rows = [[*heads, *(("step x", "total x") if versus else ())]]
    for row in results:
        cells = [f"{row[stage]['median']:.1f} ({row[stage]['p95']:.1f})" for stage in STAGES]
        cells += [f"{row['images_per_s']:.3g}", f"{row['peak_memory_mb']:.0f}", f"{row['load_s']:.1f}"]
        rows.append([row["name"], *cells, *_speedups(row)])
    width, height = work["size"]
    notes = [
        "",
        f"median (95th percentile) of {work['repeat'] * work['rounds']} runs: {width}x{height}, batch {work['batch']},"
        f" {work['steps']} steps, guidance {work['guidance']:g}",
        f"{where['cpu']}, {where['cores']} cores, load average {where['load_average']}",
    ]
    if versus:
        notes.append(f"x: times as fast as {results[0]['against']}")
    return "\n".join([table(rows), *notes])


def _speedups(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['step_speedup']:.2f}", f"{row['total_speedup']:.2f}"] if "against" in row else []


def _spread(values: Sequence[float]) -> dict[str, Any]:
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {"median": statistics.median(ordered), "p95": p95, "samples": [round(value, 3) for value in values]}


def _own(options: argparse.Namespace) -> list[Contender]:
    """This runtime's contenders: every combination that is offered, where several are asked for.

    Raises:
        RequestError: unknown, or not offered.
        EnvironmentLacks: not installed.
    """
    asked = available() if options.backend == ("all",) else options.backend
    if not asked:
        raise EnvironmentLacks("no backend is installed", hint='install one with: pip install "latentrt[openvino]"')
    pairs = list(product(asked, options.compute))
    offered = [pair for pair in pairs if _offers(*pair)]
    chosen = [(choose(backend, compute=compute).name, compute) for backend, compute in offered or pairs]
    return [
        Contender(
            f"{backend} {compute}",
            f"{__package__}.contest:open_bundle",
            {"path": options.bundle, "backend": backend, "compute": compute, "cache_dir": options.cache_dir},
        )
        for backend, compute in dict.fromkeys(chosen)
    ]


def _offers(backend: str, compute: str) -> bool:
    """Whether a pair can be had; of an unknown name `choose` is to complain."""
    row = next((row for row in BACKENDS if row.name == backend), None)
    return row is None or row.offers(device=None, compute=compute)


def _peers(checkpoint: str | None) -> list[Contender]:
    """What other distributions, and the export part of this one, measure a checkpoint with."""
    if checkpoint is None:
        return []
    found = [peer for entry in entry_points(group=PEERS) for peer in entry.load()(checkpoint)]
    if not found:
        raise EnvironmentLacks("nothing installed measures a checkpoint", expected=f"an entry point in {PEERS}")
    return found


def _progress(label: str, workload: Workload, console: Console) -> Callable[[int], None]:
    bar = Bar(console, label, total=workload.warmup + workload.repeat)
    bar.update(0, text="loading")
    return lambda done: bar.update(done)
