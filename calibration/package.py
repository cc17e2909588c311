"""Float bundle to int8 bundle: collect, choose scales, write, judge; resumable, and never half a bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from latentrt.backends import choose
from latentrt.bundle import Bundle
from latentrt.calibration.collect import STEP, Progress, Recipe, collect
from latentrt.calibration.judge import Exam, Row, judge
from latentrt.calibration.keys import carry_keys
from latentrt.calibration.manifest import INT8, Policy, document, record
from latentrt.calibration.observers import probes
from latentrt.calibration.placement import Operator, operators
from latentrt.calibration.quantize import Scales, quantize
from latentrt.calibration.ranges import choose_ranges
from latentrt.calibration.smooth import smoothable, smoothing_factors
from latentrt.calibration.statistics import Statistics
from latentrt.errors import BundleError, EnvironmentLacks, GateError, RequestError
from latentrt.export.derived import derive_bundle
from latentrt.export.staging import check_target, move_into_place, staging_folder, storage_errors
from latentrt.request import check_size

PARENTS = ("fp32", "fp16")
_MEMORY_FACTOR = 2.5  # of the weights: as stored, as the backend packs them, and activations


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What came of it: the bundle, float and int8 bytes of the quantised components, and the measurements."""

    bundle: Bundle
    bytes_before: int
    bytes_after: int
    rows: tuple[Row, ...]


def calibrate_bundle(
    parent: Bundle,
    output: Path,
    *,
    policy: Policy,
    recipe: Recipe,
    exam: Exam | None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[str, Progress], None] = lambda *_: None,
    status: Callable[[str], None] = lambda _: None,
) -> Calibrated:
    """Writes `parent` with some components in int8 and returns the finished bundle.

    The work is done in `output` + `.part`; a run that was interrupted continues there after the last trajectory.
    A bundle that fails a gate is kept as `output` + `.rejected`.

    Args:
        parent: a float bundle; it is only read.
        output: the new bundle's directory; must not exist unless `overwrite`.
        policy: how.
        recipe: what is run to calibrate.
        exam: what is run to judge; None does not judge.
        progress: called with the name of the pass and how far it is.
        status: called with a line before each other piece of work.

    Raises:
        BundleError: a parent that is quantised or in bf16, another thing at `output`, or values that are not finite.
        RequestError: a component that cannot be quantised.
        EnvironmentLacks: too little memory or disk, or the disk is not writable.
        GateError: the quantised bundle is worse than `exam` allows.
    """
    _check(parent, output, policy, overwrite=overwrite)
    _check_runs(parent, recipe, exam)
    work = staging_folder(output)
    with storage_errors(work):
        work.mkdir(parents=True, exist_ok=True)
        models = {name: ir.load(parent.component(name).graph.path) for name in policy.components}
        found = {name: operators(model) for name, model in models.items()}
        run = partial(_collect, parent, recipe, models, found, work=work, threads=threads, progress=progress)
        counted = run("ranges", divisors={name: {} for name in models})
        scales = _scales(models, found, counted, policy, run)
        del models
        quantised = _derive(parent, work / "bundle", found, scales, policy, recipe, counted, status)
        rows = [] if exam is None else judge(quantised, parent, exam, threads=threads, status=status)
        record(quantised, rows, exam)
        failed = [row for row in rows if not row.passed]
        place = output if not failed else output.with_name(output.name + ".rejected")
        move_into_place(quantised.root, place)
        if not failed:
            shutil.rmtree(work)
    if failed:
        raise GateError(
            f"{failed[0].subject}, {failed[0].case} on {failed[0].backend}: {failed[0].value:.1f} {failed[0].unit}",
            expected=f"{'at least' if failed[0].higher_is_better else 'at most'} {failed[0].limit:g}",
            hint=f"{len(failed)} gates failed; the bundle is kept as {place}, and what was counted in {work}, for "
            "another --alpha or --ranges",
        )
    result = Bundle.open(place)
    before, after = (sum(_bytes(bundle, name) for name in policy.components) for bundle in (parent, result))
    return Calibrated(result, before, after, tuple(rows))


def _check(parent: Bundle, output: Path, policy: Policy, *, overwrite: bool) -> None:
    """Everything that can be known before hours of work."""
    check_target(output, overwrite=overwrite)
    if output.resolve() == parent.root.resolve():
        raise RequestError(f"{output} is the bundle itself", expected="another path", hint="a bundle is never changed")
    able = (STEP, "decoder", *parent.towers)
    for name in policy.components:
        if name not in able:
            raise RequestError(
                f"component '{name}' in int8", expected=f"one of {', '.join(able)}", hint="leave it in float"
            )
        if (precision := parent.component(name).precision) not in PARENTS:
            raise BundleError(
                f"{name} of {parent.root} is {precision}",
                expected=" or ".join(PARENTS),
                hint="calibrate the float32 bundle that it was made from",
            )
    size = sum(entry["bytes"] for entry in parent.manifest["files"].values())
    folder = next(path for path in output.resolve().parents if path.exists())
    if (free := shutil.disk_usage(folder).free) < size:
        raise EnvironmentLacks(
            f"{free / 1e6:.0f} MB are free on the disk of {folder}", expected=f"{size / 1e6:.0f} MB", hint="make room"
        )
    needed = _MEMORY_FACTOR * max(_bytes(parent, name) for name in parent.components)
    if (free := available_memory()) is not None and free < needed:
        raise EnvironmentLacks(
            f"{free / 1e9:.1f} GB of memory are free",
            expected=f"about {needed / 1e9:.1f} GB",
            hint="end other programs",
        )


