"""From a dataset and a bundle to a larger dataset: plan, make, score, filter, write."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from latentrt.augment.folder import GENERATED, PARTS, REPORT, SCORES, STATE, Entry, Folder, form_of, read_state
from latentrt.augment.labels import Form, Label
from latentrt.augment.modes import Ground, Mode
from latentrt.augment.report import Shown, report
from latentrt.augment.scores import USUAL, Score, contrast, hashes_of, read_sample
from latentrt.augment.settings import Augmentation, check_bundle, check_folders, check_templates, try_scores
from latentrt.augment.source import SPLITS, Picture, Source
from latentrt.augment.table import Table
from latentrt.augment.variants import Copies, Variant, class_counts, plan
from latentrt.bundle import sha256_file
from latentrt.concurrency.locks import lock_folder
from latentrt.datasets.dataset import Dataset
from latentrt.datasets.items import Item
from latentrt.datasets.target import BatchWritten
from latentrt.environment.version import VERSION
from latentrt.errors import RequestError
from latentrt.files.atomic import write_whole
from latentrt.pipeline import Pipeline

Progress = Callable[[str, int, int], None]
"""(what is done, how many are, of how many)."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What has become of a folder.

    Args:
        real: pictures of train that are real.
        made: pictures that were made, in this run and before.
        new: of them, in this run.
        kept: of them, in train now.
        dropped: why others are not: how many, by score.
        skipped: how often a mode had nothing to do, by its reason.
    """

    real: int
    made: int
    new: int
    kept: int
    dropped: Mapping[str, int]
    skipped: Mapping[str, int]


def augment(
    pipe: Pipeline,
    source: Source,
    output: Path,
    settings: Augmentation,
    *,
    batch: int = 4,
    overwrite: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """Makes the pictures that are missing, and the dataset of those that are kept. After a kill the same call goes on.

    Args:
        pipe: makes the pictures.
        source: the dataset that it starts from.
        output: the folder of the new one; it is made if it is missing.
        batch: the most pictures at a time.
        overwrite: pictures of other settings are made anew, instead of refused.

    Raises:
        RequestError: something that cannot be made; nothing is, then.
    """
    form = source.form
    control = check_bundle(pipe.bundle, form, settings.copies.modes, settings.control)
    check_folders(form)
    check_templates(source, settings)
    try_scores(source, settings, Table(output / SCORES).columns())
    ground = Ground(
        form,
        settings.templates,
        pipe.bundle.family,
        control=control,
        visible=settings.visible,
        dilate=settings.dilate,
        extend=settings.extend,
        objects=_objects(source),
    )
    folder = Folder(output, form)
    with lock_folder(output):
        per_class = form.names if not source.of("train") else ()
        variants, skipped = plan(source, ground, settings.copies, output / PARTS, per_class=per_class)
        lines = [variant.line(number, settings.request) for number, variant in enumerate(variants, start=1)]
        dataset = Dataset(pipe, lines, output / GENERATED, seed=settings.copies.seed, overwrite=overwrite)
        if dataset.bad:
            first = variants[dataset.bad[0].number - 1]
            of = first.source.path if first.source is not None else first.name
            raise RequestError(f"{of}: {dataset.bad[0].error} ({len(dataset.bad)} pictures cannot be made)")
        missing = {item.name for item in dataset.missing}
        state = _state(source, settings, [item.name for item in dataset.items], skipped, output)
        folder.begin(state)
        folder.write_real(source)
        _make(dataset, batch, progress)
        for variant, item in zip(variants, dataset.items, strict=True):
            folder.write_provenance(item.name, _provenance(variant, folder, pipe, item))
        return _finish(folder, state, settings, new=len(missing), progress=progress)


def refilter(output: Path, least: Mapping[str, float], scores: Mapping[str, Score] | None = None) -> Summary:
    """The dataset anew from what was made, with other thresholds or scores. Nothing is generated.

    Args:
        scores: by name; they are given to every picture anew.

    Raises:
        RequestError: no such folder, or a score that it has not.
    """
    state = read_state(output)
    folder = Folder(output, form_of(state))
    settings = Augmentation(copies=Copies(modes=(Mode.read("image"),)), scores=scores or {}, least=least)
    with lock_folder(output):
        return _finish(folder, state, settings, new=0, anew=settings.scores, progress=lambda what, done, total: None)


def _make(dataset: Dataset, batch: int, progress: Progress) -> None:
    total = len(dataset.missing)
    done = 0
    with closing(dataset.make(batch=batch)) as batches:
        for made in batches:
            done += _count(made)
            progress("images", done, total)


def _count(made: BatchWritten) -> int:
    return len(made.names) + len(made.failed)


def _finish(
    folder: Folder,
    state: dict[str, Any],
    settings: Augmentation,
    *,
    new: int,
    progress: Progress,
    anew: Collection[str] = (),
) -> Summary:
    """Scores, filters and writes; everything that it needs is in the folder."""
    order: list[str] = state["generated"]
    entries = [folder.entry(name) for name in order]
    table = Table(folder.root / SCORES)
    scores = {"contrast": contrast, **settings.scores}
    try:
        for done, entry in enumerate(entries, start=1):
            path = folder.generated / entry.name
            sample = partial(read_sample, path, entry.row, entry.labels, folder.form)
            table.score(entry.name, entry.row["sha256"], sample, scores, anew=anew)
            progress("scores", done, len(entries))
    finally:
        table.write(order)
    real = [folder.root / name for name in state["real"]]
    table.measure_distances(hashes_of(real), order)
    usual = {name: value for name, value in USUAL.items() if name in table.columns()}
    least = {**usual, **settings.least}
    dropped = table.decide(least, order)
    table.write(order)
    kept = [entry for entry in entries if entry.name not in dropped]
    folder.settle(kept, known=state["known"])
    before = Counter(state["counts"])
    after = before + Counter(name for entry in kept for name in _names(entry, folder.form))
    shown = [
        Shown(folder.generated / entry.name, entry.labels, str(entry.row["mode"]), tuple(dropped.get(entry.name, ())))
        for entry in entries
    ]
    page = report(
        folder.form.names,
        before=before,
        after=after,
        real=len(real),
        pictures=shown,
        least=least,
        skipped=state["skipped"],
    )
    write_whole(folder.root / REPORT, page.encode())
    if folder.form.task != "classify":
        folder.write_data(state["extra"], state["splits"])
    low = Counter(name for names in dropped.values() for name in names)
    return Summary(len(real), len(order), new, len(kept), dict(low), state["skipped"])


def _state(
    source: Source, settings: Augmentation, generated: list[str], skipped: Mapping[str, int], output: Path
) -> dict[str, Any]:
    folder = Folder(output, source.form)
    counts = class_counts(source.of("train"))
    before = read_state(output) if (output / STATE).exists() else {}
    return {
        "latentrt": VERSION,
        "task": source.form.task,
        "names": list(source.form.names),
        "keypoints": source.form.keypoints,
        "extra": dict(source.extra),
        "splits": [split for split in SPLITS if source.of(split)],
        "modes": [str(mode) for mode in settings.copies.modes],
        "real": [folder.real_path(picture).relative_to(output).as_posix() for picture in source.of("train")],
        "counts": {source.form.names[key] if isinstance(key, int) else key: count for key, count in counts.items()},
        "generated": generated,
        "known": sorted({*generated, *before.get("known", ())}),
        "skipped": dict(skipped),
    }


def _provenance(variant: Variant, folder: Folder, pipe: Pipeline, item: Item) -> dict[str, Any]:
    """How a picture was made."""
    return {
        "source": str(variant.source.path) if variant.source is not None else None,
        "mode": "empty" if variant.mode is None else variant.mode.name,
        "strength": None if variant.mode is None else variant.mode.strength,
        "copy": variant.copy,
        "seed": variant.seed,
        "prompt": variant.made.prompt,
        "labels": folder.form.rows(variant.labels),
        "changed": list(variant.made.changed),
        "folder": variant.folder,
        "bundle": pipe.bundle.name,
        "latentrt": VERSION,
        "request": item.settings(),
        "sha256": sha256_file(folder.generated / item.name),
    }


def _objects(source: Source) -> dict[int, list[tuple[Picture, Label]]]:
    """Real objects by class."""
    found: dict[int, list[tuple[Picture, Label]]] = {}
    for picture in source.of("train"):
        for label in picture.labels:
            found.setdefault(label.category, []).append((picture, label))
    return found


def _names(entry: Entry, form: Form) -> list[str]:
    """Of its classes, one an object."""
    if entry.row["folder"] is not None:
        return [entry.row["folder"]]
    return [form.names[label.category] for label in entry.labels]
