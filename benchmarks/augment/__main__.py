"""The command."""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import benchmarks.augment
import latentrt
from benchmarks.augment.detector import Pictures, measured
from benchmarks.augment.judge import judged
from benchmarks.augment.loader import install, loaded
from benchmarks.augment.neighbour import fitted
from benchmarks.augment.pictures import SHAPES, class_prompts, write_dataset
from benchmarks.augment.sheet import sheet
from benchmarks.result_file import FOLDER, write_result
from latentrt.augment.folder import Entry, Folder, form_of, read_state
from latentrt.augment.labels import Form, Label
from latentrt.augment.modes import MODES, Mode
from latentrt.augment.run import augment
from latentrt.augment.scores import Detector, agreement_with
from latentrt.augment.settings import Augmentation
from latentrt.augment.source import Picture, Source, read_source
from latentrt.augment.table import Table
from latentrt.augment.templates import read_templates
from latentrt.augment.variants import Copies
from latentrt.bench.machine import PACKAGES, provenance, usable_cores
from latentrt.bundle import MANIFEST, Bundle
from latentrt.images.photo import read_photo
from latentrt.pipeline import Pipeline
from latentrt.request import Request

ROOT = Path(__file__).resolve().parents[2]
WORDS = "prompts"  # the mode that makes a classification, without a source
GUIDANCE, DILATE = 4.0, 2
SEEDS = (0, 1, 2)
Arms = dict[str, list[Picture]]
GOAL = 0.95  # share of kept pictures whose labels are true


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes what was found; 1: labels of a mode are true in less than the goal."""
    options = _options(arguments)
    began = time.perf_counter()
    data = write_dataset(
        options.build / "real", {"train": options.pictures, "val": options.held_out}, seed=options.seed
    )
    source = read_source(data)
    modes = [Mode.read(text) for text in options.mode or (name for name in MODES if name != WORDS)]
    out, words = options.build / "augmented", options.build / "classes"
    pool = ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn"))
    with latentrt.load(_bundle(options.bundle), backend=options.backend, threads=options.threads) as pipe:
        bundle = pipe.bundle
        skipped = _made(pipe, source, data.with_name("prompts.yaml"), out, modes, options)
        arms = {"real": source.of("train"), "real and synthetic": read_source(out / "data.yaml").of("train")}
        runs = _begun(pool, arms, source, options.training_steps)
        _classes(pipe, fitted(source.of("train")), words, options)
    _say(began, "made")
    found: dict[str, Any] = {
        "command": ["python", "-m", "benchmarks.augment", *(sys.argv[1:] if arguments is None else arguments)],
        "provenance": provenance(bundle, packages=(*PACKAGES, "pillow")),
        "real": {"train": len(source.of("train")), "val": len(source.of("val"))},
        "request": {"steps": options.steps, "guidance": GUIDANCE, "dilate": DILATE, "seed": options.seed},
        "checker_on_real": _real_tally(source.pictures, source.form),
        "modes": {**_modes(out, skipped), WORDS: _modes(words, {})[WORDS]},
    }
    _draw(source, out, options.build / "sheet.webp")
    _say(began, "judged")
    site = install(options.site)
    found["loader"] = loaded(out, words, site=site, scratch=options.build / "ultralytics")
    _say(began, "read by the loader")
    found["training"] = _training(runs, arms, options.training_steps)
    pool.shutdown()
    found["seconds"] = round(time.perf_counter() - began)
    _say(began, "trained")
    path = write_result(found, what="augment", folder=options.results)
    print(f"{table(found)}\n{path}")
    low = [name for name, row in found["modes"].items() if row["kept"] and row["share_true"] < GOAL]
    print(f"below {GOAL:.0%}: {', '.join(low)}" if low else f"every mode has true labels in {GOAL:.0%} or more")
    return 1 if low else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.augment",
        description=benchmarks.augment.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, default=ROOT / "build/bundles/shapes", help="of the example checkpoint")
    parser.add_argument("--build", type=Path, default=ROOT / "build/augment-study", help="where pictures go")
    parser.add_argument("--site", type=Path, default=ROOT / "build/augment-site", help="where Ultralytics' package is")
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--mode", action="append", metavar="NAME[:STRENGTH]", help="default: all, at usual strengths")
    parser.add_argument("--pictures", type=int, default=50, help="of the real training set (50)")
    parser.add_argument("--held-out", type=int, default=200, help="real pictures to measure by (200)")
    parser.add_argument("--steps", type=int, default=15, help="of denoising (15)")
    parser.add_argument("--training-steps", type=int, default=200, help="batches of each training (200)")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--threads", type=int)
    return parser.parse_args(arguments)


def _bundle(plain: Path) -> Path:
    """The bundle with its ControlNet, made if it is missing."""
    control = plain.with_name(f"{plain.name}-control")
    if not (control / MANIFEST).is_file():
        if not (plain / MANIFEST).is_file():
            _latentrt("export", SHAPES / "checkpoint", "-o", plain)
        _latentrt("control", plain, f"edges={SHAPES / 'controlnet'}", "-o", control)
    Bundle.open(control)
    return control


def _latentrt(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "latentrt.cli", *map(str, arguments)], check=True)


def _made(
    pipe: Pipeline, source: Source, prompts: Path, out: Path, modes: Sequence[Mode], options: argparse.Namespace
) -> dict[str, int]:
    """A copy of each training picture by each mode; how often a mode had nothing to do, by its name."""
    detector = fitted(source.of("train"))
    settings = Augmentation(
        copies=Copies(modes=tuple(modes), copies=len(modes), seed=options.seed),
        templates=read_templates(prompts),
        request=_request(options),
        scores={"agreement": agreement_with(detector)},
        dilate=DILATE,
    )
    summary = augment(pipe, source, out, settings)
    skipped = dict.fromkeys((mode.name for mode in modes), 0)
    for reason, times in summary.skipped.items():
        skipped[reason.partition(":")[0]] += times
    return skipped


def _classes(pipe: Pipeline, detector: Detector, out: Path, options: argparse.Namespace) -> None:
    """A classification from words alone."""
    templates = read_templates(class_prompts(out.with_name("classes.yaml")))
    settings = Augmentation(
        copies=Copies(modes=(Mode.read(WORDS),), copies=max(1, options.pictures // 10), seed=options.seed),
        templates=templates,
        request=_request(options),
        scores={"agreement": agreement_with(detector)},
    )
    augment(pipe, Source(Form("classify", tuple(templates.classes)), (), (), {}), out, settings)


def _request(options: argparse.Namespace) -> Request:
    return Request("", steps=options.steps, guidance=GUIDANCE, sampler="dpmpp-2m")


def _modes(root: Path, skipped: dict[str, int]) -> dict[str, Any]:
    """What became of the pictures of each mode."""
    state = read_state(root)
    folder = Folder(root, form_of(state))
    rows = Table(root / "scores.csv").rows
    entries = [folder.entry(name) for name in state["generated"]]
    found = {}
    for name in dict.fromkeys(entry.row["mode"] for entry in entries):
        own = [entry for entry in entries if entry.row["mode"] == name]
        kept = [entry for entry in own if rows[entry.name]["kept"] == "1"]
        every, tally = _tally(folder, own), _tally(folder, kept)
        found[name] = {
            "strength": own[0].row["strength"],
            "nothing_to_do": skipped.get(name, 0),
            "made": len(own),
            "kept": len(kept),
            "share_dropped": round(1 - len(kept) / len(own), 4),
            "share_true": round(tally["pictures_true"] / max(1, len(kept)), 4),
            "share_true_unfiltered": round(every["pictures_true"] / len(own), 4),
            "of_kept": tally,
        }
    return found


def _tally(folder: Folder, entries: Sequence[Entry]) -> dict[str, Any]:
    """What the judge says; the class of a classification is asked of whatever is seen."""
    names = folder.form.names

    def pairs() -> Iterator[tuple[Any, Sequence[Label]]]:
        for entry in entries:
            yield read_photo(folder.generated / entry.name).rgb, entry.labels

    if folder.form.task != "classify":
        return asdict(judged(pairs(), names))
    from benchmarks.augment.judge import things

    right = 0
    for (pixels, _), entry in zip(pairs(), entries, strict=True):
        seen = things(pixels)
        right += len(seen) == 1 and seen[0].category == names.index(entry.row["folder"])
    return {"pictures": len(entries), "pictures_true": right}


def _real_tally(pictures: Sequence[Picture], form: Form) -> dict[str, Any]:
    """The checker on real pictures, whose labels are all true: what it gets wrong is its own."""
    return asdict(judged(((read_photo(each.path).rgb, each.labels) for each in pictures), form.names))


Runs = dict[str, list["Future[tuple[float, float]]"]]


def _begun(pool: ProcessPoolExecutor, arms: Arms, real: Source, steps: int) -> Runs:
    """Trainings with each seed, which go on while the rest is judged."""
    held_out, classes = _pictures(real.of("val")), len(real.form.names)
    arrays = {name: _pictures(pictures) for name, pictures in arms.items()}
    return {
        name: [pool.submit(measured, arrays[name], held_out, classes, steps, seed) for seed in SEEDS] for name in arms
    }


def _training(runs: Runs, arms: Arms, steps: int) -> dict[str, Any]:
    """Average precisions of a detector on held-out real pictures, by what it was trained on."""
    found: dict[str, Any] = {"steps": steps, "seeds": list(SEEDS), "arms": {}}
    for name, pictures in arms.items():
        at_half, over_all = zip(*(run.result() for run in runs[name]), strict=True)
        found["arms"][name] = {"pictures": len(pictures), "map50": [*at_half], "map50_95": [*over_all]}
    alone, both = found["arms"].values()
    found["gain"] = {key: round(float(np.mean(both[key]) - np.mean(alone[key])), 4) for key in ("map50", "map50_95")}
    return found


def _pictures(pictures: Sequence[Picture]) -> Pictures:
    """As the detector takes them; parts that modes added bring pictures of other sizes back to the smallest."""
    size = min(picture.size for picture in pictures)
    pixels = [np.asarray(_resized(picture, size)) for picture in pictures]
    scale = torch.tensor([*size, *size], dtype=torch.float32)
    return Pictures(
        torch.from_numpy(np.stack(pixels)).movedim(-1, 1).contiguous(),
        [torch.tensor([label.category for label in picture.labels], dtype=torch.int64) for picture in pictures],
        [torch.tensor([label.bounds for label in picture.labels]).reshape(-1, 4) * scale for picture in pictures],
    )


def _resized(picture: Picture, size: tuple[int, int]) -> Any:
    from PIL import Image

    return Image.fromarray(read_photo(picture.path).rgb).resize(size, Image.Resampling.BICUBIC)


def _draw(source: Source, out: Path, path: Path) -> None:
    """The same real pictures in each mode."""
    state = read_state(out)
    folder = Folder(out, form_of(state))
    entries = [folder.entry(name) for name in state["generated"]]
    rows = Table(out / "scores.csv").rows
    kept = [entry for entry in entries if rows[entry.name]["kept"] == "1"]
    modes = list(dict.fromkeys(entry.row["mode"] for entry in entries))
    first = {name: [entry for entry in kept if entry.row["mode"] == name][:4] for name in modes}
    shown = source.of("train")[:4]
    columns = [("real", [(each.path, each.labels) for each in shown])]
    columns += [
        (name, [(folder.generated / each.name, each.labels) for each in found]) for name, found in first.items()
    ]
    sheet(columns, source.form.names).save(path, quality=80)


def table(found: dict[str, Any]) -> str:
    """For docs/augment.md."""
    heads = ("mode", "strength", "made", "dropped", "true of the kept", "true of all", "kept with an unlabelled object")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in found["modes"].items():
        cells = [name, f"{row['strength']:g}", row["made"], f"{row['share_dropped']:.0%}"]
        cells += [f"{row['share_true']:.1%} of {row['kept']}", f"{row['share_true_unfiltered']:.0%}"]
        cells += [row["of_kept"].get("pictures_unlabelled", "")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| trained on | pictures | mAP50 | mAP50-95 |", "|---|---|---|---|"]
    for name, arm in found["training"]["arms"].items():
        cells = [name, arm["pictures"], *(_spread(arm[key]) for key in ("map50", "map50_95"))]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _say(began: float, what: str) -> None:
    print(f"{what} after {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
