"""A graph with LoRAs in its weights, as a file."""

from pathlib import Path

import ml_dtypes
import onnx_ir as ir

from latentrt.export.passes.storage import load_graph, save_graph
from latentrt.graph import GraphFile
from latentrt.weights.dtypes import BITS, Weight


def write_merged(graph: GraphFile, path: Path) -> dict[str, int]:
    """Writes a graph that has overrides, with their values in its weights, to `path` and a file of weights beside it.

    Returns:
        How many values of weights are stored in each type.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_graph(_merged(graph), path)


def write_widened(graph: GraphFile, path: Path) -> None:
    """As `write_merged`, with every weight in the type that the graph computes with: for a compiler that would count
    the stored types, or keep them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(_merged(graph), path, external_data=path.with_suffix(".weights").name)


def _merged(graph: GraphFile) -> ir.Model:
    model = load_graph(graph.path)
    for name, weight in graph.new_weights():
        model.graph.initializers[name].const_value = _tensor(name, weight)
    return model


def _tensor(name: str, weight: Weight) -> ir.TensorProtocol:
    values = weight.values.view(getattr(ml_dtypes, weight.dtype)) if weight.dtype in BITS else weight.values
    return ir.Tensor(values, name=name)
