"""`step-control`: the step's own graph and weights with inputs for residuals. Needs no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from latentrt.bundle import STEP_CONTROL
from latentrt.errors import CheckpointError
from latentrt.export.passes.features import gives_features, hand_on, shallow_inputs
from latentrt.export.passes.residuals import Dims, add_step_residuals
from latentrt.export.staging import describe_files

MADE = "residuals_made"
"""Field of a ControlNet's row of the manifest: how many residuals it makes, if blocks of a transformer share them."""


def step_control_record(staging: Path, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Writes `step-control.onnx` beside the step's graph, whose weights it names as its own. Residuals that shallow
    calls need are outputs too, where there are such calls.

    Returns:
        The record of `step-control`.

    Raises:
        BundleError: a network that no ControlNet is known for.
    """
    step, graph = records["step"], f"{STEP_CONTROL}.onnx"
    model = ir.load(staging / step["row"]["graph"])
    residuals = add_step_residuals(model, made=residuals_made({name: each["row"] for name, each in records.items()}))
    added = {f"residual_{i}": {"dtype": "float32", "dims": list(dims)} for i, dims in enumerate(residuals)}
    handed = [name for name in shallow_inputs(model) if name in added] if gives_features(model) else []
    hand_on(model, handed)
    ir.save(model, staging / graph)
    row = {
        **step["row"],
        "graph": graph,
        "inputs": {**step["row"]["inputs"], **added},
        "outputs": {**step["row"]["outputs"], **{f"next_{name}": added[name] for name in handed}},
    }
    return {"row": row, "files": {**step["files"], **describe_files(staging, [graph])}}


def residuals_made(rows: Mapping[str, Mapping[str, Any]]) -> int | None:
    """How many residuals the ControlNets among these components make; None where each goes to one place."""
    numbers = {name: row[MADE] for name, row in rows.items() if row.get(MADE) is not None}
    if len(set(numbers.values())) > 1:
        raise CheckpointError(
            "ControlNets with other numbers of layers: " + ", ".join(f"{name} {n}" for name, n in numbers.items()),
            expected="one number in all of a bundle",
            hint="make a bundle for each number",
        )
    return next(iter(numbers.values()), None)


def step_residuals(step: Path) -> list[Dims]:
    """Axes of the residuals that the step in a file would take, one for each place."""
    return add_step_residuals(ir.load(step))
