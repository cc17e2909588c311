"""`python -m benchmarks.gpu`: parity and latency on a machine with an NVIDIA GPU (docs/gpu-check.md).

Exit codes: 0 done, 1 a parity gate failed or none could be judged, 2 wrong use, 3 no GPU.
"""

import argparse
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from benchmarks.gpu import candidates
from benchmarks.gpu.check import DTYPES, SECTIONS, USUAL, Check
from benchmarks.gpu.worker import ROOT
from latentrt.cli.arguments import Parser, count, names, size
from latentrt.errors import LatentRTError, RequestError

PEERS = {"eager": candidates.EAGER, "compile": candidates.COMPILED, "max-autotune": candidates.TUNED}
BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a check and returns its exit code."""
    try:
        return Check(_parser().parse_args(arguments)).run()
    except LatentRTError as error:
        print(f"gpu-check: error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=_among(SECTIONS), default=USUAL, metavar="A,B", help=", ".join(SECTIONS))
    parser.add_argument("--budget-minutes", type=float, metavar="N", help="begin nothing new after this time")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu-check", metavar="DIR",
                        help="checkpoints, bundles and engines: what is there is used")  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "examples" / "shapes" / "checkpoint", metavar="DIR",
                        help="trained, for parity (examples/shapes/checkpoint)")  # fmt: skip
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR")
    group = parser.add_argument_group("who")
    group.add_argument("--backend", type=_among(BACKENDS), metavar="A,B", help="default: all that are usable")
    group.add_argument("--peers", type=_peers, default=_peers("eager,compile"), metavar="A,B",
                       help="eager, compile (these two), max-autotune, which compiles for many minutes")  # fmt: skip
    group.add_argument("--precision", type=_among(DTYPES), default=("fp32", "fp16"), metavar="A,B",
                       help="judged; the last one is measured (fp32,fp16)")  # fmt: skip
    group.add_argument("--samplers", type=names, metavar="A,B", help="whose images are judged; default: all")
    group.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the check itself")
    group = parser.add_argument_group("work")
    group.add_argument("--architecture", default="sd15", metavar="NAME", help="sd15 (default) or tiny-sd15")
    group.add_argument("--size", type=size, default=(512, 512), metavar="WIDTHxHEIGHT")
    group.add_argument("--batch", type=_counts, default=(1, 4), metavar="A,B", help="images at once (1,4)")
    group.add_argument("--steps", type=count, default=30, metavar="N", help="denoising steps of a run (30)")
    group.add_argument("--guidance", type=float, default=7.5, metavar="SCALE")
    group.add_argument("--repeat", type=count, default=5, metavar="N", help="measured runs in each turn (5)")
    group.add_argument("--warmup", type=count, default=2, metavar="N", help="runs before that (2)")
    group.add_argument("--rounds", type=count, default=4, metavar="N", help="turns of each candidate (4)")
    return parser


def _among(allowed: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Names in a list, all of them known."""

    def parse(text: str) -> tuple[str, ...]:
        found = names(text)
        if unknown := [name for name in found if name not in allowed]:
            raise RequestError(f"unknown: {', '.join(unknown)}", expected=f"some of {', '.join(allowed)}")
        return found

    return parse


def _peers(text: str) -> tuple[str, ...]:
    return tuple(PEERS[name] for name in _among(PEERS)(text))


def _counts(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in names(text))


if __name__ == "__main__":
    sys.exit(main())
