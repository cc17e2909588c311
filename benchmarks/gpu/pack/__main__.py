"""`python -m benchmarks.gpu.pack -o DIR`: all that a check on a GPU needs, for a machine without a network.

DIR has a numbered folder for each transfer and plan.txt, which says what to run after each. Wheels come from the
package index, bundles from --work. Nothing of it needs a GPU; DIR is there once it is whole.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.pack import install
from benchmarks.gpu.pack.parts import Part, bundle_tree, make_part, trim_onnxruntime
from benchmarks.gpu.pack.plan import Places, Transfer, calls, describe, distribute, script
from benchmarks.gpu.pack.wheels import Fetcher, Target, own_wheel, read_pins, read_there, unpack_wheels
from benchmarks.gpu.record import git_state
from benchmarks.gpu.worker import ROOT
from latentrt.cli.arguments import Parser
from latentrt.errors import BundleError, LatentRTError
from latentrt.files.atomic import storage_errors

# What each part has beside what that needs. The check's machine has torch; onnxruntime for the CPU is in none of them.
REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "base": ("latentrt[export]", "polygraphy"),
    "onnxruntime-gpu": ("latentrt[onnxruntime-gpu]",),
    "tensorrt-rtx": ("latentrt[tensorrt-rtx]",),
}
TAKEN_FOR_GRANTED = ("torch", "triton")
SETUP = '#!/bin/sh\nexec python3 "$(dirname "$0")/install.py" "$@"\n'
PLAN = "plan.txt"


def main(arguments: Sequence[str] | None = None) -> int:
    """Packs, and returns the exit code."""
    try:
        options = _parser().parse_args(arguments)
        with _making(options.output, overwrite=options.overwrite) as staging, storage_errors(options.output):
            plan = _pack(options, staging)
    except LatentRTError as error:
        print(f"gpu-pack: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{plan}\n{options.output / PLAN}")
    return 0


def _pack(options: argparse.Namespace, staging: Path) -> str:
    """Everything, to `staging`; returns the plan."""
    places = Places(
        pack=os.path.relpath(options.output.resolve(), ROOT),
        site=options.target,
        work=options.there_work,
        results=f'"{options.results}"',
    )
    wanted = calls(
        places,
        architecture=options.architecture,
        size=options.size,
        rtx=not options.without_rtx,
    )
    with tempfile.TemporaryDirectory(dir=staging.parent) as scratch:
        parts = _parts(options, Path(scratch), {name for call in wanted for name in call.needs})
        limit, tree = round(options.transfer_mb * 2**20), _tree_bytes()
        transfers = distribute(parts, wanted, room=limit - tree - _HEAD_BYTES)
        index = _index(options, parts, transfers)
        for number, transfer in enumerate(transfers, start=1):
            _write(staging / str(number), transfer, index, script(number, transfer, places), Path(scratch) / "pieces")
    plan = describe(transfers, places, tree=tree, limit=limit)
    (staging / PLAN).write_text(plan)
    return plan


def _parts(options: argparse.Namespace, scratch: Path, names: set[str]) -> dict[str, Part]:
    target = Target(options.python, options.glibc)
    there = {} if options.there is None else read_there(options.there)
    never = TAKEN_FOR_GRANTED
    fetcher = Fetcher(target, scratch / "wheels", there=there, pins=read_pins(ROOT), never=never)
    own = own_wheel(ROOT, scratch)
    packed: dict[str, Path] = {}
    parts: dict[str, Part] = {}
    (scratch / "pieces").mkdir()

    def add(name: str, tree: Path) -> None:
        parts[name] = make_part(name, tree, scratch / "pieces", piece_bytes=round(options.piece_mb * 1e6))
        _say(f"{name}: {parts[name].bytes / 1e6:.1f} MB in {len(parts[name].pieces)}")

    for name, texts in REQUIREMENTS.items():
        if name in names:
            wheels = fetcher.closure(texts, own=own, packed=packed)
            packed |= wheels
            _say(f"{name}: {', '.join(wheel.name for wheel in wheels.values())}")
            unpack_wheels(list(wheels.values()), scratch / name, target)
            if "onnxruntime-gpu" in wheels:
                done = trim_onnxruntime(scratch / name, options.arch, everything=options.all_kernels)
                _say(f"{name}: {done}")
            add(name, scratch / name)
    if "bundles" in names:
        bundles = ("shapes-checkpoint-fp32", "shapes-checkpoint-fp16", f"{options.architecture}-fp16")
        bundle_tree([options.work / "bundles" / name for name in bundles], scratch / "bundles")
        add("bundles", scratch / "bundles")
    return parts


def _index(options: argparse.Namespace, parts: Mapping[str, Part], transfers: Sequence[Transfer]) -> dict[str, Any]:
    """What `install.py` reads, the same in each folder."""
    folders = {
        (name, piece.name): str(number)
        for number, transfer in enumerate(transfers, start=1)
        for name, piece in transfer.pieces
    }
    return {
        "python": options.python,
        "git": git_state(),
        "parts": {
            part.name: {
                "sha256": part.sha256,
                "pieces": [asdict(piece) | {"folder": folders[part.name, piece.name]} for piece in part.pieces],
            }
            for part in parts.values()
        },
    }


def _write(folder: Path, transfer: Transfer, index: Mapping[str, Any], text: str, pieces: Path) -> None:
    folder.mkdir()
    for _, piece in transfer.pieces:
        shutil.move(pieces / piece.name, folder / piece.name)
    (folder / install.INDEX).write_text(json.dumps(index, indent=1))
    shutil.copy(install.__file__, folder / "install.py")
    for name, content in (("setup.sh", SETUP), ("run.sh", text)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)


_HEAD_BYTES = 100_000  # of a folder's scripts and index


def _tree_bytes() -> int:
    """Of the files that git tracks, which travel with every call."""
    try:
        names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0
    paths = (ROOT / name for name in names.split("\0") if name)
    return sum(path.stat().st_size for path in paths if path.is_file())


@contextmanager
def _making(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside the place, renamed when all of it is there."""
    if output.exists() and not (overwrite and (output / PLAN).is_file()):
        raise BundleError(
            f"{output} exists", expected="a new path", hint="choose another, or pass --overwrite for a pack"
        )
    staging = output.with_name(output.name + ".part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    yield staging
    if output.exists():
        shutil.rmtree(output)
    staging.rename(output)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m benchmarks.gpu.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, default=ROOT / "build" / "gpu-pack", metavar="DIR", help="build/gpu-pack")
    add("--overwrite", action="store_true", help="replace a pack that is there")
    add("--work", type=Path, default=ROOT / "build" / "gpu-check", metavar="DIR",
        help="of `python -m benchmarks.gpu --only prepare`: its bundles go along, without weights")  # fmt: skip
    add("--architecture", default="sd15", metavar="NAME", help="sd15 (default) or tiny-sd15")
    add("--size", default="512x512", metavar="WIDTHxHEIGHT", help="that is measured (512x512)")
    add("--without-rtx", action="store_true", help="leave out TensorRT for RTX")
    group = parser.add_argument_group("the other machine")
    add = group.add_argument
    add("--python", default="3.12", metavar="X.Y", help="its Python (3.12)")
    add("--glibc", default="2.28", metavar="X.Y", help="its C library, at least (2.28)")
    add(
        "--there",
        type=Path,
        metavar="FILE",
        help="what it has, as `pip list --format=freeze` prints it; torch counts anyway",
    )
    add("--arch", type=int, metavar="N",
        help="keep the GPU code of one architecture in onnxruntime's CUDA provider: 90 for sm_90")  # fmt: skip
    add("--all-kernels", action="store_true", help="with --arch: what was compiled for it alone, too (44 MB for sm_90)")
    add("--target", default="/tmp/latentrt/site", metavar="DIR", help="where packages are installed there")
    add("--there-work", default="/tmp/latentrt/check", metavar="DIR", help="where the check works there")
    add("--results", default="build/gpu-check/results", metavar="DIR", help="there; the shell's variables are expanded")
    group = parser.add_argument_group("transfers")
    add = group.add_argument
    add("--transfer-mb", type=float, default=64.0, metavar="MIB", help="that one takes, the checkout included (64)")
    add("--piece-mb", type=float, default=8.0, metavar="MB", help="the largest piece (8)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
