"""Peak memory of this runtime, and how long it takes to start: each row is measured in processes of its own.

    python -m benchmarks.memory BUNDLE [BUNDLE-int8]            # loads, starts, makes a picture; then from the cache
    python -m benchmarks.memory BUNDLE --memory 4               # and with `load(memory=...)` of so many gigabytes
    python -m benchmarks.memory BUNDLE --parts                  # each graph alone, at two sizes
    python -m benchmarks.memory --architecture sd15             # makes the bundle: float16 weights, random, full size

The first start fills a cache that is empty, the second one finds it. Memory is resident size, mapped files included.
Writes benchmarks/results/<date>-memory-<bundle>.json and prints a table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

import latentrt
from benchmarks.result_file import FOLDER, write_result
from latentrt.backends import open_engine
from latentrt.bench.machine import PACKAGES, provenance
from latentrt.bench.runner import peak_memory_mb
from latentrt.bundle import Bundle, Component
from latentrt.cli.arguments import size
from latentrt.engine import Preparation
from latentrt.manifest.axes import axis_lengths, tensor_shape
from latentrt.names import BackendName, ComputeName

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a lighthouse at dusk"
WAYS = (("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32"))
STARTS = ("first", "second")
SCALES = (1.0, 1.5)  # of the sides, with --parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one process measures.

    Args:
        memory: bytes, as `latentrt.load` takes them.
        part: a component alone; None: a whole picture.
    """

    bundle: str
    backend: str
    compute: str
    size: tuple[int, int]
    steps: int
    cache: str
    memory: int | None = None
    part: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE")
    parser.add_argument("--architecture", metavar="NAME", help="make a bundle of it, or take the one made before")
    parser.add_argument("--size", type=size, default=(512, 512), metavar="WIDTHxHEIGHT")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--ways", default=",".join(map("/".join, WAYS)), metavar="BACKEND/COMPUTE,...")
    parser.add_argument("--memory", type=float, action="append", default=[], metavar="GB")
    parser.add_argument("--parts", action="store_true", help="measure each graph alone")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="where checkpoint and bundle are made")
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        row = json.loads(options.job)
        job = Job(**{**row, "size": tuple(row["size"])})
        print(json.dumps(whole(job) if job.part is None else alone(job)))
        return
    bundles = [*options.bundles, *([made(options.architecture, options.build)] if options.architecture else [])]
    if not bundles:
        parser.error("a BUNDLE or --architecture is needed")
    where = provenance(Bundle.open(bundles[0]), packages=PACKAGES)
    rows: list[dict[str, Any]] = []
    for bundle in bundles:
        for row in measured(bundle, options):
            rows.append(row)
            print(text([row]).splitlines()[-1], flush=True)
    document = {"provenance": where, "size": options.size, "steps": options.steps, "rows": rows}
    kind = "memory-parts" if options.parts else "memory"
    path = write_result(document, what=f"{kind}-{bundles[0].name}", folder=options.results)
    print(f"\n{text(rows)}\n\n{path}")


