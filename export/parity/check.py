"""`latentrt check`: every gate of a bundle against its checkpoint, as rows of one table."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from diffusers import DiffusionPipeline

import latentrt
from latentrt import Bundle, EnvironmentLacks, Pipeline, RequestError
from latentrt.backends import choose
from latentrt.bundle import Component
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.components import ComponentSpec, component_specs
from latentrt.export.family import read_family
from latentrt.export.parity.components import Run, compare, reference_runs
from latentrt.export.parity.half import (
    COMPONENT_LIMITS_DB,
    IMAGES,
    MEDIAN_LIMITS_DB,
    able,
    component_ratios,
    lowest_precision,
    median_psnr_db,
)
from latentrt.export.parity.judged import Judged
from latentrt.export.parity.pipeline import (
    PROMPTS,
    Case,
    alone_and_together,
    cases,
    comparable,
    psnr,
    reference_images,
    reference_pipeline,
)
from latentrt.export.parity.schedulers import REFERENCES
from latentrt.samplers import sampler_names

Metric = Callable[[npt.NDArray[np.uint8], list[str]], float]
Progress = Callable[[str], None]
Pipes = Sequence[tuple[str, Pipeline]]

# dB of the worst image of a batch, by backend: deterministic samplers, stochastic ones.
IMAGE_LIMITS_DB = {
    "onnxruntime": (50.0, 45.0),
    "openvino": (45.0, 45.0),
    "tensorrt": (50.0, 45.0),
    "tensorrt-rtx": (50.0, 45.0),
}
TOGETHER_LIMIT = 1  # levels of 0..255


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Judged):
    """A row of the table."""

    note: str = ""


def run_check(
    bundle: Bundle,
    checkpoint: Checkpoint,
    *,
    backends: Sequence[str],
    quick: bool = False,
    samplers: Sequence[str] | None = None,
    metric: Metric | None = None,
    prompts: Sequence[str] = PROMPTS,
    device: str | None = None,
    progress: Progress = lambda _: None,
) -> list[Row]:
    """Compares components, whole images and batches with torch.

    Args:
        bundle: what is judged. In 16 bit it has gates of its own (`latentrt.export.parity.half`).
        checkpoint: what it was exported from.
        backends: each is judged on its own.
        quick: two combinations of size, batch and guidance for each sampler instead of eight.
        samplers: names; None is all that the bundle's schedule allows.
        metric: a measure of the user's own, (images uint8 [N, H, W, 3], prompts) -> float; reported for torch
            and for each backend on one image of each of `prompts`.
        device: of both sides, `cpu` or `cuda`; None is torch's CPU and the backends' choice.
        progress: called with a line before each piece of work.

    Raises:
        RequestError: the checkpoint is of another family than the bundle.
        EnvironmentLacks: a backend that is not installed.
    """
    family = read_family(checkpoint)
    if replace(family, defaults=bundle.family.defaults) != bundle.family:  # `export` takes others
        raise RequestError(
            f"{checkpoint.source} is not what {bundle.name} was exported from: their families differ",
            expected=f"{bundle.family.name} as in the bundle's provenance",
        )
    if not (backends := able(backends, bundle)):
        raise EnvironmentLacks(
            "onnxruntime runs no bf16 on the CPU",
            expected="another backend",
            hint='pip install "latentrt[openvino]", or --backend openvino',
        )
    rows = [
        row
        for spec in component_specs(checkpoint, family)
        for row in _components(spec, bundle, backends, device, progress)
    ]
    pipes = [(name, _load(bundle, name, device=device)) for name in backends]
    if "openvino" in backends:
        pipes += _reduced_precision(bundle)
    try:
        torch_pipeline = reference_pipeline(checkpoint, device=_torch_device(device))
        judged = comparable(torch_pipeline, sampler_names(family.noise) if samplers is None else samplers)
        if (precision := lowest_precision(bundle)) in MEDIAN_LIMITS_DB:
            limits = dict.fromkeys(backends, MEDIAN_LIMITS_DB[precision])
            rows += _medians(limits, checkpoint, torch_pipeline, pipes, progress)
        else:
            rows += _images(cases(judged, quick=quick), checkpoint, torch_pipeline, pipes, progress=progress)
            progress("batches")
            rows += [_together(name, pipe) for name, pipe in pipes if name in IMAGE_LIMITS_DB]
        if metric is not None:
            rows += _metric_rows(metric, checkpoint, torch_pipeline, pipes, prompts, progress)
    finally:
        for _, pipe in pipes:
            pipe.close()
    return rows


def _components(
    spec: ComponentSpec, bundle: Bundle, backends: Sequence[str], device: str | None, progress: Progress
) -> Iterator[Row]:
    progress(f"component {spec.name}")
    runs = reference_runs(spec.name, spec.build(), spec.inputs, device=_torch_device(device))
    part = bundle.component(spec.name)
    for backend in backends:
        graph, engines = part.graph, _engines(bundle, backend)
        if part.precision in COMPONENT_LIMITS_DB:
            yield from _half_component(part, runs, backend, device, engines)
            continue
        for result in compare(spec.name, graph, runs, backend=backend, device=device, cache_dir=engines):
            yield Row(
                subject=f"component {spec.name}",
                case=result.case,
                backend=backend,
                value=result.worst,
                limit=result.limit,
                unit="share of values off by 1" if spec.name == "decoder" else "relative",
            )


def _half_component(
    part: Component, runs: Sequence[Run], backend: str, device: str | None, engines: Path | None
) -> Iterator[Row]:
    ratios = component_ratios(
        part.graph, runs, precision=part.precision, backend=backend, device=device, cache_dir=engines
    )
    for case, value, limit in ratios:
        yield Row(
            subject=f"component {part.name}",
            case=case,
            backend=backend,
            value=value,
            limit=limit,
            unit="dB PSNR" if part.name == "decoder" else "dB SQNR",
            higher_is_better=True,
        )


def _load(bundle: Bundle, backend: str, *, compute: str | None = None, device: str | None = None) -> Pipeline:
    return latentrt.load(bundle.root, backend=backend, compute=compute, device=device)


def _torch_device(device: str | None) -> str:
    return "cpu" if device is None else device


def _engines(bundle: Bundle, backend: str) -> Path | None:
    """Where a backend of prebuilt engines finds them; the others compile these sizes and keep nothing."""
    return bundle.root / "engines" if choose(backend).prebuilt else None


def _reduced_precision(bundle: Bundle) -> list[tuple[str, Pipeline]]:
    """OpenVINO's bfloat16 execution where the processor has it; its figures are reported, not judged."""
    try:
        return [("openvino bf16", _load(bundle, "openvino", compute="bf16"))]
    except latentrt.EnvironmentLacks:
        return []


