"""Float32 bundle to 16-bit bundle, without torch: docs/precision.md."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from latentrt.bundle import Bundle
from latentrt.errors import BundleError, RequestError
from latentrt.export.bundles.derived import Writer, derive_bundle, tool_versions
from latentrt.export.convert.half_policy import RANGE, WEIGHTS, Placement, place
from latentrt.export.convert.overflow_check import CHECKS, measure
from latentrt.export.passes.half import FORMATS, HalfFormat, to_half
from latentrt.export.passes.storage import load_graph, save_graph
from latentrt.export.staging import ExportProgress, finish, finished

FLOAT32 = "fp32"
PRECISIONS = (FLOAT32, *FORMATS)
RANGE_CHECKS = (*CHECKS, "none")
MARGIN = 0.5  # of the format's largest value: a check sees a few prompts, not all
FALLBACK = "bf16"
FALLBACK_SHARE = 0.25  # of a network's nodes: where fp16 is too small for more, the component is bf16
_RANGES = "ranges"

Magnitudes = Mapping[str, Mapping[str, float]]


def convert_bundle(
    source: Bundle,
    output: Path,
    *,
    precision: Mapping[str, str],
    range_check: str = "quick",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Callable[[ExportProgress], None] = lambda _: None,
    status: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Writes `source` in another precision and returns the finished bundle.

    The work is done in `output` + `.part`; a run that was interrupted continues there with what is missing.

    Args:
        source: a bundle whose components to convert are float32. It is only read.
        precision: `fp16` or `bf16` by component; those that are not named or `fp32` are copied. A component of whose
            network more than a quarter is too large for `fp16` becomes `bf16`; `conversion.asked` in its row tells.
        range_check: `quick`, `full` or `none`: how float16's overflow is looked for
            (`latentrt.export.convert.overflow_check`). bfloat16 has float32's range and needs none.
        status: called with a line while the range check runs.

    Raises:
        RequestError: an unknown component, precision or check, or `output` is the source.
        BundleError: there is something else at `output`, or a component is not float32.
        BackendError: the float32 bundle does not run.
        EnvironmentLacks: the disk is full or not writable.
    """
    writers = half_writers(source, precision, range_check=range_check, threads=threads, status=status)
    if not writers:
        raise RequestError("all components stay float32", expected=f"one in {' or '.join(FORMATS)}")
    chosen = {name: precision[name] for name in writers}
    return derive_bundle(
        source,
        output,
        writers=writers,
        options={"precision": chosen, "range_check": range_check},
        overwrite=overwrite,
        progress=progress,
    )


def half_writers(
    source: Bundle,
    precision: Mapping[str, str],
    *,
    range_check: str = "quick",
    threads: int | None = None,
    status: Callable[[str], None] = lambda _: None,
) -> dict[str, Writer]:
    """What writes each component of `source` that is not to stay float32, for `derive_bundle`; see `convert_bundle`."""
    chosen = _checked(source, precision, range_check)

    @cache
    def magnitudes(staging: Path) -> Magnitudes:
        return _magnitudes(source, staging, range_check, threads, status)

    def write(name: str, half: HalfFormat, staging: Path) -> dict[str, Any]:
        checked = range_check in CHECKS and half.name == "fp16"
        found = magnitudes(staging)[name] if checked else None
        return _write(source, name, half, found, range_check, staging)

    return {name: partial(write, name, FORMATS[value]) for name, value in chosen.items()}


def parse_precision(text: str, components: Iterable[str]) -> dict[str, str]:
    """`fp16` for all components, or `step=fp16,decoder=bf16` for some."""
    components = tuple(components)
    if "=" not in text:
        return {name: check_precision(text) for name in components}
    chosen = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        if name not in components:
            raise RequestError(f"component '{name}' in precision '{text}'", expected=f"one of {', '.join(components)}")
        chosen[name] = check_precision(value)
    return chosen


def check_precision(value: str) -> str:
    """`value`, or RequestError if it is no precision."""
    if value not in PRECISIONS:
        raise RequestError(
            f"precision '{value}'",
            expected=f"{', '.join(PRECISIONS)}, for all or by component as in step=fp16,decoder=bf16",
        )
    return value


