"""Stable Diffusion 2.1, XL and 3 in full size with random weights: what export, fp16 and engines take on this machine.

    python -m benchmarks.full_families sd21 sdxl sd3-medium --thrifty   # an hour, 16 GB of memory, 30 GB of disk
    python -m benchmarks.full_families tiny-sd21                        # the same path in a minute

Each stage is a process of its own, measured from outside; one whose product exists is skipped, so that an interrupted
run goes on. Writes benchmarks/results/<date>-full-families-<name>.json and prints a table. `latentrt export` compares
every component with torch, at small sizes. Memory of a process: what it allocated, apart from files that it mapped,
which the system may drop.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.result_file import FOLDER, write_result
from latentrt.bench.machine import machine_facts
from latentrt.cli.memory import engines_text
from latentrt.export.staging import available_memory
from latentrt.files.atomic import write_whole

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "tensorrt-rtx-cu13")
STAGES = ("checkpoint", "export", "fp16", "engines", "inspect")
GPU = "sm89"
VRAM_GB = 8
EVERY_S = 0.1
LEAST_FREE_BYTES = 700_000_000  # a stage is ended before the system ends something else


@dataclass(frozen=True, slots=True)
class Stage:
    """One process: its command after `python -m`, and the folder that exists once it is done."""

    name: str
    command: tuple[str, ...]
    product: Path


@dataclass(frozen=True, slots=True)
class Use:
    """What a process took: seconds by the clock, but for those in which it was stopped, and of all cores; peaks in
    bytes of everything resident, of what it allocated, and of files that it mapped."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    allocated_bytes: int
    mapped_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "architectures", nargs="+", metavar="NAME", help="as latentrt.export.synthetic.checkpoints knows them"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--thrifty", action="store_true", help="remove what no later stage needs")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "full-families", help="where products lie")
    parser.add_argument("--results", type=Path, default=FOLDER)
    options = parser.parse_args()
    documents = []
    for name in options.architectures:
        folder = options.build / name
        run_stages(stages(name, folder), folder, threads=options.threads, thrifty=options.thrifty)
        documents.append(document(name, folder, threads=options.threads))
        path = write_result(documents[-1], what=f"full-families-{name}", folder=options.results)
        print(f"{path}\n", flush=True)
    print(markdown(documents))


def stages(architecture: str, folder: Path) -> tuple[Stage, ...]:
    """From nothing to engines, in order."""
    checkpoint, whole, half = folder / "checkpoint", folder / "fp32", folder / "fp16"
    made = ("latentrt.export.synthetic.checkpoints", architecture, "-o", str(checkpoint))

    def command(name: str, *arguments: object) -> tuple[str, ...]:
        return "latentrt.cli", name, *map(str, arguments), "--json"

    build = command("build", half, "--backend", "tensorrt-rtx", "--gpus", GPU, "--weight-streaming")
    return (
        Stage("checkpoint", made, checkpoint),
        Stage("export", command("export", checkpoint, "-o", whole), whole),
        Stage("fp16", command("convert", whole, "-o", half, "--precision", "fp16"), half),
        Stage("engines", build, half / "engines"),
        Stage("inspect", command("inspect", half, "--vram", VRAM_GB), half),
    )


def run_stages(todo: Sequence[Stage], folder: Path, *, threads: int, thrifty: bool) -> None:
    """Runs what is missing. Each stage leaves its figures and what it printed in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [folder / f"{stage.name}.json" for stage in todo]
    for position, (stage, record) in enumerate(zip(todo, records, strict=True)):
        used = any(later.is_file() for later in records[position + 1 :])
        if not record.is_file() or not (used or stage.product.exists()):
            print(f"{folder.name}: {stage.name}", flush=True)
            use, said = measured([sys.executable, "-m", *stage.command], threads=threads)
            figures = {"use": asdict(use), "bytes": folder_bytes(stage.product), "load_average": os.getloadavg()[0]}
            write_whole(record, json.dumps(figures | {"said": said}).encode())
            print(f"  {use.seconds:.0f} s, {use.allocated_bytes / 1e9:.1f} GB allocated", flush=True)
        if thrifty and stage.name in ("export", "fp16"):  # what it has read serves no later stage
            shutil.rmtree(todo[position - 1].product, ignore_errors=True)


def measured(command: Sequence[str], *, threads: int) -> tuple[Use, str]:
    """Runs a process and returns what it took and its stdout; ends the benchmark if it fails or starves the machine."""
    count = str(threads)
    environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "HF_HUB_OFFLINE": "1"}
    began, stopped = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as said, subprocess.Popen(command, stdout=said, env=environment) as process:
        peaks = {"RssAnon": 0, "RssFile": 0}
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            fields = status_fields(process.pid)
            for name in peaks:
                peaks[name] = max(peaks[name], 1024 * int(fields.get(name, "0")))
            if (free := available_memory()) is not None and free < LEAST_FREE_BYTES:
                process.kill()
            looked = time.perf_counter()
            time.sleep(EVERY_S)
            if fields.get("State") == "T":
                stopped += time.perf_counter() - looked
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{' '.join(command)} ended with {process.returncode}, {available_memory()} bytes were free")
        said.seek(0)
        use = Use(
            seconds=time.perf_counter() - began - stopped,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_bytes=1024 * usage.ru_maxrss,
            allocated_bytes=peaks["RssAnon"],
            mapped_bytes=peaks["RssFile"],
        )
        return use, said.read()


def status_fields(pid: int) -> dict[str, str]:
    """The first word of each line of what Linux says of a process; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    rows = (line.partition(":") for line in lines)
    return {name: value.split()[0] for name, _, value in rows if value.strip()}


def folder_bytes(folder: Path) -> int:
    """Of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def document(architecture: str, folder: Path, *, threads: int) -> dict[str, Any]:
    """The figures of all stages, how the components compared with torch, and what the engines need."""
    records = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    said = {name: json.loads(record.pop("said")) for name, record in records.items() if name != "checkpoint"}
    records["checkpoint"].pop("said")
    seen = said["inspect"]
    return {
        "provenance": machine_facts(PACKAGES),
        "architecture": architecture,
        "threads": threads,
        "stages": {name: records[name] for name in STAGES},
        "components": {name: {key: row[key] for key in ("precision", "parameters", "bytes")}
                       for name, row in seen["components"].items()},
        "parity": said["export"]["parity"],
        "engines": seen["engines"],
    }  # fmt: skip


def markdown(documents: Sequence[Mapping[str, Any]]) -> str:
    """A row for each stage."""
    lines = [
        "| | | seconds | of a core | allocated GB | mapped GB | result GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in documents:
        for name in STAGES[:-1]:
            row = found["stages"][name]
            use = row["use"]
            sizes = [use["allocated_bytes"], use["mapped_bytes"], row["bytes"]]
            cells = [f"{use['seconds']:.0f}", f"{use['cpu_seconds']:.0f}", *(f"{size / 1e9:.1f}" for size in sizes)]
            lines.append(f"| {found['architecture']} | {name} | {' | '.join(cells)} |")
    for found in documents:
        worst = max(found["parity"], key=lambda row: row["worst"] / row["limit"])
        (group,) = found["engines"]
        lines += [
            f"\n{found['architecture']}: {len(found['parity'])} comparisons with torch, nearest to its limit"
            f" {worst['worst']:.1e} of {worst['limit']:.0e} ({worst['component']}, {worst['case']})",
            *engines_text([group]),
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
