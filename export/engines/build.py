"""A bundle's graphs to engines: what is missing is built, and each engine counts once its record is written."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from pathlib import Path

from latentrt.backends.tensorrt.records import PLAN, RECORD, EngineRecord, Profile, built_engines, engine_key
from latentrt.bundle import Bundle, Component
from latentrt.concurrency.locks import lock_target
from latentrt.errors import BundleError
from latentrt.export.engines.compiler import GraphSummary, ParsedGraph, PlanFile, build_plan, parse
from latentrt.export.engines.folder import chosen_components
from latentrt.export.engines.ranges import Ranges, profile
from latentrt.export.engines.targets import (
    Target,
    Unsupported,
    asked_targets,
    default_targets,
    lacks,
    present_target,
    refuse_unfit,
)
from latentrt.export.engines.variants import Toolkit, open_toolkit, variant
from latentrt.files.atomic import remove_parts, storage_errors, written_beside
from latentrt.lora import Lora, merge
from latentrt.weights.dtypes import BFLOAT16
from latentrt.weights.onnx_initializers import read_initializers

_ROOM = "room for the engines, each about the size of its graph's weights"
_AGAIN = "make room and run the same command again: it goes on with the engines that are missing"
RECIPE = 1  # raised when the same graph and options give another plan


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """One engine: at work (`seconds` None) in a phase of the compiler, done, or found done (`reused`)."""

    component: str
    _: KW_ONLY
    gpus: str
    position: int
    count: int
    phase: str = ""
    seconds: float | None = None
    bytes: int = 0
    reused: bool = False


@dataclass(frozen=True, slots=True)
class FinishedEngine:
    """A finished engine: its record, its folder, and whether an earlier run had built it."""

    record: EngineRecord
    _: KW_ONLY
    folder: Path
    reused: bool


@dataclass(frozen=True, slots=True)
class _Job:
    component: Component
    target: Target
    profile: Profile
    options: Mapping[str, str]
    folder: Path


def build_engines(
    bundle: Bundle,
    *,
    backend: str,
    folder: Path,
    ranges: Ranges,
    gpus: Sequence[str] | None = None,
    components: Sequence[str] | None = None,
    lora: Sequence[Lora] = (),
    weight_streaming: bool = False,
    progress: Callable[[BuildProgress], None] = lambda _: None,
) -> list[FinishedEngine]:
    """Builds the engines that are missing in `folder`, and returns all that were asked for.

    Args:
        backend: `tensorrt-rtx`, which needs no GPU, or `tensorrt`, which builds for the one that is present.
        folder: where engines are kept, `engines` in the bundle or another.
        ranges: the requests that they are to serve.
        gpus: architectures such as `sm89`; None is sm80 and later in one engine, and sm75 in another if
            it has all that the graphs contain.
        lora: what is in the weights of the engines; those that it does not change are the bundle's own.
        weight_streaming: lets the runtime keep part of the weights in host memory.
        progress: called at the beginning, at each phase (from another thread) and at the end of each engine.

    Raises:
        RequestError: unknown names, GPUs that lack what the graphs contain, or a LoRA that is not for this bundle.
        BundleError: a graph that is not what the manifest says.
        EnvironmentLacks: no TensorRT, no GPU where one is needed, or no room to write.
        InUseError: another process builds one of them.
        BackendError: TensorRT failed on a graph.
    """
    kit = open_toolkit(variant(backend))
    chosen = chosen_components(bundle, components)
    targets = _targets(kit, chosen, gpus=gpus, folder=folder)  # a LoRA changes values, and no type
    merged = merge(bundle, lora).graphs
    chosen = [replace(part, graph=merged.get(part.name, part.graph)) for part in chosen]
    lengths = ranges.lengths(bundle.family)
    streaming = {"weight_streaming": "on"} if weight_streaming else {}
    jobs = []
    for target in targets:
        for component in chosen:
            options = {**ranges.options(component), **streaming}
            shapes = profile(component, lengths)
            key = engine_key(
                component.graph,
                variant=kit.variant.name,
                version=kit.version,
                gpus=target.gpus,
                profile=shapes,
                options={"recipe": RECIPE, **options},
            )
            options |= _lora_options(bundle, component)  # in words what the graph's digest has in the key
            jobs.append(_Job(component, target, shapes, options, folder / kit.variant.name / key))
    return [_run(kit, job, position, len(jobs), progress) for position, job in enumerate(jobs)]


def _lora_options(bundle: Bundle, component: Component) -> dict[str, str]:
    """What the record of an engine says of the LoRAs in it, and of which graph it is without them."""
    if not component.graph.loras:
        return {}
    names = ", ".join(Path(lora).name for lora in component.graph.loras)
    return {"lora": names, "without_lora": str(bundle.component(component.name).graph.digest)}


def _targets(
    kit: Toolkit, components: Sequence[Component], *, gpus: Sequence[str] | None, folder: Path
) -> tuple[Target, ...]:
    if not kit.variant.capabilities:
        targets: tuple[Target, ...] = (present_target(kit.variant, gpus),)
    elif gpus is not None:
        targets = asked_targets(gpus, kit.variant)
    contents = {component.name: _contents(kit, component, folder) for component in components}
    if kit.variant.capabilities and gpus is None:
        return default_targets(contents)
    refuse_unfit(targets, contents, precision="/".join(sorted({component.precision for component in components})))
    return targets


def _contents(kit: Toolkit, component: Component, folder: Path) -> list[Unsupported]:
    """What a graph contains that not every GPU has, from the record of an engine of it if there is one. Matrix products
    are missing from the compiler that works ahead of time; of the other one nothing is known."""
    for built in built_engines(folder, kit.variant.name):
        record = built.record
        if (record.component, record.graph, record.version) == (component.name, component.graph.digest, kit.version):
            return lacks(record.types, record.products if kit.variant.capabilities else ())
    with storage_errors(folder, room=_ROOM, again=_AGAIN):
        survey = _parse(kit, component, folder).survey
    return lacks(survey.types, survey.products if kit.variant.capabilities else ())


def _run(
    kit: Toolkit, job: _Job, position: int, count: int, progress: Callable[[BuildProgress], None]
) -> FinishedEngine:
    event = partial(BuildProgress, job.component.name, gpus=str(job.target), position=position, count=count)
    record, reused = _finished(job.folder), True
    if record is None:
        with lock_target(job.folder), storage_errors(job.folder, room=_ROOM, again=_AGAIN):
            record = _finished(job.folder)  # meanwhile, by another process
            if record is None:
                progress(event())
                reused = False
                record = _build(
                    kit, job, report=lambda name, *step: progress(event(phase=f"{name} {step[0]}/{step[1]}"))
                )
    progress(event(seconds=0.0 if reused else record.seconds, bytes=record.plan_bytes, reused=reused))
    return FinishedEngine(record, folder=job.folder, reused=reused)


def _build(kit: Toolkit, job: _Job, *, report: Callable[[str, int, int], None]) -> EngineRecord:
    began = time.perf_counter()
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / RECORD).unlink(missing_ok=True)  # of a plan that is gone or damaged
    remove_parts(job.folder)
    parsed = _parse(kit, job.component, job.folder)
    with written_beside(job.folder / PLAN, durable=True) as part:
        plan = build_plan(
            parsed,
            target=job.target,
            profile=job.profile,
            weight_streaming="weight_streaming" in job.options,
            timing_cache=None if kit.variant.capabilities else job.folder.parent / "timing.cache",
            path=part,
            report=report,
        )
        record = _record(kit, job, parsed, plan, seconds=time.perf_counter() - began)
    with written_beside(job.folder / RECORD, durable=True) as note:
        note.write_text(record.to_json(), encoding="utf-8")
    return record


def _parse(kit: Toolkit, component: Component, folder: Path) -> ParsedGraph:
    """The component as TensorRT reads it. One with LoRAs is written to `folder` for that, and so is one with weights
    stored in bfloat16: not every GPU has that type, and the network would be said to contain it."""
    stored = read_initializers(component.graph.path).values()
    if not component.graph.overrides and all(place.widened is None or place.dtype != BFLOAT16 for place in stored):
        return parse(kit, component)
    from latentrt.export.convert.merged import write_widened

    with tempfile.TemporaryDirectory(prefix=".latentrt-", suffix=".tmp", dir=folder) as part:
        path = Path(part) / component.graph.path.name
        write_widened(component.graph, path)
        return parse(kit, replace(component, graph=replace(component.graph, path=path)))


def _record(kit: Toolkit, job: _Job, parsed: ParsedGraph, plan: PlanFile, *, seconds: float) -> EngineRecord:
    survey: GraphSummary = parsed.survey
    return EngineRecord(
        component=job.component.name,
        graph=str(job.component.graph.digest),
        variant=kit.variant.name,
        version=kit.version,
        gpus=job.target.gpus,
        precision=job.component.precision,
        options=job.options,
        profile=job.profile,
        plan_bytes=plan.bytes,
        plan_sha256=plan.sha256,
        weights_bytes=plan.weights_bytes,
        activation_bytes=plan.activation_bytes,
        layers=survey.layers,
        types=survey.types,
        products=survey.products,
        io=survey.io,
        seconds=round(seconds, 3),
    )


def _finished(folder: Path) -> EngineRecord | None:
    """The record of an engine that is there in full."""
    try:
        record = EngineRecord.read(folder / RECORD)
        return record if (folder / PLAN).stat().st_size == record.plan_bytes else None
    except (OSError, BundleError):
        return None
