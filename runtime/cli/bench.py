"""`latentrt bench BUNDLE`: how long each stage takes on this machine, and against what else."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import entry_points
from itertools import product
from pathlib import Path
from typing import Any

from latentrt.backends import BACKENDS, backend_row, choose, needed, usable
from latentrt.bench.figures import busy_warning, component_precisions, ran_as, ratios, summary, verdicts
from latentrt.bench.machine import PACKAGES, provenance
from latentrt.bench.page import render
from latentrt.bench.runner import PEERS, BenchRuns, Candidate, Peer, Workload, measure_apart, stable
from latentrt.bench.tables import as_csv, latency_rows, notes, percentile_rows
from latentrt.bundle import Bundle, is_bundle
from latentrt.cli.arguments import count, counts, names, seconds, size
from latentrt.cli.command import Command
from latentrt.cli.console import Bar, Console, table
from latentrt.cli.profile import check_alone, run_profile
from latentrt.environment.requirement import Requirement
from latentrt.errors import BackendError, EnvironmentLacks, RequestError
from latentrt.files.atomic import write_whole
from latentrt.loading import cache_folder, loop_graphs
from latentrt.request import check_size

PROMPT = "a lighthouse on a cliff at dusk, oil on canvas"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory made by `latentrt export`")
    parser.add_argument(
        "--against",
        metavar="CHECKPOINT|BUNDLE",
        help="measure torch on the bundle's checkpoint as well, or the bundle that it was made from",
    )
    parser.add_argument("--profile", action="store_true", help="what the nodes of each graph take, instead")
    parser.add_argument("--backend", type=names, default=("auto",), metavar="A,B", help="names, auto (default), all")
    parser.add_argument("--compute", type=names, default=("fp32",), metavar="A,B", help="fp32 (default), bf16")
    parser.add_argument(
        "--threads",
        type=counts,
        default=(None,),
        metavar="A,B",
        help="threads within one call, of every candidate; each number in turn. Default: the candidate's choice",
    )
    parser.add_argument("--cache-dir", metavar="DIR", help="where compiled graphs are kept; default: ~/.cache/latentrt")
    group = parser.add_argument_group("work")
    group.add_argument("--size", type=size, metavar="WIDTHxHEIGHT", help="in pixels")
    group.add_argument("--batch", type=counts, default=(1,), metavar="A,B", help="images at once, each in turn (1)")
    group.add_argument("--steps", type=count, default=10, metavar="N", help="denoising steps of a run (10)")
    group.add_argument("--guidance", type=float, metavar="SCALE", help="1 is off and halves the network's batch")
    group.add_argument("--repeat", type=count, default=3, metavar="N", help="measured runs, at least (3)")
    group.add_argument(
        "--duration", type=seconds, default=0.0, metavar="S", help="measure for so many seconds, at least (0)"
    )
    group.add_argument(
        "--warmup",
        type=_warmup,
        metavar="N",
        help="runs before that; default: auto, until two in a row take equally long",
    )
    group.add_argument("--rounds", type=count, default=1, metavar="N", help="turns of each candidate (1)")
    group = parser.add_argument_group("results")
    group.add_argument("--csv", type=Path, metavar="FILE", help="write a line for each row as well")
    group.add_argument("--report", type=Path, metavar="FILE", help="write an HTML page with plots as well")


def run(options: argparse.Namespace, console: Console) -> int:
    bundle = Bundle.open(options.bundle)
    workload = _workload(options, bundle)
    _check_places(options)
    own = _own(options, bundle)
    if options.profile:
        check_alone(options)
        return run_profile(options, bundle, own, workload, console)
    parent = _parent(bundle, options.against, console)
    candidates = _with_peers(own, options.against, bundle) if parent is None else _pairs(own, options, parent)
    where = provenance(bundle, packages=PACKAGES)  # first: what is measured is load, too
    busy = busy_warning(where["load_average"])
    warnings = [*([] if busy is None else [busy]), *_slow(own, bundle)]
    for warning in warnings:
        console.note(warning)
    points = [
        replace(workload, batch=batch, threads=threads) for batch, threads in product(options.batch, options.threads)
    ]
    results = compete(candidates, points, rounds=options.rounds, console=console, warnings=warnings)
    document = {
        "provenance": where,
        "workload": asdict(workload)
        | {"batch": [*options.batch], "threads": [*options.threads], "rounds": options.rounds},
        "warnings": warnings,
        "results": results,
        "verdicts": [] if parent is None else verdicts(results, bundle.name, parent.name),
    }
    _write(options, document, title=f"latentrt bench {bundle.name}")
    console.result(report(document), document)
    return 0


def _needs(options: argparse.Namespace) -> Sequence[Requirement]:
    checkpoint = options.against is not None and not is_bundle(options.against)
    peers = _peers() if checkpoint else []
    return *needed(options.backend), *(each for peer in peers for each in peer.requires)


COMMAND = Command(help="measure latency and memory on this machine", configure=configure, run=run, requires=_needs)


def compete(
    candidates: Sequence[Candidate],
    points: Sequence[Workload],
    *,
    rounds: int,
    console: Console,
    warnings: list[str] | None = None,
) -> list[dict[str, Any]]:
    """Measures all candidates at all points of a sweep, one process after the other, by turns; ratios are to each
    one's `base` at the same point.

    Args:
        warnings: is told of what was not at rest, and of points that a candidate failed at which had measured others:
            these have no row.

    Raises:
        LatentRTError: what a candidate raised.
    """
    told = warnings if warnings is not None else []
    rows: list[dict[str, Any]] = []
    for point in points:
        measured: dict[str, list[BenchRuns]] = {candidate.name: [] for candidate in candidates}
        for turn, candidate in product(range(rounds), candidates):
            label = candidate.name if rounds == 1 else f"{candidate.name}, turn {turn + 1} of {rounds}"
            label += f", batch {point.batch}" if len(points) > 1 else ""
            try:
                latest = measure_apart(candidate, point, progress=_progress(label, point, console))
            except BackendError as error:
                if not any(row["name"] == candidate.name for row in rows):
                    raise
                told.append(f"{label}: {error}")
                console.note(told[-1])
                measured[candidate.name].clear()
                continue
            measured[candidate.name].append(latest)
            console.note(f"{label}: {summary([latest], batch=point.batch)['step_ms']['median']:.1f} ms a step")
            if point.warmup is None and not stable(latest.warmup):
                told.append(f"{label}: still not at rest after {len(latest.warmup)} runs of warm-up")
                console.note(told[-1])
        rows += _rows(candidates, measured, point)
    return rows


def _rows(
    candidates: Sequence[Candidate], measured: Mapping[str, Sequence[BenchRuns]], point: Workload
) -> list[dict[str, Any]]:
    """Those of one point."""
    rows = {
        candidate.name: {
            "name": candidate.name,
            "batch": point.batch,
            "threads": point.threads,
            "precision": dict(candidate.precision),
            **summary(measured[candidate.name], batch=point.batch),
        }
        for candidate in candidates
        if measured[candidate.name]
    }
    bases = {each.name: rows.get(each.base or "") for each in candidates}
    return [row | ratios(row, bases[name]) for name, row in rows.items()]


def report(document: Mapping[str, Any]) -> str:
    """The document as text."""
    percentiles = percentile_rows(document)
    parts = [table(latency_rows(document)), ""]
    parts += [table(percentiles, left=len(percentiles[0]) - 7), ""] if percentiles else []
    return "\n".join([*parts, *notes(document)])


def _workload(options: argparse.Namespace, bundle: Bundle) -> Workload:
    """At the first point of the sweep."""
    defaults = bundle.family.defaults
    return Workload(
        prompt=PROMPT,
        size=check_size(defaults.size if options.size is None else options.size, bundle.family),
        batch=options.batch[0],
        steps=options.steps,
        guidance=defaults.guidance if options.guidance is None else options.guidance,
        threads=options.threads[0],
        repeat=options.repeat,
        warmup=options.warmup,
        duration_s=options.duration,
    )


def _check_places(options: argparse.Namespace) -> None:
    """Raises EnvironmentLacks before the work if a file could not be written after it."""
    for path in (options.csv, options.report):
        if path is not None and not path.parent.is_dir():
            raise EnvironmentLacks(f"cannot write {path}: no folder {path.parent}", hint="create the folder first")


def _write(options: argparse.Namespace, document: Mapping[str, Any], *, title: str) -> None:
    if options.csv is not None:
        write_whole(options.csv, as_csv(document["results"]).encode())
    if options.report is not None:
        write_whole(options.report, render(document, title=title).encode())


def _warmup(text: str) -> int | None:
    """`auto`, or a number of runs."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise RequestError(f"warmup '{text}'", expected="auto, or a whole number")
    return int(text)


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
    pooled = ", pooled attention" if bundle.component("step").pooled_attention else ""
    return Candidate(
        f"{backend} {ran_as(precision)}{pooled}",
        "latentrt.bench.runner:open_bundle",
        {"path": str(bundle.root), "backend": backend, "compute": compute, "cache_dir": cache_dir},
        precision=precision,
    )


