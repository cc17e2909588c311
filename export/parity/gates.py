"""What quantising or pooled attention cost, measured on each backend: the network per branch along trajectories, and
whole images.

Both are compared with a float pipeline: the parent bundle on ONNX Runtime, or the checkpoint's modules in torch.
Guidance multiplies the network's error, so that the network is judged bare, one branch at a time, and the images show
the rest. Imports no torch: `latentrt calibrate` judges without it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

import latentrt
from latentrt.arrays import to_host
from latentrt.backends.processor import has_int8_products
from latentrt.bundle import Bundle
from latentrt.export.parity.measurement import Measurement, Measurements, Pictures
from latentrt.export.parity.metric import load_metric, metric_rows, scores
from latentrt.export.parity.metrics import cosine, psnr_db, signal_to_noise_db, ssim
from latentrt.export.parity.pictures import control_picture
from latentrt.export.parity.probes import Probe, Recorder, probes_of
from latentrt.images.control import Control
from latentrt.names import BackendName, SamplerName
from latentrt.output.result import Images
from latentrt.pipeline import Pipeline
from latentrt.request import Request

QUANTISED = ("int8", "fp8")
REFERENCE: BackendName = "onnxruntime"
MIN_SQNR_DB = 25.0
MAX_APART_DB = 1.0  # between backends: the same file must mean the same to all
HALVED_DB = (
    8.5  # int8 weights halved and rounded: a mean square error of 1/2 beside that of 1/12 that they had, at most
)
TRAJECTORIES = 4  # of the images, those along which the network is judged
CONTROLLED_CALLS = 6  # of a trajectory with a control, those that are kept: their residuals are large

Status = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is run to judge.

    Args:
        prompts: one image of each, image i from `seed` + i.
        min_sqnr: dB that the mean over a trajectory must reach for each branch and component.
        min_psnr: dB that the median of the images must reach; None: reported, not judged.
        metric: a measure of the user's own, as `load_metric` takes it.
        metric_drop: how much of it the images may lose in the mean; None: reported, not judged.
        control: name of a ControlNet, which leads all images; None: none does.
    """

    prompts: tuple[str, ...]
    negative: str
    size: tuple[int, int]
    steps: int
    guidance: float
    sampler: str
    seed: int
    batch: int
    backends: tuple[str, ...]
    min_sqnr: float = MIN_SQNR_DB
    min_psnr: float | None = None
    metric: str | None = None
    metric_drop: float | None = None
    control: str | None = None

    @property
    def controls(self) -> list[Control]:
        return [] if self.control is None else [Control(self.control, control_picture(self.size))]

    def requests(self) -> list[Request]:
        return [
            Request(
                self.prompts[first : first + self.batch],
                negative=self.negative,
                syntax="plain",
                seed=self.seed + first,
                size=self.size,
                steps=self.steps,
                guidance=self.guidance,
                sampler=cast("SamplerName", self.sampler),
                control=self.controls,
            )
            for first in range(0, len(self.prompts), self.batch)
        ]

    def open_control(self, pipe: Pipeline) -> None:
        """Opens the engines of the control, which a pipeline does for its first run with one."""
        if self.control is not None:
            images = min(self.batch, len(self.prompts))
            pipe.prepare(size=self.size, images=images, guided=self.guidance > 1, controls=[self.control])

    def __str__(self) -> str:
        control = "" if self.control is None else f", control {self.control}"
        return f"{self.sampler}, {self.steps} steps, guidance {self.guidance:g}{control}"


@dataclass(frozen=True, slots=True)
class FloatOutputs:
    """What float did: calls to repeat, and images uint8 [N, H, W, 3]."""

    probes: tuple[Probe, ...]
    images: Images


def measure_backends(
    bundle: Bundle, reference: FloatOutputs, evaluation: Evaluation, *, threads: int | None = None, status: Status
) -> Measurements:
    """`measure_backend` on all of the evaluation, how far these are apart, and the images."""
    rows: list[Measurement] = []
    images: dict[str, Images] = {}
    for backend in evaluation.backends:
        found, images[backend] = measure_backend(bundle, reference, evaluation, backend, threads=threads, status=status)
        rows += found
    return Measurements((*rows, *apart_rows(rows)), Pictures(evaluation.prompts, reference.images, images))


def quantised(bundle: Bundle) -> tuple[str, ...]:
    """The components that hold quantised weights."""
    return tuple(name for name, part in bundle.components.items() if part.precision in QUANTISED)


def pooled(bundle: Bundle) -> tuple[str, ...]:
    """The components with self-attentions whose keys and values are pooled."""
    return tuple(name for name, part in bundle.components.items() if part.pooled_attention)


def judgement(rows: Sequence[Measurement], evaluation: Evaluation | None) -> dict[str, Any]:
    """What was measured, and what was run for it, as a manifest has it."""
    found: dict[str, Any] = {"judged": [{**asdict(row), "passed": row.passed} for row in rows]}
    if evaluation is not None:
        found["exam"] = {
            **{key: value for key, value in asdict(evaluation).items() if key != "prompts"},
            "prompts": len(evaluation.prompts),
            "texts": list(evaluation.prompts),
        }
    return found


def observe_parent(
    parent: Bundle, components: Collection[str], evaluation: Evaluation, *, threads: int | None, status: Status
) -> FloatOutputs:
    """Runs the float bundle on ONNX Runtime and keeps what is needed to judge `components`."""
    with latentrt.load(parent.root, backend=REFERENCE, threads=threads) as pipe:
        return observe(pipe, components, evaluation, status=status)


