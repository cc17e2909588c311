"""Step caching added to a bundle that is there. Needs no torch."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from latentrt.bundle import FEATURES, Bundle
from latentrt.export.bundles.derived import component_files, derive_bundle
from latentrt.export.passes.features import add_features
from latentrt.export.passes.stated import stated
from latentrt.export.staging import ExportProgress


def add_step_cache(
    source: Bundle,
    output: Path,
    *,
    layers: int,
    overwrite: bool = False,
    progress: Callable[[ExportProgress], None] = lambda _: None,
) -> Bundle:
    """Writes `source` with the graphs of shallow calls, and a step that gives what they reuse.

    Args:
        source: in any precision; it is only read.
        layers: as `add_features` takes them. The others: as `derive_bundle` takes them.

    Raises:
        RequestError: more layers than the network has, or `output` is the source.
        BundleError: there is something else at `output`, or a network of another kind.
        EnvironmentLacks: the disk is full or not writable.
    """
    add_features(ir.load(source.component("step").graph.path), layers=layers)  # what is wrong shows before any file
    return derive_bundle(
        source,
        output,
        writers={"step": partial(_write, source, layers)},
        options={"step_cache": layers},
        overwrite=overwrite,
        progress=progress,
    )


def describe_features(model: ir.Model) -> dict[str, Any]:
    """The output `features` of a step, as its row of the manifest has it."""
    output = next(output for output in model.graph.outputs if output.name == FEATURES)
    dims = [dim if isinstance(dim, int) else str(dim.value) for dim in stated(output.shape)]
    return {"dtype": "float32", "dims": dims}


def _write(source: Bundle, layers: int, staging: Path) -> dict[str, Any]:
    """Writes the step's graph, copies its weights and map of keys; returns its row of the manifest."""
    row = source.manifest["components"]["step"]
    for name in component_files(row):
        shutil.copyfile(source.root / name, staging / name)
    model = ir.load(staging / row["graph"])
    add_features(model, layers=layers)
    features = describe_features(model)
    ir.save(model, staging / row["graph"])
    return {**row, "shallow_layers": layers, "outputs": {**row["outputs"], FEATURES: features}}
