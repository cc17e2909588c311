"""`latentrt bench BUNDLE`: how long each stage takes on this machine, and against what else."""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import entry_points
from itertools import product
from typing import Any

from latentrt.backends import BACKENDS, choose, needed, usable
from latentrt.bench.figures import busy_warning, component_precisions, ran_as, spread, tail, tail_name
from latentrt.bench.machine import PACKAGES, provenance
from latentrt.bench.runner import PEERS, BenchRuns, Candidate, Peer, Workload, measure_apart
from latentrt.bundle import Bundle, is_bundle
from latentrt.cli.arguments import count, names, size
from latentrt.cli.command import Command
from latentrt.cli.console import Bar, Console, table
from latentrt.environment.requirement import Requirement
from latentrt.errors import EnvironmentLacks, RequestError
from latentrt.loading import cache_folder, loop_graphs
from latentrt.request import check_size

PROMPT = "a lighthouse on a cliff at dusk, oil on canvas"
NOISE = 0.03  # a difference that two runs on a quiet machine may show
STAGES = ("text_ms", "step_ms", "decode_ms", "total_ms")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory made by `latentrt export`")
    parser.add_argument(
        "--against",
        metavar="CHECKPOINT|BUNDLE",
        help="measure torch on the bundle's checkpoint as well, or the bundle that it was made from",
    )
    parser.add_argument("--backend", type=names, default=("auto",), metavar="A,B", help="names, auto (default), all")
    parser.add_argument("--compute", type=names, default=("fp32",), metavar="A,B", help="fp32 (default), bf16")
    parser.add_argument("--threads", type=int, metavar="N", help="threads within one call, of every candidate")
    parser.add_argument("--cache-dir", metavar="DIR", help="where compiled graphs are kept; default: ~/.cache/latentrt")
    group = parser.add_argument_group("work")
    group.add_argument("--size", type=size, metavar="WIDTHxHEIGHT", help="in pixels")
    group.add_argument("--batch", type=count, default=1, metavar="N", help="images at once (1)")
    group.add_argument("--steps", type=count, default=10, metavar="N", help="denoising steps of a run (10)")
    group.add_argument("--guidance", type=float, metavar="SCALE", help="1 is off and halves the network's batch")
    group.add_argument("--repeat", type=count, default=3, metavar="N", help="measured runs (3)")
    group.add_argument("--warmup", type=int, default=1, metavar="N", help="runs before that (1)")
    group.add_argument("--rounds", type=count, default=1, metavar="N", help="turns of each candidate (1)")


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
    parent = _parent(bundle, options.against, console)
    own = _own(options, bundle)
    candidates = _with_peers(own, options.against) if parent is None else _pairs(own, options, parent)
    where = provenance(bundle, packages=PACKAGES)  # first: what is measured is load, too
    warning = busy_warning(where["load_average"])
    if warning is not None:
        console.note(warning)
    results = compete(candidates, workload, rounds=options.rounds, console=console)
    document = {
        "provenance": where,
        "workload": asdict(workload) | {"rounds": options.rounds},
        "warnings": [] if warning is None else [warning],
        "results": results,
        "verdicts": [] if parent is None else verdicts(results, bundle.name, parent.name),
    }
    console.result(report(document), document)
    return 0


def _needs(options: argparse.Namespace) -> Sequence[Requirement]:
    checkpoint = options.against is not None and not is_bundle(options.against)
    peers = _peers() if checkpoint else []
    return *needed(options.backend), *(each for peer in peers for each in peer.requires)


COMMAND = Command(help="measure latency and memory on this machine", configure=configure, run=run, requires=_needs)


def compete(
    candidates: Sequence[Candidate], workload: Workload, *, rounds: int, console: Console
) -> list[dict[str, Any]]:
    """Measures all candidates, one process after the other, by turns; ratios are to each one's `base`."""
    turns = [(turn, candidate) for turn in range(rounds) for candidate in candidates]
    measured: dict[str, list[BenchRuns]] = {candidate.name: [] for candidate in candidates}
    for turn, candidate in turns:
        label = candidate.name if rounds == 1 else f"{candidate.name}, turn {turn + 1} of {rounds}"
        latest = measure_apart(candidate, workload, progress=_progress(label, workload, console))
        measured[candidate.name].append(latest)
        console.note(f"{label}: {summary([latest], batch=workload.batch)['step_ms']['median']:.1f} ms a step")
    rows = {
        candidate.name: {
            "name": candidate.name,
            "precision": dict(candidate.precision),
            **summary(measured[candidate.name], batch=workload.batch),
        }
        for candidate in candidates
    }
    return [rows[each.name] | ratios(rows[each.name], rows.get(each.base or "")) for each in candidates]


