"""Other runtimes on the same random checkpoint, by turns in one run on this machine.

    python -m benchmarks.peers                    # a tiny checkpoint: whether all of them work, in minutes
    python -m benchmarks.peers --full             # Stable Diffusion 1.5 in full size: for a machine at rest
    python -m benchmarks.peers --only torch latentrt

Makes an environment of each under build/peers, with the packages of benchmarks/peers/pins; the checkpoint, and what
each makes of it. In the first turn nothing that a candidate keeps is there, in the others it is. Speed does not depend
on the values of weights. Writes benchmarks/results/<date>-peers-<what>.json, and prints a table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.full import made
from benchmarks.peers.contenders import (
    GENAI,
    ONNX,
    TORCH,
    Contender,
    genai_contenders,
    onnx_contender,
    own_contenders,
    torch_contenders,
)
from benchmarks.peers.environments import ROOT, environment, versions
from benchmarks.result_file import FOLDER, write_result
from latentrt.backends.openvino import capabilities
from latentrt.bench.figures import busy_warning, summary
from latentrt.bench.machine import PACKAGES, provenance
from latentrt.bench.runner import BenchRuns, Workload, measure_apart
from latentrt.bundle import Bundle
from latentrt.cli.arguments import size
from latentrt.cli.bench import PROMPT
from latentrt.errors import LatentRTError

OWN = "latentrt"
KINDS = (OWN, TORCH, ONNX, GENAI)
SHOWN = (
    "torch",
    "diffusers",
    "transformers",
    "optimum-onnx",
    "optimum-intel",
    "onnxruntime",
    "openvino",
    "openvino-genai",
)
"""Packages whose versions a row names; the file of pins has all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="sd15 at 512x512 instead of tiny-sd15 at 64x64")
    parser.add_argument("--architecture", help="another one of latentrt.export.synthetic")
    parser.add_argument("--size", type=size, metavar="WIDTHxHEIGHT")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="NAME", help=", ".join(KINDS))
    parser.add_argument("--int8", action="store_true", help="measure our int8 bundle as well, calibrated if missing")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=2, help="measured runs in each turn (2)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each, the first without a cache (2)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--results", type=Path, default=FOLDER)
    options = parser.parse_args()
    if options.architecture is None:
        options.architecture = "sd15" if options.full else "tiny-sd15"
    if options.size is None:
        options.size = (512, 512) if options.full else (64, 64)
    os.chdir(ROOT)  # where the others import their openers from
    _, bundle, *_ = made(options.architecture, options.build, size=options.size, int8=options.int8)
    document = measured(_contenders(options, bundle), options, bundle)
    width, height = options.size
    path = write_result(document, what=f"peers-{options.architecture}-{width}x{height}", folder=options.results)
    print(f"{markdown(document)}\n\n{path}")


def _contenders(options: argparse.Namespace, bundle: Path) -> list[Contender]:
    """Those that are asked for, with their environments and files, which are made where they are missing."""
    checkpoint = options.build / "checkpoints" / options.architecture
    work = options.build / "peers"
    cache = work / "cache" / options.architecture
    computes = ["fp32", "bf16"] if "BF16" in capabilities() else ["fp32"]
    found: list[Contender] = []
    if TORCH in options.only:
        found += torch_contenders(checkpoint, environment(TORCH, work), cache)
    if ONNX in options.only:
        interpreter = environment(ONNX, work)
        found.append(onnx_contender(_converted(ONNX, interpreter, checkpoint, work), interpreter, cache))
    if GENAI in options.only:
        interpreter = environment(GENAI, work)
        found += genai_contenders(_converted(GENAI, interpreter, checkpoint, work), interpreter, cache, computes)
    if OWN in options.only:
        pairs = [("onnxruntime", "fp32"), *(("openvino", compute) for compute in computes)]
        found += own_contenders(bundle, cache, pairs)
        if options.int8:
            found += own_contenders(bundle.with_name(f"{bundle.name}-int8"), cache, pairs)
    return found


def _converted(kind: str, interpreter: Path, checkpoint: Path, work: Path) -> Path:
    """The checkpoint in a peer's own form; it appears when it is whole."""
    folder = work / "converted" / f"{checkpoint.name}-{kind}"
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        print(f"converting {checkpoint} with {kind}", file=sys.stderr, flush=True)
        command = [interpreter, "-m", "benchmarks.peers.convert", kind, checkpoint, part]
        done = subprocess.run([*map(str, command)], stdout=sys.stderr, check=False)
        if done.returncode:
            sys.exit(done.returncode)
        part.rename(folder)
    return folder


