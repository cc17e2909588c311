"""The command."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import benchmarks.serving
from benchmarks.serving.figures import table, verdict
from benchmarks.serving.load import measure
from benchmarks.serving.soak import served, soak, soak_text
from latentrt.bench.machine import provenance
from latentrt.bundle import Bundle
from latentrt.cli.arguments import floats

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("numpy", "onnxruntime", "openvino")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, and writes what came of it; 1: a goal was missed."""
    options = _options(arguments)
    bundle = Bundle.open(options.bundle)
    made = provenance(bundle, packages=PACKAGES) | {
        "backend": options.backend,
        "threads": options.threads,
        "seed": options.seed,
    }

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    if options.soak:
        with served(options.bundle, backend=options.backend, threads=options.threads) as server:
            found = soak(server, requests=options.soak, clients=options.clients, seed=options.seed, say=say)
        result, text, reached = made | found, soak_text(found), not found["wrong"]
    else:
        measured = measure(
            options.bundle,
            backend=options.backend,
            threads=options.threads,
            loads=options.loads,
            jobs=options.jobs,
            rounds=options.rounds,
            seed=options.seed,
            say=say,
        )
        judged = verdict(measured["loads"])
        result = made | {"jobs": options.jobs, "rounds": options.rounds} | measured | {"verdict": judged}
        text, reached = f"{table(measured)}\n{json.dumps(judged)}", judged["reached"]
    name = "serving-soak" if options.soak else "serving"
    target = options.output or ROOT / "benchmarks" / "results" / f"{datetime.now(UTC):%Y-%m-%d}-{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if options.json else f"{text}\n{target}")
    return 0 if reached else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(benchmarks.serving.__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "build" / "bundles" / "shapes")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--loads", type=floats, default=(0.5, 0.8, 1.0, 1.2), help="shares of serial capacity")
    parser.add_argument("--jobs", type=int, default=24, help="of each round; default: 24")
    parser.add_argument("--rounds", type=int, default=2, help="of each load; default: 2")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--soak", type=int, metavar="REQUESTS", help="the soak test instead")
    parser.add_argument("--clients", type=int, default=64, help="of the soak test, at a time; default: 64")
    parser.add_argument("-o", "--output", type=Path, help="the result; default: benchmarks/results/DATE-serving.json")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