def observe(pipe: Pipeline, components: Collection[str], evaluation: Evaluation, *, status: Status) -> FloatOutputs:
    """Runs a float pipeline and keeps what is needed to judge `components`."""
    status(f"float: {len(evaluation.prompts)} images")
    evaluation.open_control(pipe)
    plain = dict(pipe.engines)
    every = 1 if evaluation.control is None else -(-evaluation.steps // CONTROLLED_CALLS)
    recorders = {name: Recorder(engine, every=every) for name, engine in plain.items() if name in components}
    observed = Pipeline(pipe.bundle, pipe.engines.under(recorders))
    images = []
    for number, request in enumerate(evaluation.requests()):
        for recorder in recorders.values():
            recorder.active = number * evaluation.batch < TRAJECTORIES
        images.append(observed.run(request).images)
    probes = tuple(probe for name, it in recorders.items() for probe in probes_of(name, it.feeds, plain[name]))
    return FloatOutputs(probes, np.concatenate(images))


def measure_backend(
    bundle: Bundle,
    reference: FloatOutputs,
    evaluation: Evaluation,
    backend: str,
    *,
    threads: int | None = None,
    status: Status,
) -> tuple[list[Measurement], Images]:
    """Measures a bundle on one backend against what the reference did; also returns its images."""
    with latentrt.load(bundle.root, backend=cast("BackendName", backend), threads=threads) as pipe:
        evaluation.open_control(pipe)
        status(f"{backend}: network")
        rows: list[Measurement] = [*network_rows(pipe, reference.probes, evaluation, backend)]
        status(f"{backend}: {len(evaluation.prompts)} images")
        images = np.concatenate([pipe.run(request).images for request in evaluation.requests()])
    rows += image_rows(images, reference.images, case=str(evaluation), backend=backend, limit=evaluation.min_psnr)
    rows += _metric_rows(images, reference.images, evaluation, backend)
    return rows, images


def _metric_rows(images: Images, reference: Images, evaluation: Evaluation, backend: str) -> list[Measurement]:
    if evaluation.metric is None:
        return []
    metric = load_metric(evaluation.metric)
    pair = [scores(metric, each, evaluation.prompts) for each in (reference, images)]
    return metric_rows(evaluation.metric, *pair, backend=backend, drop=evaluation.metric_drop)


def network_rows(
    pipe: Pipeline, probes: Sequence[Probe], evaluation: Evaluation, backend: str
) -> Iterator[Measurement]:
    """SQNR and cosine of each case: their means over the trajectories."""
    ratios: dict[tuple[str, str], list[float]] = {}
    cosines: dict[tuple[str, str], list[float]] = {}
    for probe in probes:
        found = to_host(pipe.engines[probe.component].run(probe.feed)[probe.output])
        key = (probe.component, probe.case)
        ratios.setdefault(key, []).append(signal_to_noise_db(found, probe.reference))
        cosines.setdefault(key, []).append(cosine(found, probe.reference))
    for (component, probed), series in ratios.items():
        case = probed if evaluation.control is None else f"{probed}, control {evaluation.control}"
        yield Measurement(
            subject=f"component {component}",
            case=case,
            backend=backend,
            value=float(np.mean(series)),
            limit=evaluation.min_sqnr,
            unit="dB SQNR",
            higher_is_better=True,
            series=tuple(round(value, 2) for value in series),
        )
        yield Measurement(
            subject=f"component {component}",
            case=f"{case}, worst call",
            backend=backend,
            value=min(cosines[component, probed]),
            limit=None,
            unit="cosine",
            higher_is_better=True,
        )


def image_rows(found: Images, reference: Images, *, case: str, backend: str, limit: float | None) -> list[Measurement]:
    """PSNR and SSIM of images from the same seeds, uint8 [N, H, W, 3]; the median PSNR is judged by `limit` in dB."""
    ratios = psnr_db(found, reference)
    common: dict[str, Any] = {"subject": "images", "backend": backend, "higher_is_better": True}
    return [
        Measurement(
            case=f"{case}, median of {len(found)} seeds",
            value=float(np.median(ratios)),
            limit=limit,
            unit="dB PSNR",
            **common,
        ),
        Measurement(case=f"{case}, worst seed", value=float(ratios.min()), limit=None, unit="dB PSNR", **common),
        Measurement(
            case=f"{case}, median", value=float(np.median(ssim(found, reference))), limit=None, unit="SSIM", **common
        ),
    ]


def apart_rows(rows: Sequence[Measurement]) -> Iterator[Measurement]:
    """How far the backends' SQNR are apart: two that disagree read the file differently, but for what one of them has
    to round where the processor has no int8 products."""
    limit = MAX_APART_DB + (0 if has_int8_products() else HALVED_DB)
    cases: dict[tuple[str, str], list[Measurement]] = {}
    for row in rows:
        if row.unit == "dB SQNR":
            cases.setdefault((row.subject, row.case), []).append(row)
    for (subject, case), group in cases.items():
        if len(group) > 1:
            values = [row.value for row in group]
            yield Measurement(
                subject=subject,
                case=f"{case}, between backends",
                backend=" ".join(row.backend for row in group),
                value=max(values) - min(values),
                limit=limit,
                unit="dB",
            )
