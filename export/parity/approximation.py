"""Judging a bundle that computes something else than its reference: one that is quantised or pools attention.

Imports no torch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from latentrt.bundle import Bundle
from latentrt.export.parity.cases import SEED, SEEDS, CaseTable
from latentrt.export.parity.gates import (
    MIN_SQNR_DB,
    Evaluation,
    measure_backends,
    observe,
    pooled,
    quantised,
)
from latentrt.export.parity.measurement import Measurements
from latentrt.export.parity.reference import Reference

BATCH = 4  # images at a time

Progress = Callable[[str], None]


def approximate(bundle: Bundle, reference: Reference) -> tuple[str, ...]:
    """The components that are quantised, or pool attention which the reference does not."""
    names = {*quantised(bundle), *(name for name in pooled(bundle) if name not in reference.pooled)}
    return tuple(name for name in bundle.components if name in names)


def controls_of(bundle: Bundle, reference: Reference) -> list[str]:
    """Names of the ControlNets of both."""
    return [name for name in bundle.controls if name in reference.controls]


def examinations(
    bundle: Bundle, reference: Reference, coarse: Sequence[str], evaluation: Evaluation, progress: Progress
) -> Measurements:
    """What a bundle was judged by when it was made, and the same with each ControlNet."""
    plain, *controlled = (
        _examined(bundle, reference, coarse, each, progress)
        for each in (evaluation, *_controlled(evaluation, controls_of(bundle, reference)))
    )
    rows = [*plain.rows, *(row for measurements in controlled for row in measurements.rows)]
    return Measurements(tuple(rows), plain.pictures)


def evaluation_of(
    bundle: Bundle,
    backends: Sequence[str],
    table: CaseTable,
    *,
    metric: str | None = None,
    metric_drop: float | None = None,
    images: int = SEEDS,
) -> Evaluation:
    """What the bundle was judged by when it was made, as far as its manifest says, else its family's defaults."""
    defaults = bundle.family.defaults
    judged = bundle.section("calibration") or bundle.section("pooling") or {}
    made_by = judged.get("exam", {})
    texts = made_by.get("texts", table.own(images=images).prompts) if table.prompts is None else table.prompts
    return Evaluation(
        prompts=tuple(texts),
        negative=made_by.get("negative", ""),
        size=tuple(made_by.get("size", defaults.size)),
        steps=made_by.get("steps", defaults.steps),
        guidance=made_by.get("guidance", defaults.guidance),
        sampler=made_by.get("sampler", defaults.sampler),
        seed=made_by.get("seed", SEED),
        batch=BATCH,
        backends=tuple(backends),
        min_sqnr=made_by.get("min_sqnr", MIN_SQNR_DB),
        min_psnr=made_by.get("min_psnr"),
        metric=metric,
        metric_drop=metric_drop,
    )


def _controlled(evaluation: Evaluation, controls: Sequence[str]) -> Iterator[Evaluation]:
    """One image with each ControlNet."""
    for name in controls:
        yield replace(evaluation, prompts=evaluation.prompts[:1], control=name, metric=None, metric_drop=None)


def _examined(
    bundle: Bundle, reference: Reference, components: Sequence[str], evaluation: Evaluation, progress: Progress
) -> Measurements:
    with reference.pipeline(bundle) as pipe:
        observed = observe(pipe, components, evaluation, status=progress)
    return measure_backends(bundle, observed, evaluation, status=progress)
