"""`step-control`: the step's own graph and weights with inputs for residuals. Needs no torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from latentrt.bundle import STEP_CONTROL
from latentrt.export.passes.residuals import Dims, add_step_residuals
from latentrt.export.staging import describe_files


def step_control_record(staging: Path, step: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `step-control.onnx` beside the step's graph, whose weights it names as its own.

    Args:
        staging: the folder of the bundle in the making.
        step: the record of the step that is there, with `row` and `files`.

    Returns:
        The record of `step-control`.

    Raises:
        BundleError: a network without skip connections.
    """
    graph = f"{STEP_CONTROL}.onnx"
    model = ir.load(staging / step["row"]["graph"])
    residuals = add_step_residuals(model)
    ir.save(model, staging / graph)
    added = {f"residual_{i}": {"dtype": "float32", "dims": list(dims)} for i, dims in enumerate(residuals)}
    row = {**step["row"], "graph": graph, "inputs": {**step["row"]["inputs"], **added}}
    return {"row": row, "files": {**step["files"], **describe_files(staging, [graph])}}


def step_residuals(step: Path) -> list[Dims]:
    """Axes of the residuals that the step in a file would take.

    Raises:
        BundleError: as `step_control_record`.
    """
    return add_step_residuals(ir.load(step))