def _images(
    wanted: Iterable[Case],
    checkpoint: Checkpoint,
    torch_pipeline: DiffusionPipeline,
    pipes: Pipes,
    *,
    progress: Progress,
) -> Iterator[Row]:
    for case in wanted:
        progress(f"images {case}")
        reference = reference_images(torch_pipeline, checkpoint, case)
        for name, pipe in pipes:
            limits = IMAGE_LIMITS_DB.get(name)
            yield Row(
                subject="images",
                case=str(case),
                backend=name,
                value=psnr(pipe.run(case.request).images, reference),
                limit=None if limits is None else limits[REFERENCES[case.sampler].stochastic],
                unit="dB PSNR",
                higher_is_better=True,
            )


def _medians(
    limits: Mapping[str, float | None],
    checkpoint: Checkpoint,
    torch_pipeline: DiffusionPipeline,
    pipes: Pipes,
    progress: Progress,
) -> Iterator[Row]:
    progress(f"images {IMAGES}")
    reference = reference_images(torch_pipeline, checkpoint, IMAGES)
    for name, pipe in pipes:
        yield Row(
            subject="images",
            case=f"{IMAGES}, median of {len(reference)} seeds",
            backend=name,
            value=median_psnr_db(pipe.run(IMAGES.request).images, reference),
            limit=limits.get(name),
            unit="dB PSNR",
            higher_is_better=True,
        )


def _together(name: str, pipe: Pipeline) -> Row:
    return Row(
        subject="batches",
        case="alone and in a batch of other prompts and samplers",
        backend=name,
        value=alone_and_together(pipe),
        limit=TOGETHER_LIMIT,
        unit="levels of 255",
    )


def _metric_rows(
    metric: Metric,
    checkpoint: Checkpoint,
    torch_pipeline: DiffusionPipeline,
    pipes: Pipes,
    prompts: Sequence[str],
    progress: Progress,
) -> Iterator[Row]:
    sampler = pipes[0][1].bundle.family.defaults.sampler
    makers = {"torch": lambda case: reference_images(torch_pipeline, checkpoint, case)}
    makers |= {name: lambda case, pipe=pipe: pipe.run(case.request).images for name, pipe in pipes}
    for name, make in makers.items():
        progress(f"metric on {name}")
        images = np.concatenate([make(Case(sampler, prompts=(p,), seed=i)) for i, p in enumerate(prompts)])
        yield Row(
            subject="metric",
            case=f"{len(prompts)} prompts, {sampler}",
            backend=name,
            value=float(metric(images, list(prompts))),
            limit=None,
            unit=getattr(metric, "__name__", "value"),
            higher_is_better=True,
        )
