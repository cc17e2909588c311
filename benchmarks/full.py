"""Stable Diffusion 1.5 in full size with random weights: this runtime against torch, on this machine.

    python -m benchmarks.full                                       # minutes to an hour, and 10 GB of memory
    python -m benchmarks.full --int8                                # and the int8 bundle, calibrated if it is missing
    python -m benchmarks.full --pooled                              # and the one with pooled attention
    python -m benchmarks.full --architecture tiny-sd15 --size 128x128   # the same path in seconds

Makes checkpoint and bundles under build/ where they are missing, writes benchmarks/results/<date>-<what>.json and
prints a table. Speed does not depend on the values of the weights.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.result_file import FOLDER, write_result
from latentrt.bench.machine import PACKAGES, provenance
from latentrt.bench.runner import Candidate, Workload
from latentrt.bundle import Bundle
from latentrt.cli.arguments import size
from latentrt.cli.bench import PROMPT, compete, own_candidate
from latentrt.cli.console import Console
from latentrt.export.bench_torch import candidates as torch_candidates

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("text_ms", "step_ms", "decode_ms", "total_ms")
BACKENDS = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"))  # and arithmetic of what is float32
# Speed does not depend on the scales either: these are counted on as little as possible.
BRIEF = ("--count", 1, "--steps", 1, "--alpha", "none", "--images", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", default="sd15", help="sd15 (default) or tiny-sd15")
    parser.add_argument("--size", type=size, default=(512, 512), metavar="WIDTHxHEIGHT")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=2, help="measured runs in each turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each candidate")
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--int8", action="store_true", help="measure the int8 bundle as well")
    parser.add_argument("--pooled", action="store_true", help="measure the bundle with pooled attention as well")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="where checkpoint and bundle lie")
    parser.add_argument("--results", type=Path, default=FOLDER)
    options = parser.parse_args()

    checkpoint, bundle, *others = made(
        options.architecture, options.build, size=options.size, int8=options.int8, pooled=options.pooled
    )
    candidates = [*torch_candidates(str(checkpoint)), *(each for path in (bundle, *others) for each in own(path))]
    candidates = [replace(candidate, base=candidates[0].name) for candidate in candidates]
    document = measured(candidates, options, bundle)
    width, height = options.size
    path = write_result(document, what=f"{options.architecture}-{width}x{height}", folder=options.results)
    print(f"{markdown(document)}\n\n{path}")


def made(
    architecture: str, build: Path, *, size: tuple[int, int], int8: bool = False, pooled: bool = False
) -> list[Path]:
    """Checkpoint, bundle, and the bundles in int8 and with pooled attention, made under `build` where missing."""
    checkpoint = build / "checkpoints" / architecture
    bundle = build / "bundles" / architecture
    if not (checkpoint / "model_index.json").is_file():
        python("-m", "latentrt.export.synthetic.checkpoints", architecture, "-o", checkpoint)
    if not (bundle / "bundle.json").is_file():
        latentrt("export", checkpoint, "-o", bundle, "--no-check")
    ways: dict[str, tuple[object, ...]] = {}
    if int8:
        ways["int8"] = ("calibrate", bundle, "--size", "x".join(map(str, size)), *BRIEF)
    if pooled:
        ways["pooled"] = ("export", checkpoint, "--pool-attention", "--no-check")
    others = {bundle.with_name(f"{bundle.name}-{name}"): way for name, way in ways.items()}
    for path, way in others.items():
        if not (path / "bundle.json").is_file():
            latentrt(*way, "-o", path)
    return [checkpoint, bundle, *others]


def own(bundle: Path) -> list[Candidate]:
    """This runtime on a bundle, in every way that is worth measuring on a CPU."""
    opened = Bundle.open(bundle)
    return [own_candidate(opened, backend=backend, compute=compute) for backend, compute in BACKENDS]


def measured(candidates: list[Candidate], options: argparse.Namespace, bundle: Path) -> dict[str, Any]:
    """What `latentrt bench` makes of the candidates, by turns in this one run."""
    workload = Workload(
        prompt=PROMPT,
        size=options.size,
        batch=1,
        steps=options.steps,
        guidance=options.guidance,
        threads=None,
        repeat=options.repeat,
        warmup=1,
    )
    where = provenance(Bundle.open(bundle), packages=PACKAGES)  # first: what is measured is load, too
    return {
        "provenance": where,
        "workload": asdict(workload) | {"rounds": options.rounds},
        "results": compete(candidates, [workload], rounds=options.rounds, console=Console()),
    }


def latentrt(*arguments: object) -> str:
    """Runs a command of the command line and returns its stdout; progress passes through."""
    return python("-m", "latentrt.cli", *arguments)


def python(*arguments: object) -> str:
    """Runs this interpreter; ends the benchmark with the same status if that fails."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def markdown(document: Mapping[str, Any]) -> str:
    """Medians in milliseconds and speed against the first torch candidate."""
    work, where = document["workload"], document["provenance"]
    lines = [
        "| | text ms | step ms | decode ms | total ms | peak MB | step, times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in document["results"]:
        cells = [f"{row[name]['median']:.0f}" for name in COLUMNS]
        cells += [f"{row['peak_memory_mb']:.0f}", f"{row['step_speedup']:.2f}"]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    width, height = work["size"]
    lines.append(
        f"\n{width}x{height}, batch {work['batch']}, guidance {work['guidance']:g}, {work['steps']} steps,"
        f" {work['repeat'] * work['rounds']} runs; {where['cpu']}, {where['cores']} cores,"
        f" load average {where['load_average']}, {where['date'][:10]}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
