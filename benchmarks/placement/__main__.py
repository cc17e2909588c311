"""`make gpu-placement`: every graph of some bundles on the real CUDA provider of onnxruntime, without a GPU.

Downloads onnxruntime-gpu and CUDA's headers, builds CUDA libraries that do nothing, and counts, for each graph as
exported and as rewritten for CUDA: nodes, those on the CPU, copies, Transposes, launches a call. It computes nothing:
that a graph is right, or fast, it cannot say.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.placement.stubs import build_stubs
from latentrt.bundle import Bundle
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.convert.precision import convert_bundle
from latentrt.export.engines.rewrite import rewrite_graphs
from latentrt.export.package import export_bundle
from latentrt.export.synthetic.checkpoints import make_checkpoint

ONNXRUNTIME = "1.31.1"
HEADERS = ("nvidia-cuda-runtime~=13.0.0", "nvidia-cuda-crt~=13.0.0")
SIZE = "128x128"
EXAMPLE = Path("examples/shapes/checkpoint")
TINY = ("tiny-sdxl", "tiny-sd3")
# Launches a call of a graph as rewritten, at most.
LAUNCHES: Mapping[str, int] = {"step": 360, "decoder": 130, "encoder": 100}
OTHER_LAUNCHES = 80
# What a call of a prepared loop asks of CUDA: the copy of a table's row, and one graph.
LOOP: Mapping[str, int] = {"graphs": 1, "copies": 1, "uploads": 0, "allocations": 0, "waits": 0, "captures": 0}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.placement", description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("build/gpu-placement"), help="for what is downloaded and made"
    )
    parser.add_argument("-o", "--output", type=Path, help="where the result is written as JSON")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    packages = _packages(folder)
    provider = packages / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
    stubs = build_stubs(provider, packages / "nvidia" / "cu13" / "include", folder / "stubs")
    rows = [row for root in _bundles(folder) for row in _rows(root, packages, folder / "stubs")]
    problems = [problem for row in rows for problem in _problems(row)]
    for row in rows:
        print(_line(row))
    print("\n".join(problems) if problems else "as it should be; nothing was computed")
    if options.output is not None:
        options.output.write_text(_text(_document(rows, stubs, problems)))
    return 1 if problems else 0


def _packages(folder: Path) -> Path:
    """Unpacked beside this environment, not installed into it."""
    wheels, place = folder / "wheels", folder / "packages"
    if not (place / "onnxruntime").is_dir():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(wheels)]
        subprocess.run([*pip, f"onnxruntime-gpu=={ONNXRUNTIME}", *HEADERS], check=True)
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as file:
                file.extractall(place)
    return place


def _bundles(folder: Path) -> Iterator[Path]:
    """The example checkpoint in float32 and fp16, and tiny models of other families, with graphs for CUDA."""
    for name in ("shapes", *TINY):
        root = folder / name
        bundle = Bundle.open(root) if root.exists() else _exported(name, folder)
        half = folder / f"{name}-fp16"
        if not half.exists():
            convert_bundle(bundle, half, precision=dict.fromkeys(bundle.components, "fp16"))
        for each in (root, half):
            rewrite_graphs(Bundle.open(each), folder=each / "engines")
            yield each


def _exported(name: str, folder: Path) -> Bundle:
    checkpoint = make_checkpoint(name, folder / f"{name}-checkpoint") if name in TINY else EXAMPLE
    return export_bundle(Checkpoint.open(checkpoint), folder / name, check=False)


def _rows(root: Path, packages: Path, stubs: Path) -> Iterator[dict[str, Any]]:
    paths = [str(packages), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(stubs), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    for name in Bundle.open(root).components:
        for kind in ("plain", "rewritten"):
            command = [sys.executable, "-m", "benchmarks.placement.child", str(root), name, SIZE, kind]
            run = subprocess.run(command, env=environment, capture_output=True, text=True)
            if run.returncode:
                raise SystemExit(f"{root.name} {name} {kind}: {run.stderr[-2000:]}")
            yield {"bundle": root.name, "component": name, "kind": kind, **json.loads(run.stdout.splitlines()[-1])}


def _problems(row: Mapping[str, Any]) -> list[str]:
    """What is wrong with a run without memory, and in how a rewritten graph is placed."""
    memory = [what for what, held in row["out_of_memory"].items() if not held]
    found = [f"{row['bundle']} {row['component']} {row['kind']}: out of memory, and not {what}" for what in memory]
    return found if row["kind"] == "plain" else [*found, *_misplaced(row)]


def _misplaced(row: Mapping[str, Any]) -> list[str]:
    limit = LAUNCHES.get(row["component"], OTHER_LAUNCHES)
    wrong = {
        "nodes on the CPU": row["on_cpu"],
        "copies between host and device": row["memcpy"],
        "GroupNorms that were taken apart": row["changes"]["GroupNorm"] - row["group_norms"],
        "Attentions that were taken apart": row["changes"]["Attention"] - row["attention"],
        f"launches above {limit}": max(0, row["launches"] - limit),
    }
    if row["loop"] is not None:
        wrong |= {f"{name} a call of the loop, not {right}": row["loop"][name] - right for name, right in LOOP.items()}
    return [f"{row['bundle']} {row['component']}: {count} {what}" for what, count in wrong.items() if count]


def _line(row: Mapping[str, Any]) -> str:
    counts = "  ".join(f"{row[key]:>4} {key}" for key in ("nodes", "on_cpu", "memcpy", "transposes", "launches"))
    return f"{row['bundle']:<16} {row['component']:<15} {row['kind']:<10} {counts}"


def _text(document: Mapping[str, Any]) -> str:
    """As JSON, each row on a line, its values in the order of `columns`."""
    columns = list(document["rows"][0])
    facts = {name: value for name, value in document.items() if name != "rows"}
    head = json.dumps({**facts, "columns": columns, "rows": []}, indent=1)
    rows = ",\n".join(json.dumps([row[name] for name in columns], separators=(",", ":")) for row in document["rows"])
    return head.replace('"rows": []', f'"rows": [\n{rows}\n ]') + "\n"


def _document(rows: list[dict[str, Any]], stubs: Mapping[str, int], problems: list[str]) -> dict[str, Any]:
    return {
        "what": "placement by onnxruntime's CUDA provider on CUDA libraries that do nothing: no GPU, nothing computed",
        "date": datetime.now(UTC).date().isoformat(),
        "onnxruntime_gpu": ONNXRUNTIME,
        "python": platform.python_version(),
        "size": SIZE,
        "stub_functions": dict(stubs),
        "problems": problems,
        "rows": rows,
    }


if __name__ == "__main__":
    raise SystemExit(main())
