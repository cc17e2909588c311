"""`make fuzz`: seeded inputs of every kind, each of which must be taken or refused by one of the project's errors."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from fuzz.child import outcome
from fuzz.kinds import KINDS, kind_of
from fuzz.runner import Count, Work, keep, run

from latentrt.bench.machine import machine_facts

ROOT = Path(__file__).parents[2]
PACKAGES = ("numpy", "pillow", "tokenizers", "safetensors", "onnxruntime", "openvino", "onnx")


def main() -> int:
    options = _parser().parse_args()
    if options.input is not None:
        return _again(options.kinds[0], options.input)
    chosen = options.kinds if options.kinds else list(KINDS)
    seconds = 0.0 if options.inputs else 60 * options.minutes / len(chosen)
    shares = sum(KINDS[name].share for name in chosen)
    each = {name: -(-options.inputs * KINDS[name].share // shares) for name in chosen}
    works = [Work(name, count if options.inputs else sys.maxsize) for name, count in each.items()]
    counts = run(works, seed=options.seed, seconds=seconds, progress=_show)
    faults = [fault for count in counts.values() for fault in count.faults]
    first = {(fault.kind, fault.what): fault for fault in reversed(faults)}
    for fault in first.values():
        print(f"{fault.kind} {fault.index}: {fault.what}; kept as {keep(fault, options.output)}")
    total = sum(count.inputs for count in counts.values())
    print(f"seed {options.seed}: {total} inputs, {len(faults)} faults")
    if options.results is not None:
        document = {
            **machine_facts(PACKAGES),
            "commit": _commit(),
            "command": " ".join(["python -m fuzz", *sys.argv[1:]]),
            "seed": options.seed,
            "inputs": total,
            "faults": len(faults),
            "kinds": {name: count.row() for name, count in counts.items()},
        }
        options.results.write_text(json.dumps(document, indent=1) + "\n")
    return 1 if faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="for all kinds together; default: 1")
    parser.add_argument("--inputs", type=int, default=0, metavar="N", help="so many instead, divided among the kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, "faulty"], metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "fuzz", help="where faults are kept")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write counts as JSON")
    parser.add_argument("--input", type=Path, metavar="FILE", help="try this input of the kind in --kinds again")
    return parser


def _show(name: str, count: Count) -> None:
    ended = f"{count.accepted:8} taken {count.refused:8} refused {len(count.faults):4} faults"
    print(f"{name:16} {count.inputs:8} inputs {ended}", flush=True)


def _again(name: str, path: Path) -> int:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        _, use = kind_of(name).prepare(Path(folder))
        ended = outcome(use, path.read_bytes())
    print(ended if not ended.startswith("F ") else "\n".join(json.loads(ended[2:])))
    return 1 if ended.startswith("F ") else 0


def _commit() -> str | None:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or None


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