def _check_runs(parent: Bundle, recipe: Recipe, exam: Exam | None) -> None:
    """Sizes and backends, before the first run and not behind it."""
    for size in (*recipe.sizes, *(() if exam is None else (exam.size,))):
        check_size(size, parent.family)
    for backend in () if exam is None else exam.backends:
        choose(backend)


def available_memory() -> int | None:
    """Bytes that new processes can take, on Linux; None elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


Factors = Mapping[str, Mapping[str, Any]]


def _collect(
    parent: Bundle,
    recipe: Recipe,
    models: Mapping[str, ir.Model],
    found: Mapping[str, Sequence[Operator]],
    name: str,
    *,
    divisors: Factors,
    work: Path,
    threads: int | None,
    progress: Callable[[str, Progress], None],
) -> dict[str, Statistics]:
    """One pass over the prompts; with divisors, only of the tensors that these change."""
    wanted = {}
    for component, model in models.items():
        every = probes(model, found[component], divisors=divisors[component])
        changed = [probe for probe in every if probe.divisor is not None]
        wanted[component] = changed if changed or any(divisors.values()) else every
    return collect(
        parent,
        recipe,
        {component: tensors for component, tensors in wanted.items() if tensors},
        record=work / f"{name}.npz",
        threads=threads,
        progress=partial(progress, name),
    )


def _scales(
    models: Mapping[str, ir.Model],
    found: Mapping[str, Sequence[Operator]],
    counted: Mapping[str, Statistics],
    policy: Policy,
    run: Callable[..., dict[str, Statistics]],
) -> dict[str, Scales]:
    groups = {
        name: {} if policy.alpha is None else smoothable(model, found[name], counted[name].all_maxima())
        for name, model in models.items()
    }
    factors: Factors = {
        name: smoothing_factors(model, groups[name], counted[name].all_maxima(), alpha=policy.alpha)
        if policy.alpha is not None
        else {}
        for name, model in models.items()
    }
    again = run("smoothed", divisors=factors) if any(factors.values()) else {}
    scales = {}
    for name in models:
        ranges = choose_ranges(counted[name], counted[name].tensors, method=policy.ranges)
        if name in again:
            ranges |= choose_ranges(again[name], again[name].tensors, method=policy.ranges)
        folded = frozenset(tensor for tensor, group in groups[name].items() if group.folds)
        scales[name] = Scales(ranges=ranges, factors=factors[name], folded=folded)
    return scales


def _derive(
    parent: Bundle,
    target: Path,
    found: Mapping[str, Sequence[Operator]],
    scales: Mapping[str, Scales],
    policy: Policy,
    recipe: Recipe,
    counted: Mapping[str, Statistics],
    status: Callable[[str], None],
) -> Bundle:
    status("writing")
    text = document(found, scales, policy, recipe, counted)
    return derive_bundle(
        parent,
        target,
        writers={name: partial(_write, parent, name, found[name], scales[name]) for name in policy.components},
        options={"calibration": hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()},
        fields={"calibration": text},
        overwrite=True,
    )


def _write(parent: Bundle, name: str, found: Sequence[Operator], scales: Scales, staging: Path) -> dict[str, Any]:
    """Writes graph, weights and map of keys of one component; returns its row of the manifest."""
    row = parent.manifest["components"][name]
    model = ir.load(parent.root / row["graph"])
    quantize(model, found, scales)
    path = staging / row["graph"]
    weights = path.with_suffix(".weights")
    ir.save(model, path, external_data=weights.name)
    if "keys" in row:
        keys = json.loads((parent.root / row["keys"]).read_text(encoding="utf-8"))
        left = carry_keys(keys, found, scales.factors, model.graph.initializers)
        (staging / row["keys"]).write_text(json.dumps(left, indent=1, sort_keys=True), encoding="utf-8")
    return {
        **row,
        "weights": [weights.relative_to(staging).as_posix()] if weights.exists() else [],
        "precision": INT8,
    }


def _bytes(bundle: Bundle, component: str) -> int:
    row = bundle.manifest["components"][component]
    return sum(bundle.manifest["files"][name]["bytes"] for name in (row["graph"], *row["weights"]))
