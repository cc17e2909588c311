"""The map from initializers to checkpoint tensors (`*.keys.json`), carried over to a graph whose weights were rounded.

A rounded or smoothed weight keeps its checkpoint's key, with what is needed to change it by a LoRA and round it again:
docs/bundle.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from latentrt.calibration.placement import Operator
from latentrt.calibration.smooth import FloatArray

ROUNDED, SMOOTHED = "int8", "smoothed"

Keys = Mapping[str, Mapping[str, Any]]


def carry_keys(
    keys: Keys, found: Sequence[Operator], factors: Mapping[str, FloatArray], initializers: Collection[str]
) -> dict[str, Mapping[str, Any]]:
    """The entries of all weights that are in the new graph.

    Args:
        keys: of the float graph.
        found: its operators.
        factors: by tensor, what its channels were divided by, and the weights that read them multiplied.
        initializers: names in the new graph.
    """
    carried = {name: entry for name, entry in keys.items() if name in initializers}
    return carried | dict(_changed(keys, found, factors, initializers))


def _changed(
    keys: Keys, found: Sequence[Operator], factors: Mapping[str, FloatArray], initializers: Collection[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for operator in found:
        if operator.weight not in keys:
            continue
        entry = {**keys[operator.weight], "axis": operator.out_axis, "factors": None}
        if operator.activation in factors:
            entry["factors"] = [float(f"{factor:.9g}") for factor in factors[operator.activation]]
        if (name := f"{operator.weight}.{ROUNDED}") in initializers:
            yield name, {**entry, "scale": f"{operator.weight}.scale"}
        if (name := f"{operator.weight}.{SMOOTHED}") in initializers:
            yield name, {**entry, "scale": None}
