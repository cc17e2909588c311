"""Float bundle to quantised bundle: collect, choose scales, write, judge; resumable, and never half a bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort

from latentrt.backends.cache import graph_bytes
from latentrt.bundle import Bundle
from latentrt.calibration.budget import SearchResult, hold, worst_first
from latentrt.calibration.collect import STEP, CalibrationSettings, CollectionProgress
from latentrt.calibration.evaluation import Evaluator
from latentrt.calibration.keys import carry_keys
from latentrt.calibration.layers import Measure, measure_layers, measure_outputs, short_settings
from latentrt.calibration.limits import check_parent, check_room, check_runs
from latentrt.calibration.manifest import SEARCH, ComponentDraft, Policy, document, record
from latentrt.calibration.placement import Operator, operators
from latentrt.calibration.quantize import Scales, quantize, save
from latentrt.calibration.result_cache import ResultCache
from latentrt.calibration.scaling import ALPHAS, Counter, Scaling
from latentrt.calibration.trial import Trials, scales_digest
from latentrt.errors import GateError
from latentrt.export.bundles.derived import derive_bundle, tool_versions
from latentrt.export.convert.precision import half_writers
from latentrt.export.parity.gates import Evaluation
from latentrt.export.parity.measurement import Measurement, Measurements
from latentrt.export.parity.report import REPORT, render
from latentrt.export.passes.storage import load_graph
from latentrt.export.staging import making, move_into_place, rejected_folder
from latentrt.files.atomic import write_whole


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came of it: the bundle, bytes of the quantised components before, in the types that they were computed in,
    and after, and the measurements."""

    bundle: Bundle
    bytes_before: int
    bytes_after: int
    rows: tuple[Measurement, ...]


def calibrate_bundle(
    parent: Bundle,
    output: Path,
    *,
    policy: Policy,
    settings: CalibrationSettings,
    evaluation: Evaluation | None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[str, CollectionProgress], None] = lambda *_: None,
    status: Callable[[str], None] = lambda _: None,
) -> Calibrated:
    """Writes `parent` with some components quantised and returns the finished bundle.

    The work is done in `output` + `.part`; a run that was interrupted continues there after the last trajectory,
    trial or backend.
    A bundle that fails a gate is kept as `output` + `.rejected`.

    Args:
        parent: a float bundle; it is only read.
        evaluation: what is run to judge; None does not judge.

    Raises:
        BundleError: a parent that is quantised or in bf16, another thing at `output`, or values that are not finite.
        RequestError: a component that cannot be quantised.
        EnvironmentLacks: too little memory or disk, or the disk is not writable.
        GateError: the quantised bundle is worse than `evaluation` allows.
    """
    check_parent(parent, output, policy, overwrite=overwrite)
    check_runs(parent, policy, settings, evaluation)
    check_room(parent, output, policy)
    with making(output, overwrite=overwrite) as work:
        evaluator = None if evaluation is None else _evaluator(parent, policy, evaluation, work, threads, status)
        drafts, text = _drafts(_counter(parent, policy, work, threads, progress), policy, settings, evaluator)
        quantised = _derive(parent, work / "bundle", drafts, policy, text, threads, status)
        measurements = Measurements((), None) if evaluator is None else evaluator.judge(quantised)
        record(quantised, measurements.rows, evaluation)
        title = f"{output.name}, made from {parent.name}"
        page = render(quantised, measurements, title=title, parent=parent)
        write_whole(quantised.root / REPORT, page.encode())
        failed = [row for row in measurements.rows if not row.passed]
        if failed:
            place = rejected_folder(output)
            move_into_place(quantised.root, place)
            raise _failure(failed, drafts, policy, place, work)
        move_into_place(quantised.root, output)
        shutil.rmtree(work)
    result = Bundle.open(output)
    before = sum(graph_bytes(parent.component(name).graph) for name in policy.components)
    after = sum(result.stored_bytes(name) for name in policy.components)
    return Calibrated(result, before, after, measurements.rows)


def _counter(
    parent: Bundle, policy: Policy, work: Path, threads: int | None, progress: Callable[[str, CollectionProgress], None]
) -> Counter:
    models = {name: load_graph(parent.component(name).graph.path) for name in policy.quantised}
    found = {name: operators(model) for name, model in models.items()}
    return Counter(parent=parent, models=models, found=found, work=work, threads=threads, progress=progress)


def _evaluator(
    parent: Bundle,
    policy: Policy,
    evaluation: Evaluation,
    work: Path,
    threads: int | None,
    status: Callable[[str], None],
) -> Evaluator:
    digests = {name: part.graph.digest for name, part in parent.components.items()}
    source = [digests, tool_versions(), ort.__version__, threads]
    return Evaluator(
        parent=parent,
        evaluation=evaluation,
        components=tuple(policy.components),
        cache=ResultCache(work, source=source),
        threads=threads,
        status=status,
    )


def _drafts(
    counter: Counter, policy: Policy, settings: CalibrationSettings, evaluator: Evaluator | None
) -> tuple[dict[str, ComponentDraft], dict[str, Any]]:
    """What each quantised component is to become, and the manifest's account of it."""
    counted = counter.count("ranges", settings, divisors={})
    scaling = Scaling(counter=counter, counted=counted, policy=policy, settings=settings)
    trials = None if evaluator is None else Trials(evaluator=evaluator, folder=counter.work / "trial")
    alpha, tried = policy.alpha, None
    if policy.alpha == SEARCH and trials is not None:
        alpha, tried = _best_alpha(scaling, trials)
    assert not isinstance(alpha, str)
    scales = scaling.scales(alpha)
    measures: Mapping[str, Mapping[str, Measure]] = (
        {} if evaluator is None else _measured(counter, settings, scales, evaluator)
    )
    drafts = {}
    for name, found in counter.found.items():
        measured, settled = measures.get(name, {}), None
        if policy.min_sqnr is not None and trials is not None:
            measured, settled = _settled(name, found, scales[name], measured, policy.min_sqnr, trials)
        drafts[name] = ComponentDraft(
            operators=found if settled is None else settled.operators,
            scales=scales[name],
            counted=counted[name],
            measures=measured,
            settled=settled,
        )
    return drafts, document(drafts, policy, settings, alpha=alpha, tried=tried)