def _slow(own: Sequence[Candidate], bundle: Bundle) -> list[str]:
    """What to say of formats that the backends of these candidates gain nothing by."""
    names = dict.fromkeys(str(candidate.options["backend"]) for candidate in own)
    return [slow for name in names for slow in backend_row(name).slow_on(loop_graphs(bundle))]


def _offers(backend: str, compute: str) -> bool:
    """Whether a pair can be had; of an unknown name `choose` is to complain."""
    row = next((row for row in BACKENDS if row.name == backend), None)
    return row is None or row.offers(device=None, compute=compute)


def _with_peers(own: Sequence[Candidate], checkpoint: str | None, bundle: Bundle) -> list[Candidate]:
    """Beside them what other distributions, and the export part of this one, measure a checkpoint with; the first of
    these is the base of all."""
    if checkpoint is None:
        return list(own)
    peers = [candidate for peer in _peers() for candidate in peer(checkpoint)]
    if not peers:
        raise EnvironmentLacks("nothing installed measures a checkpoint", expected=f"an entry point in {PEERS}")
    if bundle.left_out:
        without = {"without": ",".join(bundle.left_out)}
        peers = [replace(peer, options={**peer.options, **without}) for peer in peers]
    return [replace(candidate, base=peers[0].name) for candidate in (*own, *peers)]


def _peers() -> list[Peer]:
    return [entry.load() for entry in entry_points(group=PEERS)]


def _progress(label: str, point: Workload, console: Console) -> Callable[[int], None]:
    """A bar where the number of runs is known, else their count."""
    if point.warmup is None or point.duration_s:
        console.status(f"{label}: loading")
        return lambda done: console.status(f"{label}: {done} runs")
    bar = Bar(console, label, total=point.warmup + point.repeat)
    bar.update(0, text="loading")
    return lambda done: bar.update(done)
