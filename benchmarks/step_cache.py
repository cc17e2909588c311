"""Step caching judged at equal time: against the same sampler with fewer steps.

    python -m benchmarks.step_cache                         # the example checkpoint: time, quality, a plot
    python -m benchmarks.step_cache --full sd15             # a full-size model with random weights: time alone
    python -m benchmarks.step_cache --full sdxl sd3-medium

The first makes every picture at 20, 30 and 50 steps with intervals 1, 2, 3 and 5, and beside each cached run the plain
run with as many steps as its time allows. PSNR is that of pictures, the median over prompts: to the uncached picture
of as many steps, and to one of 200 steps. Accuracy is the share of pictures in which the checker of examples/shapes
sees what the prompt says. Times are sums of calls: the fastest of `--turns` medians of deep calls, and of shallow ones.

Writes benchmarks/results/<date>-step-cache[-MODEL].json, and the plot to docs/images/step-cache.svg.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import latentrt
from benchmarks.result_file import FOLDER, write_result
from latentrt.bench.machine import PACKAGES, provenance
from latentrt.bundle import Bundle
from latentrt.export.bundles.step_cache import add_step_cache
from latentrt.export.parity.metric import load_metric
from latentrt.export.parity.metrics import median_psnr_db
from latentrt.names import SamplerName
from latentrt.output.result import Images

ROOT = Path(__file__).resolve().parents[1]
STEPS, INTERVALS, LAYERS, BEST = (20, 30, 50), (1, 2, 3, 5), (1, 2), 200
SAMPLER: SamplerName = "dpmpp-2m"
GUIDANCE, SEED, BATCH = 4.0, 7, 10
FULL = {"sd15": (512, 50, 3), "sdxl": (1024, 30, 2), "sd3-medium": (1024, 28, 2)}
"""Size, steps and interval of each full-size model."""


@dataclass(frozen=True, slots=True)
class CallTimes:
    """Milliseconds of one call."""

    deep: float
    shallow: float

    def run(self, steps: int, interval: int) -> float:
        """Of all calls of a run."""
        deep = -(-steps // interval)
        return deep * self.deep + (steps - deep) * self.shallow


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of run. `interval` 1 is without a cache; `beside` is the interval whose time a plain run takes."""

    layers: int
    steps: int
    interval: int
    beside: int | None
    time_ms: float
    psnr_uncached_db: float | None
    psnr_best_db: float
    accuracy: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", nargs="+", choices=FULL, metavar="MODEL", help=", ".join(FULL))
    parser.add_argument("--prompts", type=int, default=64, help="how many of examples/shapes/prompts.txt")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--compute", help="arithmetic of a float32 bundle, fp32 or bf16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--turns", type=int, default=5, help="timed runs of 8 steps, after one that is not (5)")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="where checkpoints and bundles lie")
    parser.add_argument("--results", type=Path, default=FOLDER)
    options = parser.parse_args()
    for model in options.full if options.full is not None else ():
        measure_full(model, options)
    if options.full is None:
        judge(options)