def measured(contenders: Sequence[Contender], options: argparse.Namespace, bundle: Path) -> dict[str, Any]:
    """All of them, by turns; one that fails says so in its row."""
    workload = Workload(
        prompt=PROMPT,
        size=options.size,
        batch=options.batch,
        steps=options.steps,
        guidance=options.guidance,
        threads=options.threads,
        repeat=options.repeat,
        warmup=1,
    )
    where = provenance(Bundle.open(bundle), packages=PACKAGES)  # first: what is measured is load, too
    busy = busy_warning(where["load_average"])
    turns: dict[str, list[BenchRuns]] = {each.candidate.name: [] for each in contenders}
    failed: dict[str, str] = {}
    for turn in range(options.rounds):
        for each in contenders:
            name = each.candidate.name
            if name in failed:
                continue
            if turn == 0:
                shutil.rmtree(_cache(each), ignore_errors=True)
                _cache(each).mkdir(parents=True)
            print(f"{name}: turn {turn + 1} of {options.rounds}", file=sys.stderr, flush=True)
            try:
                turns[name].append(measure_apart(each.candidate, workload, progress=_unheard))
            except LatentRTError as error:
                failed[name] = str(error)
                print(f"{name}: {error}", file=sys.stderr, flush=True)
    return {
        "command": ["python", "-m", "benchmarks.peers", *sys.argv[1:]],
        "provenance": where,
        "warnings": [] if busy is None else [busy],
        "workload": asdict(workload) | {"rounds": options.rounds},
        "results": [_row(each, turns[each.candidate.name], failed, options.batch) for each in contenders],
    }


def _row(each: Contender, turns: Sequence[BenchRuns], failed: Mapping[str, str], batch: int) -> dict[str, Any]:
    name = each.candidate.name
    interpreter = each.candidate.interpreter
    found = versions(Path(sys.executable if interpreter is None else interpreter))
    row: dict[str, Any] = {
        "name": name,
        "environment": each.environment,
        "versions": {package: version for package, version in found.items() if package in SHOWN},
        "precision": dict(each.candidate.precision),
        "differs": each.differs,
        "disk_mb": _bytes(each.files) / 1e6,
        "cache_mb": _bytes(_cache(each)) / 1e6,
    }
    if name in failed:
        return row | {"error": failed[name]}
    loads = [turn.load_s for turn in turns]
    cached = min(loads[1:]) if len(loads) > 1 else None
    return row | summary(turns, batch=batch) | {"load_cold_s": loads[0], "load_cached_s": cached}


def _cache(each: Contender) -> Path:
    return Path(str(each.candidate.options["cache_dir"]))


def _bytes(place: Path) -> int:
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())


_unheard: Callable[[int], None] = lambda done: None  # noqa: E731 - a turn is a line of its own


def markdown(document: Mapping[str, Any]) -> str:
    """A row for each, its failure in the place of figures, and below what it does differently."""
    work, where = document["workload"], document["provenance"]
    heads = [
        "",
        "text ms",
        "step ms",
        "decode ms",
        "total ms",
        "load s",
        "from cache s",
        "peak MB",
        "disk MB",
        "cache MB",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    notes = []
    for row in document["results"]:
        if row["differs"]:
            notes.append(f"- {row['name']} ({_named(row['versions'])}): {row['differs']}.")
        if "error" in row:
            lines.append(f"| {row['name']} | failed: {row['error']} |" + " |" * (len(heads) - 2))
            continue
        cells = [f"{row[stage]['median']:.0f}" for stage in ("text_ms", "step_ms", "decode_ms", "total_ms")]
        cached = row["load_cached_s"]
        cells += [f"{row['load_cold_s']:.1f}", "" if cached is None else f"{cached:.1f}"]
        cells += [f"{row[key]:.0f}" for key in ("peak_memory_mb", "disk_mb", "cache_mb")]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    width, height = work["size"]
    lines.append(
        f"\n{width}x{height}, batch {work['batch']}, guidance {work['guidance']:g}, {work['steps']} steps,"
        f" {work['repeat'] * work['rounds']} runs; {where['cpu']}, {where['cores']} cores,"
        f" load average {where['load_average']}, {where['date'][:10]}\n"
    )
    return "\n".join([*lines, *notes, *document["warnings"]])


def _named(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())


if __name__ == "__main__":
    main()
