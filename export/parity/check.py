"""`latentrt check`: every gate of a bundle against its checkpoint or its float parent, as rows of one table.

Imports no torch: only a reference that is a checkpoint needs it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

import latentrt
from latentrt import Bundle, EnvironmentLacks, Pipeline, RequestError
from latentrt.arrays import to_host
from latentrt.backends import choose, open_engine
from latentrt.bundle import FEATURES, SHALLOW
from latentrt.environment.install import install_command
from latentrt.export.parity.approximation import approximate, controls_of, evaluation_of, examinations
from latentrt.export.parity.cases import SEEDS, Case, CaseTable, alone_and_together
from latentrt.export.parity.components import ComponentRun, compare
from latentrt.export.parity.gates import image_rows, pooled
from latentrt.export.parity.half import COMPONENT_LIMITS_DB, MEDIAN_LIMITS_DB, able, component_ratios, lowest_precision
from latentrt.export.parity.measurement import FirstImages, Measurement, Measurements, Pictures
from latentrt.export.parity.metric import load_metric, metric_rows, scores
from latentrt.export.parity.metrics import worst_psnr_db
from latentrt.export.parity.reference import Reference
from latentrt.names import BackendName, ComputeName, DeviceName
from latentrt.output.result import Images
from latentrt.samplers import sampler_names
from latentrt.samplers.registry import SAMPLERS
from latentrt.text.chunking import tokenize
from latentrt.text.tokenizer import Tokenizer

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


def run_check(
    bundle: Bundle,
    reference: Reference,
    *,
    backends: Sequence[str],
    quick: bool = False,
    samplers: Sequence[str] | None = None,
    metric: str | None = None,
    metric_drop: float | None = None,
    prompts: Sequence[str] | None = None,
    device: str | None = None,
    progress: Progress = lambda _: None,
) -> Measurements:
    """Compares components, whole images and batches with what they should be.

    Args:
        bundle: what is judged. In 16 bit (`latentrt.export.parity.half`), and quantised or with pooled attention
            (`latentrt.export.parity.gates`), it has gates of its own.
        reference: the checkpoint, or the float bundle that it was made from.
        quick: smaller images than the family's native ones alone, and two combinations of size, batch and guidance for
            each sampler instead of eight.
        samplers: names; None is all that the bundle's schedule allows.
        metric: a measure of the user's own, as `load_metric` takes it; compared image by image.
        metric_drop: how much of it the images may lose in the mean; None: reported, not judged.
        prompts: of the images. None: those that such a bundle was judged by when it was made, else general ones
            such as the family's text encoders read.
        device: of the bundle, `cpu` or `cuda`; None is the backends' choice.
        progress: called with a line before each piece of work.

    Raises:
        RequestError: the reference is of another family than the bundle or cuts a prompt, or the metric is none.
        EnvironmentLacks: a backend that is not installed.
    """
    _check_family(bundle, reference)
    backends, coarse = _able(backends, bundle), approximate(bundle, reference)
    if prompts is not None and not coarse and not reference.reads_long:
        _check_lengths(bundle, prompts)
    table = CaseTable(bundle.family, prompts, quick)
    rows = _every_component(bundle, reference, backends, coarse, device, progress)
    if coarse:
        evaluation = evaluation_of(bundle, backends, table, metric=metric, metric_drop=metric_drop)
        whole = examinations(bundle, reference, coarse, evaluation, progress)
        return Measurements((*rows, *whole.rows), whole.pictures)
    with ExitStack() as stack:
        pipes = [(name, stack.enter_context(_load(bundle, name, device=device))) for name in backends]
        if "openvino" in backends:
            pipes += [(name, stack.enter_context(pipe)) for name, pipe in _reduced_precision(bundle)]
        if lowest_precision(bundle) in MEDIAN_LIMITS_DB:
            whole = _many_seeds(bundle, reference, pipes, table, progress)
        else:
            whole = _every_sampler(bundle, reference, pipes, table, samplers, progress)
        rows += whole.rows
        if metric is not None:
            drops = dict.fromkeys(backends, metric_drop)
            case = replace(table.own(images=SEEDS if prompts is None else len(prompts)), seed=0)
            rows += _metric_rows(metric, drops, _painted(case, bundle), reference, pipes, progress)
    return Measurements(tuple(rows), whole.pictures)


def _every_component(
    bundle: Bundle,
    reference: Reference,
    backends: Sequence[str],
    coarse: Collection[str],
    device: str | None,
    progress: Progress,
) -> list[Measurement]:
    """Those that are no approximation, a graph of shallow calls beside its step."""
    rows: list[Measurement] = []
    for name in reference.components:
        if name in bundle.components and name not in (*coarse, *SHALLOW.values()):
            progress(f"component {name}")
            runs = reference.runs(name)
            rows += _components(bundle, name, runs, backends, device)
            if SHALLOW.get(name) in bundle.components:
                progress(f"component {SHALLOW[name]}")
                rows += _shallow_components(bundle, name, runs, backends, device)
    return rows


def _check_family(bundle: Bundle, reference: Reference) -> None:
    if replace(reference.family, defaults=bundle.family.defaults) != bundle.family:  # `export` takes others
        raise RequestError(
            f"{bundle.name} was not made from that: their families differ",
            expected=f"{bundle.family.name} as in the bundle's provenance",
        )
    if reference.pooled and not pooled(bundle):
        raise RequestError(
            f"{bundle.name} against one with pooled attention, which it is without",
            expected="a reference that computes no less",
            hint="compare the other with this one",
        )


def _check_lengths(bundle: Bundle, prompts: Sequence[str]) -> None:
    """Raises RequestError for a prompt of which diffusers leaves out the end."""
    for spec in bundle.family.text_encoders:
        if spec.band or spec.component not in bundle.components:
            continue
        tokenizer = Tokenizer.of(spec, bundle.root)
        for prompt in prompts:
            if tokenize(tokenizer, [prompt]).ids.shape[1] > 1:
                raise RequestError(
                    f"the prompt {prompt!r}, of which diffusers leaves out the end",
                    expected=f"at most {tokenizer.capacity} tokens against a checkpoint",
                    hint="shorten it, or compare with a float bundle",
                )


def _able(backends: Sequence[str], bundle: Bundle) -> Sequence[str]:
    """Those that have kernels for the bundle."""
    if found := able(backends, bundle):
        return found
    raise EnvironmentLacks(
        "onnxruntime runs no bf16 on the CPU",
        expected="another backend",
        hint=f"{install_command('openvino')}, or --backend openvino",
    )


def _painted(case: Case, bundle: Bundle) -> Case:
    """The case with a photo and a mask where the network sees them."""
    return replace(case, painted=bool(bundle.family.extra_channels))


def _many_seeds(
    bundle: Bundle, reference: Reference, pipes: Pipes, table: CaseTable, progress: Progress
) -> Measurements:
    """Of a bundle in 16 bit: medians over many images, on the backends that are judged."""
    limit = MEDIAN_LIMITS_DB[lowest_precision(bundle)]
    limits = dict.fromkeys((name for name, _ in pipes if name in IMAGE_LIMITS_DB), limit)
    rows: list[Measurement] = []
    pictures = None
    for case in table.seeds(reference.comparable(sampler_names(bundle.family.noise)), controls_of(bundle, reference)):
        case = _painted(case, bundle)
        found = _pictures(case, reference, pipes, progress)
        rows += _medians(case, found, limits)
        pictures = found if pictures is None else pictures
    return Measurements(tuple(rows), pictures)


def _every_sampler(
    bundle: Bundle,
    reference: Reference,
    pipes: Pipes,
    table: CaseTable,
    samplers: Sequence[str] | None,
    progress: Progress,
) -> Measurements:
    """Of a float32 bundle: images of every sampler, and those of a batch against each alone."""
    judged = reference.comparable(sampler_names(bundle.family.noise) if samplers is None else samplers)
    wanted = [*table.every(judged), *table.controlled(controls_of(bundle, reference), judged)]
    shown = FirstImages()
    rows = [*_images([_painted(case, bundle) for case in wanted], reference, pipes, shown, progress=progress)]
    progress("batches")
    rows += [_together(name, pipe, table) for name, pipe in pipes if name in IMAGE_LIMITS_DB]
    return Measurements(tuple(rows), shown.pictures())


def _components(
    bundle: Bundle, name: str, runs: Sequence[ComponentRun], backends: Sequence[str], device: str | None
) -> Iterator[Measurement]:
    part = bundle.component(name)
    for backend in backends:
        engines = _engines(bundle, backend)
        if part.precision in COMPONENT_LIMITS_DB:
            yield from component_ratios(part.graph, runs, backend=backend, device=device, cache_dir=engines)
        else:
            yield from compare(name, part.graph, runs, backend=backend, device=device, cache_dir=engines)


def _shallow_components(
    bundle: Bundle, deep: str, runs: Sequence[ComponentRun], backends: Sequence[str], device: str | None
) -> Iterator[Measurement]:
    """A shallow call that reuses what a deep one of the same inputs computed has to give what the deep one gives: that
    of the reference."""
    shallow = SHALLOW[deep]
    takes, gives = bundle.component(shallow).graph.inputs, bundle.component(shallow).graph.outputs
    for backend in backends:
        graph, engines = bundle.component(deep).graph, _engines(bundle, backend)
        with closing(open_engine(graph, backend=backend, device=device, cache_dir=engines)) as engine:
            features = [np.array(to_host(engine.run(run.feed)[FEATURES])) for run in runs]
        fed = [{**run.feed, FEATURES: found} for run, found in zip(runs, features, strict=True)]
        cases = [
            replace(
                run,
                feed={name: value for name, value in feed.items() if name in takes},
                outputs={name: value for name, value in run.outputs.items() if name in gives},
            )
            for run, feed in zip(runs, fed, strict=True)
        ]
        yield from _components(bundle, shallow, cases, [backend], device)


def _load(bundle: Bundle, backend: str, *, compute: str | None = None, device: str | None = None) -> Pipeline:
    names = cast("BackendName", backend), cast("ComputeName | None", compute), cast("DeviceName | None", device)
    return latentrt.load(bundle.root, backend=names[0], compute=names[1], device=names[2])


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
    wanted: Iterable[Case], reference: Reference, pipes: Pipes, shown: FirstImages, *, progress: Progress
) -> Iterator[Measurement]:
    for case in wanted:
        pictures = _pictures(case, reference, pipes, progress)
        shown.add(f"{case.prompts[0]} ({case})", pictures.reference, pictures.found)
        for name, images in pictures.found.items():
            limits = IMAGE_LIMITS_DB.get(name)
            yield Measurement(
                subject="images",
                case=str(case),
                backend=name,
                value=worst_psnr_db(images, pictures.reference),
                limit=None if limits is None else limits[SAMPLERS[case.sampler].stochastic],
                unit="dB PSNR",
                higher_is_better=True,
            )


def _pictures(case: Case, reference: Reference, pipes: Pipes, progress: Progress) -> Pictures:
    progress(f"images {case}")
    found = {name: _made(pipe, case) for name, pipe in pipes}
    return Pictures(case.prompts, _expected(reference, case), found)


def _made(pipe: Pipeline, case: Case) -> Images:
    return np.concatenate([pipe.run(piece.request).images for piece in case.pieces])


def _expected(reference: Reference, case: Case) -> Images:
    return np.concatenate([reference.images(piece) for piece in case.pieces])


def _medians(case: Case, pictures: Pictures, limits: Mapping[str, float | None]) -> Iterator[Measurement]:
    for name, images in pictures.found.items():
        yield from image_rows(images, pictures.reference, case=str(case), backend=name, limit=limits.get(name))


def _together(name: str, pipe: Pipeline, table: CaseTable) -> Measurement:
    return Measurement(
        subject="batches",
        case="alone and in a batch of other prompts and samplers",
        backend=name,
        value=alone_and_together(pipe, table),
        limit=TOGETHER_LIMIT,
        unit="levels of 255",
    )


def _metric_rows(
    metric: str, drops: Mapping[str, float | None], case: Case, reference: Reference, pipes: Pipes, progress: Progress
) -> Iterator[Measurement]:
    """Of one image a prompt."""
    measure = load_metric(metric)
    progress(f"metric on {reference.name}")
    expected = scores(measure, _expected(reference, case), case.prompts)
    for name, pipe in pipes:
        progress(f"metric on {name}")
        found = scores(measure, _made(pipe, case), case.prompts)
        yield from metric_rows(metric, expected, found, backend=name, drop=drops.get(name))