def judge(options: argparse.Namespace) -> None:
    """Time and quality of the example checkpoint."""
    plain = options.build / "bundles" / "shapes"
    if not (plain / "bundle.json").is_file():
        latentrt_command("export", ROOT / "examples" / "shapes" / "checkpoint", "-o", plain)
    lines = (ROOT / "examples" / "shapes" / "prompts.txt").read_text().splitlines()
    prompts = [line for line in lines if line and not line.startswith("#")][: options.prompts]
    score = load_metric(f"{ROOT / 'examples' / 'shapes' / 'checker.py'}:score")
    rows: list[Row] = []
    times: dict[int, CallTimes] = {}
    made: dict[tuple[int, int, int], Images] = {}
    for layers in LAYERS:
        cached = plain.with_name(f"shapes-cached-{layers}")
        add_step_cache(Bundle.open(plain), cached, layers=layers, overwrite=True)
        with latentrt.load(cached, backend=options.backend, compute=options.compute, threads=options.threads) as pipe:
            times[layers] = call_times(pipe, prompts[0], turns=options.turns)
            for steps in STEPS:
                for count, interval, beside in kinds(steps, times[layers]):
                    for each in ((count, interval), (BEST, 1)):
                        key = (layers if each[1] > 1 else 0, *each)
                        if key not in made:
                            made[key] = pictures(pipe, prompts, *each)
                            print(f"made {key}", flush=True)
                    found = made[layers if interval > 1 else 0, count, interval]
                    uncached = median_psnr_db(found, made[0, count, 1]) if interval > 1 else None
                    rows.append(
                        Row(
                            layers,
                            count,
                            interval,
                            beside,
                            time_ms=times[layers].run(count, interval),
                            psnr_uncached_db=uncached,
                            psnr_best_db=median_psnr_db(found, made[0, BEST, 1]),
                            accuracy=float(np.mean(score(found, prompts))),
                        )
                    )
                document = {
                    "options": sys.argv[1:],
                    "provenance": provenance(Bundle.open(cached), packages=PACKAGES),
                    "backend": options.backend,
                    "sampler": SAMPLER,
                    "guidance": GUIDANCE,
                    "prompts": len(prompts),
                    "call_ms": {number: asdict(each) for number, each in times.items()},
                    "rows": [asdict(row) for row in rows],
                }
                print(f"wrote {write_result(document, what='step-cache', folder=options.results)}")
                (ROOT / "docs" / "images" / "step-cache.svg").write_text(plot(rows))
    print(table(rows))


def kinds(steps: int, times: CallTimes) -> list[tuple[int, int, int | None]]:
    """(steps, interval, interval at whose time it stands) of every run, the plain one first."""
    found: list[tuple[int, int, int | None]] = []
    for interval in INTERVALS:
        found.append((steps, interval, None))
        if interval > 1:
            found.append((max(1, round(times.run(steps, interval) / times.deep)), 1, interval))
    return found


def call_times(pipe: latentrt.Pipeline, prompt: str, *, turns: int, size: tuple[int, int] | None = None) -> CallTimes:
    """Of a guided call, batch 1."""
    deep, shallow = [], []
    for _ in range(1 + turns):
        made = pipe.generate(prompt, seed=SEED, steps=8, size=size, guidance=GUIDANCE, cache=4, output="latent")
        ms = np.array(made.timings.steps_ms)
        deep.append(float(np.median(ms[[0, 4]])))
        shallow.append(float(np.median(ms[[1, 2, 3, 5, 6, 7]])))
    return CallTimes(min(deep[1:]), min(shallow[1:]))


def pictures(pipe: latentrt.Pipeline, prompts: Sequence[str], steps: int, interval: int) -> Images:
    """One of each prompt, `BATCH` at a time."""
    parts = [
        pipe.generate(
            prompts[first : first + BATCH],
            seed=SEED + first,
            steps=steps,
            guidance=GUIDANCE,
            sampler=SAMPLER,
            cache=interval,
        ).images
        for first in range(0, len(prompts), BATCH)
    ]
    return np.concatenate(parts)


def measure_full(model: str, options: argparse.Namespace) -> None:
    """Times of a full-size model, whose random weights make no pictures to judge."""
    side, steps, interval = FULL[model]
    checkpoint, bundle = (options.build / kind / model for kind in ("checkpoints", "bundles"))
    bundle = bundle.with_name(f"{model}-cached")
    if not (checkpoint / "model_index.json").is_file():
        python("-m", "latentrt.export.synthetic.checkpoints", model, "-o", checkpoint)
    if not (bundle / "bundle.json").is_file():
        latentrt_command("export", checkpoint, "-o", bundle, "--no-check", "--step-cache")
    with latentrt.load(bundle, backend=options.backend, compute=options.compute, threads=options.threads) as pipe:
        times = call_times(pipe, "a red house by a lake", turns=options.turns, size=(side, side))
    speedup = times.run(steps, 1) / times.run(steps, interval)
    document = {
        "options": sys.argv[1:],
        "provenance": provenance(Bundle.open(bundle), packages=PACKAGES),
        "size": [side, side],
        "steps": steps,
        "interval": interval,
        "call_ms": asdict(times),
        "speedup": speedup,
    }
    print(f"wrote {write_result(document, what=f'step-cache-{model}', folder=options.results)}")
    print(f"{model}: deep {times.deep:.0f} ms, shallow {times.shallow:.0f} ms, {steps} steps at interval {interval}:")
    print(f"{speedup:.2f} times as fast in denoising")


