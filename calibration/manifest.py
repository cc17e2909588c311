"""The field `calibration` of a quantised bundle's manifest (docs/bundle.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from latentrt.bundle import MANIFEST, Bundle
from latentrt.calibration.budget import SearchResult
from latentrt.calibration.collect import CalibrationSettings
from latentrt.calibration.formats import FORMATS, Format
from latentrt.calibration.layers import Measures
from latentrt.calibration.placement import Operator
from latentrt.calibration.quantize import Scales
from latentrt.calibration.statistics import Statistics
from latentrt.export.bundles.derived import tool_versions
from latentrt.export.parity.gates import Evaluation, judgement
from latentrt.export.parity.measurement import Measurement
from latentrt.export.staging import write_atomically

SEARCH = "search"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is written in which precision, and how scales are chosen.

    Args:
        components: precision by component: `int8` or `fp8` are calibrated, `fp16` or `bf16` are converted.
        ranges: see `choose_ranges`.
        alpha: of SmoothQuant, 0..1; `search` tries a few; None leaves it out, and one of two passes over the prompts.
        min_sqnr: dB for which operators return to float until each component has them; None: none does.
    """

    components: Mapping[str, str]
    ranges: str
    alpha: float | str | None
    min_sqnr: float | None = None

    @property
    def quantised(self) -> dict[str, Format]:
        """The components that are calibrated, with their format."""
        return {name: FORMATS[value] for name, value in self.components.items() if value in FORMATS}

    @property
    def converted(self) -> dict[str, str]:
        """The components that are converted to 16 bit, with their precision."""
        return {name: value for name, value in self.components.items() if value not in FORMATS}


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentDraft:
    """What one component is to become.

    Args:
        operators: all of them; those that stay in float with the reason.
        counted: what the scales come from.
        measures: of every operator; empty if none was measured.
        settled: of a search that returned operators to float; None: there was none.
    """

    operators: Sequence[Operator]
    scales: Scales
    counted: Statistics
    measures: Measures = field(default_factory=dict)
    settled: SearchResult | None = None


def document(
    drafts: Mapping[str, ComponentDraft],
    policy: Policy,
    settings: CalibrationSettings,
    *,
    alpha: float | None,
    tried: Mapping[str, float] | None,
) -> dict[str, Any]:
    """The manifest's field `calibration`, all but the judgement.

    Args:
        tried: dB by strength where it was searched for.
    """
    texts = "\n".join(settings.prompts).encode()
    return {
        "policy": {
            "precision": dict(policy.components),
            "ranges": policy.ranges,
            "alpha": alpha,
            "alphas_tried": None if tried is None else {name: _short(value) for name, value in tried.items()},
            "min_sqnr": policy.min_sqnr,
        },
        "recipe": {
            **{key: value for key, value in asdict(settings).items() if key != "prompts"},
            "sizes": [list(size) for size in settings.sizes],
            "prompts": {"count": len(settings.prompts), "sha256": hashlib.sha256(texts).hexdigest()},
        },
        "tools": tool_versions(),
        "components": {name: _component(draft) for name, draft in drafts.items()},
        "judged": [],
    }


def _component(draft: ComponentDraft) -> dict[str, Any]:
    kept: dict[str, list[str]] = {}
    for operator in draft.operators:
        if operator.float_reason is not None:
            kept.setdefault(operator.float_reason, []).append(operator.name)
    scales, counted = draft.scales, draft.counted
    used = {operator.activation for operator in draft.operators if operator.float_reason is None}
    readers = {operator.activation: operator.name for operator in reversed(draft.operators)}
    return {
        "quantised": [operator.name for operator in draft.operators if operator.float_reason is None],
        "float": [{"reason": reason, "operators": names} for reason, names in kept.items()],
        "calls": counted.calls.tolist(),
        "tensors": {
            tensor: {
                "layer": readers[tensor],
                "range": _short(limit),
                "largest": [_short(value) for value in counted.maxima(tensor)],
                "smooth": None if tensor not in scales.factors else "folded" if tensor in scales.folded else "mul",
            }
            for tensor, limit in scales.ranges.items()
            if tensor in used
        },
        "layers": [_layer(operator, draft) for operator in draft.operators],
        "budget": None if draft.settled is None else _budget(draft.settled, draft.measures),
    }


def _layer(operator: Operator, draft: ComponentDraft) -> dict[str, Any]:
    measure = draft.measures.get(operator.name)
    sqnr = None if measure is None else measure.sqnr_db
    return {
        "name": operator.name,
        "op": operator.kind,
        "weight": operator.weight,
        "parameters": operator.size,
        "work_macs": None if measure is None else measure.work_macs,
        "sqnr_db": None if sqnr is None else round(sqnr, 2),
        "output_sqnr_db": None
        if measure is None or measure.output_sqnr_db is None
        else round(measure.output_sqnr_db, 2),
        "precision": draft.scales.form.name if operator.float_reason is None else "float",
        "reason": operator.float_reason,
    }


def _budget(settled: SearchResult, measures: Measures) -> dict[str, Any]:
    """What a search returned to float, and what that costs."""
    work = sum(measure.work_macs for measure in measures.values())
    returned = sum(measures[name].work_macs for name in settled.returned)
    return {
        "returned": list(settled.returned),
        "held": settled.held,
        "sqnr_db": {"before": _short(settled.before.sqnr_db), "after": _short(settled.after.sqnr_db)},
        "bytes": {"before": settled.before.graph_bytes, "after": settled.after.graph_bytes},
        "work_returned": _short(returned / max(1, work)),
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def record(bundle: Bundle, rows: Sequence[Measurement], evaluation: Evaluation | None) -> None:
    """Adds the judgement to the manifest."""
    calibration = {**bundle.section("calibration"), **judgement(rows, evaluation)}
    write_atomically(bundle.root / MANIFEST, {**bundle.manifest, "calibration": calibration})