def check_effort(value: str) -> str:
    """`value`, or RequestError if it names no range check."""
    if value not in RANGE_CHECKS:
        raise RequestError(f"range check '{value}'", expected=", ".join(RANGE_CHECKS))
    return value


def _checked(source: Bundle, precision: Mapping[str, str], range_check: str) -> dict[str, str]:
    """The components to convert, with their format."""
    check_effort(range_check)
    chosen = {name: value for name, value in precision.items() if check_precision(value) != FLOAT32}
    for name in chosen:
        if (found := source.component(name).precision) != FLOAT32:
            raise BundleError(
                f"{name} of {source.root} is {found} already", expected=FLOAT32, hint="convert the float32 bundle"
            )
    return chosen


def _magnitudes(
    source: Bundle, staging: Path, range_check: str, threads: int | None, status: Callable[[str], None]
) -> Magnitudes:
    """Those of an interrupted run, or measured now."""
    key = {
        "components": {name: part.graph.digest for name, part in source.components.items()},
        "range_check": range_check,
        "tools": tool_versions(),
    }
    record = finished(staging, _RANGES, key)
    if record is None:
        found = measure(source, effort=CHECKS[range_check], threads=threads, progress=status)
        record = {"source": key, "magnitudes": found, "files": {}}
        finish(staging, _RANGES, record)
    magnitudes: Magnitudes = record["magnitudes"]
    return magnitudes


def _write(
    source: Bundle, name: str, asked: HalfFormat, found: Mapping[str, float] | None, check: str, staging: Path
) -> dict[str, Any]:
    """Writes graph, weights and map of keys of one component; returns its row."""
    row = source.manifest["components"][name]
    model = load_graph(source.root / row["graph"])
    half, placement = _placed(model, asked, {} if found is None else _beyond(found, asked))
    to_half(model, half, [node for node in model.graph if node.name in placement.half])
    path = staging / row["graph"]
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = path.with_suffix(".weights")
    stored = save_graph(model, path)
    if (keys := source.keys(name)) is not None:
        _write_keys(keys, staging / row["keys"], model, half)
    return {
        **row,
        "weights": [weights.relative_to(staging).as_posix()] if weights.exists() else [],
        "precision": half.name,
        "stored": stored,
        "conversion": {
            "asked": asked.name,
            "nodes": len(placement.half),
            "float32": placement.by_reason(),
            "range": None if found is None else _range_row(found, placement, asked, check),
        },
    }


def _placed(model: ir.Model, asked: HalfFormat, beyond: Collection[str]) -> tuple[HalfFormat, Placement]:
    """The format, and what is computed in it: bf16, with float32's range, where fp16 is too small for much of the
    network, which would be float32 then and gain little."""
    placement = place(model, asked, beyond=beyond)
    if placement.share(RANGE, WEIGHTS) <= FALLBACK_SHARE:
        return asked, placement
    return FORMATS[FALLBACK], place(model, FORMATS[FALLBACK])


def _write_keys(keys: Mapping[str, Mapping[str, Any]], target: Path, model: ir.Model, half: HalfFormat) -> None:
    """A weight that is there in both types has its checkpoint tensor twice."""
    twins = {f"{name}.{half.name}": entry for name, entry in keys.items()}
    both = {**keys, **{name: entry for name, entry in twins.items() if name in model.graph.initializers}}
    target.write_text(json.dumps(both, indent=1, sort_keys=True), encoding="utf-8")


def _beyond(found: Mapping[str, float], half: HalfFormat) -> dict[str, float]:
    return {name: float(f"{size:.6g}") for name, size in found.items() if size > MARGIN * half.largest}


def _range_row(found: Mapping[str, float], placement: Placement, half: HalfFormat, check: str) -> dict[str, Any]:
    """The largest magnitude in 16 bit, and the nodes that are too large for the format that was asked for."""
    node = max(placement.half, key=lambda name: (found[name], name), default=None)
    return {
        "check": check,
        "limit": MARGIN * half.largest,
        "largest": 0.0 if node is None else float(f"{found[node]:.6g}"),
        "node": node,
        "beyond": _beyond(found, half),
    }