def table(rows: Sequence[Row]) -> str:
    """For docs/step-caching.md."""
    deep_ms = {row.layers: row.time_ms / row.steps for row in rows if row.interval == 1}
    names = ["layers", "steps", "interval", "time, plain calls", "PSNR to uncached", "PSNR to 200 steps", "right"]
    names += ["plain steps in that time", "PSNR to 200 steps", "right"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for index, row in enumerate(rows):
        if row.beside is not None:
            continue
        cells = [row.layers, row.steps, row.interval, f"{row.time_ms / deep_ms[row.layers]:.1f}"]
        cells += ["" if row.psnr_uncached_db is None else f"{row.psnr_uncached_db:.1f}"]
        cells += [f"{row.psnr_best_db:.1f}", f"{100 * row.accuracy:.0f} %"]
        other = rows[index + 1] if row.interval > 1 else None
        cells += ["", "", ""] if other is None else _beside(other)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _beside(row: Row) -> list[str]:
    return [str(row.steps), f"{row.psnr_best_db:.1f}", f"{100 * row.accuracy:.0f} %"]


def plot(rows: Sequence[Row]) -> str:
    """PSNR to 200 steps over time in plain calls: plain runs as a line, cached ones as points."""
    width, height, edge = 720, 400, 60
    deep_ms = {row.layers: row.time_ms / row.steps for row in rows if row.interval == 1}
    longest = max(row.time_ms / deep_ms[row.layers] for row in rows)
    low, high = min(row.psnr_best_db for row in rows) - 1, max(row.psnr_best_db for row in rows) + 1

    def place(row: Row) -> tuple[float, float]:
        x = edge + (width - 2 * edge) * row.time_ms / deep_ms[row.layers] / longest
        return x, height - edge - (height - 2 * edge) * (row.psnr_best_db - low) / (high - low)

    plain = sorted({(row.steps, *place(row)) for row in rows if row.interval == 1 and row.layers == LAYERS[0]})
    parts = [f'<polyline fill="none" stroke="#444" points="{" ".join(f"{x:.1f},{y:.1f}" for _, x, y in plain)}"/>']
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#444"/>' for _, x, y in plain]
    colours: Mapping[int, str] = {1: "#c0392b", 2: "#2471a3"}
    for row in rows:
        if row.interval > 1:
            (x, y), colour = place(row), colours[row.layers]
            label = f"{row.steps}/{row.interval}"
            parts.append(f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" fill="{colour}"/>')
            parts.append(f'<text x="{x + 5:.1f}" y="{y + 4:.1f}" font-size="10" fill="{colour}">{label}</text>')
    legend = [("plain, fewer steps", "#444"), *((f"cached, {n} layers: steps/interval", colours[n]) for n in LAYERS)]
    parts += [
        f'<text x="{width - edge - 190}" y="{height - edge - 50 + 16 * i}" font-size="12" fill="{colour}">{text}</text>'
        for i, (text, colour) in enumerate(legend)
    ]
    for value in np.linspace(low, high, 5):
        y = height - edge - (height - 2 * edge) * (value - low) / (high - low)
        parts.append(f'<text x="10" y="{y:.0f}" font-size="11">{value:.1f} dB</text>')
    for value in np.linspace(0, longest, 5):
        x = edge + (width - 2 * edge) * value / longest
        parts.append(f'<text x="{x:.0f}" y="{height - 30}" font-size="11">{value:.0f}</text>')
    title = (
        f'<text x="{edge}" y="24" font-size="14">PSNR to a picture of {BEST} steps, over time, in plain calls</text>'
    )
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    return f'{frame}<rect width="{width}" height="{height}" fill="white"/>{title}{"".join(parts)}</svg>\n'


def latentrt_command(*arguments: object) -> None:
    python("-m", "latentrt.cli", *arguments)


def python(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