def summary(turns: Sequence[BenchRuns], *, batch: int) -> dict[str, Any]:
    """Median, slowest and samples of each stage in milliseconds, images per second, memory."""
    samples = [sample for turn in turns for sample in turn.samples]
    stages = {
        "text_ms": [sample.text_ms for sample in samples],
        "step_ms": [call for sample in samples for call in sample.steps_ms],
        "decode_ms": [sample.decode_ms for sample in samples],
        "total_ms": [sample.total_ms for sample in samples],
    }
    return {
        **{name: spread(values, runs=len(samples)) for name, values in stages.items()},
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


def verdicts(results: Sequence[Mapping[str, Any]], name: str, parent: str) -> list[str]:
    """What converting or calibrating has won on this machine, a sentence for each row that has another one as base."""
    sentences = []
    for row in results:
        if row.get("against", row["name"]) == row["name"]:
            continue
        speed = row["step_speedup"]
        if speed < 1 - NOISE:
            said = f"{name} is SLOWER than {parent}: a step takes {1 / speed:.2f} times as long"
        elif speed < 1 + NOISE:
            said = f"{name} is no faster than {parent}"
        else:
            said = f"{name} is faster than {parent}: {speed:.2f} steps in the time of one"
        sentences.append(f"{row['name']}: {said}")
    return sentences


def report(document: Mapping[str, Any]) -> str:
    """The document as text."""
    work, where, results = document["workload"], document["provenance"], document["results"]
    versus = "against" in results[0]
    heads = ["", *(f"{stage.removesuffix('_ms')} ms" for stage in STAGES), "images/s", "peak MB", "load s"]
    rows = [[*heads, *(("step x", "total x") if versus else ())]]
    for row in results:
        cells = [f"{row[stage]['median']:.1f} ({tail(row[stage]):.1f})" for stage in STAGES]
        cells += [f"{row['images_per_s']:.3g}", f"{row['peak_memory_mb']:.0f}", f"{row['load_s']:.1f}"]
        rows.append([row["name"], *cells, *_speedups(row)])
    width, height = work["size"]
    notes = [
        "",
        f"median ({tail_name(row[stage] for row in results for stage in STAGES)}) of"
        f" {work['repeat'] * work['rounds']} runs: {width}x{height}, batch {work['batch']}, {work['steps']} steps,"
        f" guidance {work['guidance']:g}",
        f"{where['cpu']}, {where['cores']} cores, load average {where['load_average']} before",
        *document["warnings"],
    ]
    if versus:
        bases = list(dict.fromkeys(row["against"] for row in results))
        notes.append(f"x: times as fast as {bases[0] if len(bases) == 1 else 'the other bundle on the same backend'}")
    return "\n".join([table(rows), *notes, *document["verdicts"]])


def _speedups(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['step_speedup']:.2f}", f"{row['total_speedup']:.2f}"] if "against" in row else []


def _parent(bundle: Bundle, against: str | None, console: Console) -> Bundle | None:
    """The bundle at `against`, None where there is none; a RequestError for one of another family."""
    if against is None or not is_bundle(against):
        return None
    parent = Bundle.open(against)
    if parent.family != bundle.family:
        raise RequestError(
            f"{parent.root} and {bundle.root} are of different families", expected="the bundle that it was made from"
        )
    if not bundle.made_from(parent):
        console.note(f"{bundle.root} was not made from {parent.root} as it is now; compared all the same")
    return parent


def _pairs(own: Sequence[Candidate], options: argparse.Namespace, parent: Bundle) -> list[Candidate]:
    """Each candidate behind the same one with the other bundle."""
    pairs = []
    for candidate, other in zip(own, _own(options, parent), strict=True):
        base = f"{other.name}, {parent.name}"
        pairs += [replace(other, name=base, base=base), replace(candidate, base=base)]
    return pairs


def _own(options: argparse.Namespace, bundle: Bundle) -> list[Candidate]:
    """This runtime's candidates with a bundle: every combination that is offered, where several are asked for."""
    graphs, cache = loop_graphs(bundle), cache_folder(bundle, options.cache_dir)
    asked = usable(graphs, cache) if options.backend == ("all",) else options.backend
    pairs = list(product(asked, options.compute))
    offered = [pair for pair in pairs if _offers(*pair)]
    chosen = [
        (choose(backend, compute=compute, graphs=graphs, cache_dir=cache).name, compute)
        for backend, compute in offered or pairs
    ]
    return [
        own_candidate(bundle, backend=backend, compute=compute, cache_dir=options.cache_dir)
        for backend, compute in dict.fromkeys(chosen)
    ]


def own_candidate(bundle: Bundle, *, backend: str, compute: str, cache_dir: str | None = None) -> Candidate:
    """This runtime with a bundle on a backend, called by what runs: `openvino int8, rest fp32`."""
    precision = component_precisions(bundle, compute=compute)
    return Candidate(
        f"{backend} {ran_as(precision)}",
        "latentrt.bench.runner:open_bundle",
        {"path": str(bundle.root), "backend": backend, "compute": compute, "cache_dir": cache_dir},
        precision=precision,
    )


def _offers(backend: str, compute: str) -> bool:
    """Whether a pair can be had; of an unknown name `choose` is to complain."""
    row = next((row for row in BACKENDS if row.name == backend), None)
    return row is None or row.offers(device=None, compute=compute)


def _with_peers(own: Sequence[Candidate], checkpoint: str | None) -> list[Candidate]:
    """Beside them what other distributions, and the export part of this one, measure a checkpoint with; the first of
    these is the base of all."""
    if checkpoint is None:
        return list(own)
    peers = [candidate for peer in _peers() for candidate in peer(checkpoint)]
    if not peers:
        raise EnvironmentLacks("nothing installed measures a checkpoint", expected=f"an entry point in {PEERS}")
    return [replace(candidate, base=peers[0].name) for candidate in (*own, *peers)]


def _peers() -> list[Peer]:
    return [entry.load() for entry in entry_points(group=PEERS)]


def _progress(label: str, workload: Workload, console: Console) -> Callable[[int], None]:
    bar = Bar(console, label, total=workload.warmup + workload.repeat)
    bar.update(0, text="loading")
    return lambda done: bar.update(done)
