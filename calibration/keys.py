"""The map from initializers to checkpoint tensors (`*.keys.json`), carried over to a graph whose weights were rounded.

A rounded or smoothed weight keeps its checkpoint's key, with what is needed to change it by a LoRA and round it again:
docs/bundle.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from latentrt.calibration.placement import Operator
from latentrt.calibration.quantize import Scales

SMOOTHED = "smoothed"

Keys = Mapping[str, Mapping[str, Any]]


def carry_keys(
    keys: Keys, found: Sequence[Operator], scales: Scales, initializers: Collection[str]
) -> dict[str, Mapping[str, Any]]:
    """The entries of all weights that are in the new graph."""
    carried = {name: entry for name, entry in keys.items() if name in initializers}
    return carried | dict(_changed(keys, found, scales, initializers))


def _changed(
    keys: Keys, found: Sequence[Operator], scales: Scales, initializers: Collection[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for operator in found:
        if operator.weight not in keys:
            continue
        entry = {**keys[operator.weight], "axis": operator.out_axis, "factors": None}
        if operator.activation in scales.factors:
            entry["factors"] = [float(f"{factor:.9g}") for factor in scales.factors[operator.activation]]
        if (name := f"{operator.weight}.{scales.form.name}") in initializers:
            yield name, {**entry, "scale": f"{operator.weight}.scale"}
        if (name := f"{operator.weight}.{SMOOTHED}") in initializers:
            yield name, {**entry, "scale": None}
