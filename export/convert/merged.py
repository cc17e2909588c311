"""A graph with LoRAs in its weights, as a file."""

from pathlib import Path

import ml_dtypes
import onnx_ir as ir

from latentrt.graph import GraphFile
from latentrt.weights.dtypes import BITS, Weight


def write_merged(graph: GraphFile, path: Path) -> None:
    """Writes a graph that has overrides, with their values in its weights, to `path` and a file of weights beside it.

    Raises:
        OSError: they cannot be written.
    """
    model = ir.load(graph.path)
    for name, weight in graph.new_weights():
        model.graph.initializers[name].const_value = _tensor(name, weight)
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=path.with_suffix(".weights").name)


def _tensor(name: str, weight: Weight) -> ir.TensorProtocol:
    values = weight.values.view(getattr(ml_dtypes, weight.dtype)) if weight.dtype in BITS else weight.values
    return ir.Tensor(values, name=name)