def _best_alpha(scaling: Scaling, trials: Trials) -> tuple[float | None, dict[str, float]]:
    """The strength with the best step, or the best first component where the step stays in float."""
    found = scaling.counter.found
    name = STEP if STEP in found else next(iter(found))
    ratios = {
        alpha: trials.run(name, found[name], scaling.tried(alpha)[name], what=f"alpha {alpha}").sqnr_db
        for alpha in ALPHAS
    }
    best = max(ratios, key=lambda alpha: ratios[alpha])
    return best, {str(alpha).lower(): value for alpha, value in ratios.items()}


def _measured(
    counter: Counter, settings: CalibrationSettings, scales: Mapping[str, Scales], evaluator: Evaluator
) -> dict[str, dict[str, Measure]]:
    evaluation = evaluator.evaluation
    short = short_settings(settings, prompts=evaluation.prompts, seed=evaluation.seed)

    def measure() -> Any:
        found = measure_layers(
            counter.parent,
            short,
            counter.found,
            scales,
            folder=counter.work / "layers",
            threads=counter.threads,
            status=evaluator.status,
        )
        return {name: {layer: asdict(one) for layer, one in layers.items()} for name, layers in found.items()}

    source = [asdict(short), {name: scales_digest(each) for name, each in scales.items()}]
    stored = evaluator.cache.value("layers", measure, source=source)
    return {name: {layer: Measure(**one) for layer, one in layers.items()} for name, layers in stored.items()}


def _settled(
    name: str,
    found: Sequence[Operator],
    scales: Scales,
    measures: Mapping[str, Measure],
    min_sqnr: float,
    trials: Trials,
) -> tuple[Mapping[str, Measure], SearchResult]:
    """The operators that hold the quality, and their measures, with those at the output if any had to return."""
    evaluator = trials.evaluator

    def scan() -> dict[str, float]:
        return measure_outputs(
            evaluator.parent.component(name).graph,
            found,
            scales,
            evaluator.few(name),
            folder=trials.folder,
            threads=evaluator.threads,
            status=evaluator.status,
        )

    order: list[str] = []
    if trials.run(name, found, scales, what="all").sqnr_db < min_sqnr:
        alone = evaluator.cache.value(
            f"alone-{name}", scan, source=[asdict(evaluator.evaluation), scales_digest(scales)]
        )
        measures = {layer: replace(measure, output_sqnr_db=alone.get(layer)) for layer, measure in measures.items()}
        order = worst_first(found, measures)
    settled = hold(
        found, order, min_sqnr=min_sqnr, run=lambda operators, what: trials.run(name, operators, scales, what=what)
    )
    return measures, settled


def _derive(
    parent: Bundle,
    target: Path,
    drafts: Mapping[str, ComponentDraft],
    policy: Policy,
    text: Mapping[str, Any],
    threads: int | None,
    status: Callable[[str], None],
) -> Bundle:
    status("writing")
    converted = {name: value for name, value in policy.converted.items() if value != parent.component(name).precision}
    writers = {name: partial(_write, parent, name, draft) for name, draft in drafts.items()}
    return derive_bundle(
        parent,
        target,
        writers={**half_writers(parent, converted, threads=threads, status=status), **writers},
        options={"calibration": hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()},
        fields={"calibration": text},
        overwrite=True,
    )


def _write(parent: Bundle, name: str, draft: ComponentDraft, staging: Path) -> dict[str, Any]:
    """Writes graph, weights and map of keys of one component; returns its row of the manifest."""
    row = parent.manifest["components"][name]
    model = load_graph(parent.root / row["graph"])
    quantize(model, draft.operators, draft.scales)
    path = staging / row["graph"]
    weights = path.with_suffix(".weights")
    stored = save(model, path)
    if (keys := parent.keys(name)) is not None:
        left = carry_keys(keys, draft.operators, draft.scales, model.graph.initializers)
        (staging / row["keys"]).write_text(json.dumps(left, indent=1, sort_keys=True), encoding="utf-8")
    return {
        **row,
        "weights": [weights.relative_to(staging).as_posix()] if weights.exists() else [],
        "precision": draft.scales.form.name,
        "stored": stored,
    }


def _failure(
    failed: Sequence[Measurement], drafts: Mapping[str, ComponentDraft], policy: Policy, place: Path, work: Path
) -> GateError:
    first = failed[0]
    unheld = [name for name, draft in drafts.items() if draft.settled is not None and not draft.settled.held]
    short = f"; no set of operators of {' and '.join(unheld)} reaches {policy.min_sqnr:g} dB" if unheld else ""
    return GateError(
        f"{first.subject}, {first.case} on {first.backend}: {first.value:.1f} {first.unit}{short}",
        expected=f"{'at least' if first.higher_is_better else 'at most'} {first.limit:g}",
        hint=f"{len(failed)} gates failed; the bundle is kept as {place} with {REPORT}, and what was counted in "
        f"{work}, for another --alpha or --ranges",
    )
