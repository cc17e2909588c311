"""The field `calibration` of a quantised bundle's manifest (docs/bundle.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from latentrt.bundle import MANIFEST, Bundle
from latentrt.calibration.collect import Recipe
from latentrt.calibration.judge import Exam, Row
from latentrt.calibration.placement import Operator
from latentrt.calibration.quantize import Scales
from latentrt.calibration.statistics import Statistics
from latentrt.export.derived import tool_versions
from latentrt.export.staging import write_atomically

INT8 = "int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How scales are chosen.

    Args:
        components: what is quantised: `step`, `decoder` or a text tower.
        ranges: see `choose_ranges`.
        alpha: of SmoothQuant, 0..1; None leaves it out, and one of two passes over the prompts with it.
    """

    components: tuple[str, ...]
    ranges: str
    alpha: float | None


def document(
    found: Mapping[str, Sequence[Operator]],
    scales: Mapping[str, Scales],
    policy: Policy,
    recipe: Recipe,
    counted: Mapping[str, Statistics],
) -> dict[str, Any]:
    """The manifest's field `calibration`, all but the judgement."""
    texts = "\n".join(recipe.prompts).encode()
    return {
        "policy": {"precision": INT8, "ranges": policy.ranges, "alpha": policy.alpha},
        "recipe": {
            **{key: value for key, value in asdict(recipe).items() if key != "prompts"},
            "sizes": [list(size) for size in recipe.sizes],
            "prompts": {"count": len(recipe.prompts), "sha256": hashlib.sha256(texts).hexdigest()},
        },
        "tools": tool_versions(),
        "components": {name: _component(found[name], scales[name], counted[name]) for name in found},
        "judged": [],
    }


def _component(found: Sequence[Operator], scales: Scales, counted: Statistics) -> dict[str, Any]:
    kept: dict[str, list[str]] = {}
    for operator in found:
        if operator.kept is not None:
            kept.setdefault(operator.kept, []).append(operator.name)
    return {
        "quantised": [operator.name for operator in found if operator.kept is None],
        "float": [{"reason": reason, "operators": names} for reason, names in kept.items()],
        "calls": counted.calls.tolist(),
        "tensors": {
            tensor: {
                "range": float(f"{limit:.6g}"),
                "largest": [float(f"{value:.6g}") for value in counted.maxima(tensor)],
                "smooth": None if tensor not in scales.factors else "folded" if tensor in scales.folded else "mul",
            }
            for tensor, limit in scales.ranges.items()
        },
    }


def record(bundle: Bundle, rows: Sequence[Row], exam: Exam | None) -> None:
    """Adds the judgement to the manifest."""
    calibration = dict(bundle.manifest["calibration"])
    calibration["judged"] = [{**asdict(row), "passed": row.passed} for row in rows]
    if exam is not None:
        calibration["exam"] = {
            **{key: value for key, value in asdict(exam).items() if key != "prompts"},
            "prompts": len(exam.prompts),
        }
    write_atomically(bundle.root / MANIFEST, {**bundle.manifest, "calibration": calibration})
