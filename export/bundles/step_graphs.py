"""The graphs that are made of the step's own, on its weights: with residuals, and of shallow calls. Needs no torch."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import onnx_ir as ir

from latentrt.bundle import CONTROLNET, FEATURES, SHALLOW, STEP_CONTROL
from latentrt.export.bundles.step_control import step_control_record
from latentrt.export.passes.features import shallow
from latentrt.export.passes.pooling import pooled_attentions
from latentrt.export.passes.stated import stated
from latentrt.export.passes.storage import stored_values
from latentrt.export.staging import describe_files

MADE_OF_STEP = frozenset({STEP_CONTROL, *SHALLOW.values()})
"""Components that no writer makes: they follow from the others."""


def step_graph_records(staging: Path, records: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Writes `step-control` where there are ControlNets, and the shallow graph of each step that gives features.

    Returns:
        Their records, by component.

    Raises:
        BundleError: a network that no ControlNet is known for.
    """
    steps = {name: record for name, record in records.items() if name == "step"}
    found: dict[str, dict[str, Any]] = {}
    if any(name.startswith(CONTROLNET) for name in records):
        steps[STEP_CONTROL] = found[STEP_CONTROL] = step_control_record(staging, records)
    for name, record in steps.items():
        if FEATURES in record["row"]["outputs"]:
            found[SHALLOW[name]] = _shallow_record(SHALLOW[name], record, staging)
    return found


def _shallow_record(name: str, deep: Mapping[str, Any], staging: Path) -> dict[str, Any]:
    row, graph = deep["row"], f"{name}.onnx"
    model = ir.load(staging / row["graph"])
    features = row["outputs"][FEATURES]
    shallow(model)
    ir.save(model, staging / graph)
    known = {**row["inputs"], FEATURES: features}
    weights = json.loads((staging / row["keys"]).read_text()).keys() if "keys" in row else ()
    held = [value for key, value in model.graph.initializers.items() if key in weights]
    return {
        "row": {
            **{name: value for name, value in row.items() if name != "pooled_attention"},
            "graph": graph,
            **({"stored": stored_values(model)} if "stored" in row else {}),
            "parameters": sum(prod(stated(value.shape).numpy()) for value in held),
            "inputs": {given: known[given] for given in (stated(value.name) for value in model.graph.inputs)},
            "outputs": {given: row["outputs"][given] for given in ("next_state", "denoised")},
            "conversion": None,
            **({"pooled_attention": pooled} if (pooled := pooled_attentions(model)) else {}),
        },
        "files": {**deep["files"], **describe_files(staging, [graph])},
    }