def made(architecture: str, build: Path) -> Path:
    """A bundle of random weights in float16, as most checkpoints are handed out."""
    checkpoint, bundle = build / "checkpoints" / f"{architecture}-half", build / "bundles" / f"{architecture}-half"
    if not (checkpoint / "model_index.json").is_file():
        code = (
            "import sys, torch; from dataclasses import replace; from pathlib import Path;"
            "from latentrt.export.synthetic import checkpoints as c; name, folder = sys.argv[1:];"
            "c.ARCHITECTURES = {name: replace(c.ARCHITECTURES[name], dtype=torch.float16)};"
            "c.make_checkpoint(name, Path(folder))"
        )
        subprocess.run([sys.executable, "-c", code, architecture, str(checkpoint)], check=True)
    if not (bundle / "bundle.json").is_file():
        command = [sys.executable, "-m", "latentrt.cli", "export", str(checkpoint), "-o", str(bundle), "--no-check"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return bundle


def measured(bundle: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each way and start, or for each graph and size."""
    opened = Bundle.open(bundle)
    for way in options.ways.split(","):
        backend, compute = way.split("/")
        with tempfile.TemporaryDirectory() as cache:
            job = Job(
                bundle=str(bundle),
                backend=backend,
                compute=compute,
                size=options.size,
                steps=options.steps,
                cache=cache,
            )
            if options.parts:
                for part in (*opened.text_encoders, "encoder", "step", "decoder"):
                    for scale in SCALES:
                        width, height = (int(side * scale) for side in options.size)
                        yield measured_apart(replace(job, part=part, size=(width, height)))
                continue
            for start in STARTS:
                yield measured_apart(job) | {"start": start}
            for gigabytes in options.memory:
                yield measured_apart(replace(job, memory=int(gigabytes * 1e9))) | {"start": STARTS[-1]}


def measured_apart(job: Job) -> dict[str, Any]:
    """What a new process measures."""
    command = [sys.executable, "-m", "benchmarks.memory", "--job", json.dumps(asdict(job))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{job} ended with {done.returncode}")
    row = {**asdict(job), **json.loads(done.stdout.splitlines()[-1]), "bundle": Path(job.bundle).name}
    del row["cache"]
    return row


def whole(job: Job) -> dict[str, Any]:
    """Loads, prepares, makes a picture; gigabytes at the peak, and what is resident at the end."""
    began = time.perf_counter()
    compiled: dict[str, float] = {}

    def notice(event: Preparation) -> None:
        if event.seconds is not None:
            compiled[event.component] = round(event.seconds, 2)

    with latentrt.load(
        job.bundle,
        backend=cast("BackendName", job.backend),
        compute=cast("ComputeName", job.compute),
        cache_dir=job.cache,
        notify=notice,
        memory=job.memory,
    ) as pipe:
        loaded_s = time.perf_counter() - began
        pipe.prepare(size=job.size)
        start_s, peak_at_start = time.perf_counter() - began, peak_memory_mb()
        made = pipe.generate(PROMPT, seed=0, size=job.size, steps=job.steps)
        return {
            "load_s": loaded_s,
            "start_s": start_s,
            "compiled_s": compiled,
            "start_peak_mb": peak_at_start,
            "peak_mb": peak_memory_mb(),
            "resident": resident(),
            "timings": asdict(made.timings),
        }


def alone(job: Job) -> dict[str, Any]:
    """One graph for the size of a picture with guidance: megabytes before, at the peak of loading, loaded, at the peak
    of two runs, after them, and unloaded."""
    bundle = Bundle.open(job.bundle)
    family, part = bundle.family, bundle.component(str(job.part))
    lengths = axis_lengths(family, size=job.size, batch=1, branches=2, context=family.context_length(1))
    feed = _feed(part, lengths)
    opened = open_engine(part.graph, backend=job.backend, compute=job.compute, cache_dir=job.cache)
    with closing(opened) as engine:
        before = resident()
        engine.prepare({name: value.shape for name, value in feed.items()})
        loading, loaded = peak_memory_mb(), resident()
        _reset_peak()
        for _ in range(2):
            engine.run(feed)
        running, ran = peak_memory_mb(), resident()
        engine.unload()
        return {
            "before": before,
            "loading_peak_mb": loading,
            "loaded": loaded,
            "running_peak_mb": running,
            "ran": ran,
            "unloaded": resident(),
            "weights_mb": part.parameters * 4 / 1e6,
            "files_mb": sum(path.stat().st_size for path in part.graph.weights) / 1e6,
        }


def _feed(part: Component, lengths: Mapping[str, int]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    feed = {}
    for name, spec in part.graph.inputs.items():
        shape = tensor_shape(part.dims[name], lengths)
        normal = spec.dtype == "float32"
        feed[name] = rng.standard_normal(shape, np.float32) if normal else np.zeros(shape, spec.dtype)
    return feed


def resident() -> dict[str, float]:
    """Megabytes that are resident: what was allocated, and files that are mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "RssAnon", "RssFile")}


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown."""
    if "loading_peak_mb" in rows[0]:
        columns = ("before", "loading_peak_mb", "loaded", "running_peak_mb", "ran", "unloaded")
        lines = [f"| | weights, MB | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
        for row in rows:
            values = [row[name] if isinstance(row[name], float) else row[name]["VmRSS"] for name in columns]
            cells = " | ".join(f"{value:.0f}" for value in values)
            lines.append(f"| {_name(row)} | {row['weights_mb']:.0f} | {cells} |")
        return "\n".join(lines)
    lines = ["| | start | start s | peak MB | resident at the end, MB | step ms |", "|---|---|---|---|---|---|"]
    for row in rows:
        step = row["timings"]["steps_ms"][-1]
        limit = "" if row["memory"] is None else f", memory {row['memory'] / 1e9:g} GB"
        cells = f"{row['start_s']:.1f} | {row['peak_mb']:.0f} | {row['resident']['VmRSS']:.0f} | {step:.0f}"
        lines.append(f"| {_name(row)}{limit} | {row['start']} | {cells} |")
    return "\n".join(lines)


def _name(row: Mapping[str, Any]) -> str:
    part = "" if row["part"] is None else f" {row['part']} {row['size'][0]}x{row['size'][1]}"
    return f"{row['bundle']} {row['backend']} {row['compute']}{part}"


if __name__ == "__main__":
    main()
