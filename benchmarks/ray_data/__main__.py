"""Overhead of a dataset by Ray beside one process on this machine, and a simulation of larger clusters.

    python -m benchmarks.ray_data --bundle build/bundles/shapes [--images 60] [--rounds 3]
    python -m benchmarks.ray_data --simulate        # of the latest result, without measuring

Both make the same images with the same threads, by turns: a process alone, and one actor with all cores. The start and
the first batch, which loads and compiles, are stated by themselves; others count when Ray's processes have begun.
Processor seconds bear other work on the machine better than a clock does. Then rows whose images
are there already go through the actor: what the driver can do. Writes benchmarks/results/<date>-ray-data.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import latentrt
from benchmarks.ray_data.simulate import Site, Work, table
from latentrt.bench.machine import machine_facts
from latentrt.datasets.dataset import Dataset
from latentrt.datasets.items import Item
from latentrt.datasets.making import Job, MakingOptions
from latentrt.datasets.request_file import Line, read_lines
from latentrt.datasets.target import BatchWritten
from latentrt.environment.ray_cluster import connected
from latentrt.output.png import encode_png
from latentrt.ray_data.opening import Opening
from latentrt.ray_data.resources import Wish
from latentrt.ray_data.run import RayDataset
from latentrt.request import Request

RESULTS = Path(__file__).parents[1] / "results"
BATCH, WARM = 4, 3
PACKAGES = ("ray", "pyarrow", "numpy", "pillow", "onnxruntime", "openvino")
MODELS = {
    # GPU seconds: an H200 makes 2.4 SDXL images a second in 20 steps in MLPerf 5.1; SD 1.5 is 8.4 times less work.
    "SD 1.5, 512x512": {"batch": 16, "gpu_s": 16 / 20.0, "file_mb": 0.45, "weights_gb": 2.1, "side": 512},
    "SDXL, 1024x1024": {"batch": 8, "gpu_s": 8 / 2.4, "file_mb": 1.6, "weights_gb": 6.9, "side": 1024},
}
"""What a GPU takes is assumed; what a core takes to encode is measured here."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("build/bundles/shapes"))
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1000, help="that go through an actor without any work (1000)")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--simulate", action="store_true", help="use what the latest result measured")
    options = parser.parse_args()
    if options.simulate:
        measured = json.loads(sorted(RESULTS.glob("*-ray-data.json"))[-1].read_text())
    else:
        measured = {**machine_facts(PACKAGES), **measure(options), "encode_s": encoding()}
    measured["simulated"] = simulated(measured)
    path = RESULTS / f"{datetime.now(UTC).date()}-ray-data.json"
    path.write_text(json.dumps(measured, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both ways by turns, and the driver alone."""
    cores = psutil.cpu_count() or 1
    opening = Opening(bundle=str(options.bundle.absolute()), backend=options.backend, threads=cores)
    rows: dict[str, list[dict[str, float]]] = {"alone": [], "ray": []}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place, connected("local", cpus=cores) as ray:
        connected_s = time.perf_counter() - began
        for number in range(options.rounds):
            for kind in rows:
                began = time.perf_counter()
                making, close = opened(kind, ray, opening, lines(options), Path(place) / f"{kind}{number}", cores)
                rows[kind].append(timed(making.make(batch=BATCH), began, by_ray=kind == "ray"))
                close()
        same = contents(Path(place) / "alone0") == contents(Path(place) / "ray0")
        rate = rows_a_second(ray, opening, Path(place) / "rows", options, cores)
    middle = {kind: {name: _middle(each, name) for name in each[0]} for kind, each in rows.items()}
    return {
        "bundle": options.bundle.name,
        "backend": options.backend,
        "images": options.images,
        "steps": options.steps,
        "batch": BATCH,
        "rounds": options.rounds,
        "same_bytes": same,
        "connect_s": round(connected_s, 2),
        **middle,
        "overhead": {
            "seconds_a_batch": round(middle["ray"]["seconds_a_batch"] / middle["alone"]["seconds_a_batch"] - 1, 4),
            "cpu_s_a_batch": round(middle["ray"]["cpu_s_a_batch"] / middle["alone"]["cpu_s_a_batch"] - 1, 4),
            "other_cores": round(middle["ray"]["other_cores"] / cores, 4),
        },
        "rows_a_second": rate,
    }


def opened(
    kind: str, ray: Any, opening: Opening, made: list[Line], folder: Path, cores: int
) -> tuple[Dataset | RayDataset, Callable[[], None]]:
    """A dataset either way, and what ends it."""
    if kind == "ray":
        return RayDataset(ray, opening, made, folder, wish=Wish(actors=1, cpus=cores), seed=1), lambda: None
    pipe = opening.open()
    return Dataset(pipe, made, folder, seed=1), pipe.close


def timed(making: Iterator[BatchWritten], began: float, *, by_ray: bool) -> dict[str, float]:
    """Seconds until the first batch is there, and from the WARM-th on: of a batch, of the processors for one in the
    process that makes it, and the cores that all other processes of Ray and the driver keep busy meanwhile."""
    times, makers, others = [], [], []
    for _ in making:
        times.append(time.perf_counter())
        maker, other = processor_seconds(by_ray=by_ray)
        makers.append(maker)
        others.append(other)
    later, seconds = len(times) - 1 - WARM, times[-1] - times[WARM]
    return {
        "first_s": round(times[0] - began, 3),
        "seconds_a_batch": round(seconds / later, 4),
        "cpu_s_a_batch": round((makers[-1] - makers[WARM]) / later, 4),
        "other_cores": round((others[-1] - others[WARM]) / seconds, 4),
    }


def processor_seconds(*, by_ray: bool) -> tuple[float, float]:
    """Of the process that makes images, and of all others that make some by Ray, this one included."""
    own = psutil.Process()
    times: dict[bool, float] = {True: 0.0, False: 0.0}
    for process in (own, *own.children(recursive=True)) if by_ray else (own,):
        try:
            maker = not by_ray or any("MapBatches(Maker)" in word for word in process.cmdline())
            spent = process.cpu_times()
        except psutil.Error:
            continue
        times[maker] += spent.user + spent.system
    return times[True], times[False]


def rows_a_second(
    ray: Any, opening: Opening, folder: Path, options: argparse.Namespace, cores: int
) -> dict[str, float]:
    """How many rows an actor and the driver do whose images are there, one a task and many a task."""
    dataset = RayDataset(ray, opening, lines(options)[:BATCH], folder, wish=Wish(actors=1, cpus=cores), seed=1)
    list(dataset.make(batch=BATCH))
    item: Item = dataset.items[0]
    job = Job((item,), frozenset([item.name]))
    found = {}
    for name, tasks in (("one a task", options.rows), ("64 tasks", 64)):
        done = dataset.workers(MakingOptions(), tasks=tasks).make([job] * options.rows)
        next(done)
        began, count = time.perf_counter(), sum(1 for _ in done)
        found[name] = round(count / (time.perf_counter() - began), 1)
    return found


def encoding() -> dict[str, float]:
    """Seconds of a core for a PNG file of a picture that is smooth with some grain, by its side."""
    found = {}
    rng = np.random.default_rng(0)
    for side in {int(model["side"]) for model in MODELS.values()}:
        wave = np.sin(np.linspace(0, 9, side))[:, None, None] * np.cos(np.linspace(0, 7, side))[None, :, None]
        image = np.clip(127 + 90 * wave + rng.normal(0, 4, (side, side, 3)), 0, 255).astype(np.uint8)
        times = []
        for _ in range(5):
            began = time.process_time()
            data = encode_png(image)
            times.append(time.process_time() - began)
        found[str(side)] = round(statistics.median(times), 4)
        found[f"{side} MB"] = round(len(data) / 1e6, 2)
    return found


def simulated(measured: dict[str, Any]) -> dict[str, Any]:
    """A million images by 8, 64 and 512 GPUs, one actor a GPU and two."""
    found: dict[str, Any] = {}
    for name, model in MODELS.items():
        work = Work(
            images=1_000_000,
            batch=int(model["batch"]),
            gpu_s=float(model["gpu_s"]),
            encode_s=measured["encode_s"][str(model["side"])],
            file_mb=float(model["file_mb"]),
            weights_gb=float(model["weights_gb"]),
        )
        for actors in (1, 2):
            site = Site(gpus=8, actors=actors, tasks_s=measured["rows_a_second"]["one a task"])
            rows = [asdict(outcome) for outcome in table(work, site)]
            found[f"{name}, {actors} a GPU"] = {
                str(gpus): {key: float(f"{value:.3g}") for key, value in row.items()}
                for gpus, row in zip((8, 64, 512), rows, strict=True)
            }
    return found


def lines(options: argparse.Namespace) -> list[Line]:
    """Prompts without end."""
    texts = [f"a {colour} circle, number {number}" for number in range(options.images) for colour in ("red",)]
    found, _ = read_lines(texts, defaults=Request("", steps=options.steps), root=Path())
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _middle(rows: list[dict[str, float]], name: str) -> float:
    return round(statistics.median(row[name] for row in rows), 4)


if __name__ == "__main__":
    print(f"LatentRT {latentrt.__version__}")
    main()
