"""What one traced module becomes."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from latentrt.export.graphs.onnx_from_torch import GraphInput, export_graph


class PerBranch(nn.Module):
    """(value [K, B, 3], guidance [K, B]) -> [B, 3]: the batch, found as a quotient."""

    def forward(self, value: Tensor, guidance: Tensor) -> Tensor:
        batch = value.flatten(0, 1).shape[0] // guidance.shape[0]
        return value.new_ones(batch, 3)


def test_axes_of_one_name_are_one_length_to_the_trace(tmp_path: Path):
    inputs = {
        "value": GraphInput(torch.ones(2, 5, 3), ("K", "B", 3)),
        "guidance": GraphInput(torch.ones(2, 5), ("K", "B")),
    }
    module = PerBranch()
    export_graph(module, inputs=inputs, outputs={"ones": ("B", 3)}, path=tmp_path / "g.onnx")
    operations = {node.op_type for node in onnx.load(tmp_path / "g.onnx").graph.node}
    assert "Expand" in operations
    assert operations.isdisjoint({"Div", "Mul"})
    assert not module._forward_pre_hooks


class Ours(nn.Module):
    """Operators that torch has no translation of, and this package does."""

    def forward(self, value: Tensor) -> Tensor:
        value = value.to(torch.float32)
        return torch.rsub(value, 3, alpha=2) * torch.square(2 - value)


class Nobodys(nn.Module):
    """One that torch takes apart before it translates it."""

    def forward(self, value: Tensor) -> Tensor:
        return nn.functional.hardshrink(value.to(torch.float32))


@pytest.mark.parametrize(("module", "again"), [(Ours(), 0), (Nobodys(), 1)])
def test_a_program_is_traced_again_for_operators_without_a_translation(module, again, tmp_path: Path, monkeypatch):
    traces = []
    traced = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram, "run_decompositions", lambda *args: traces.append(args) or traced(*args)
    )
    value, path = torch.tensor([[1, 2, 3], [-4, 5, 0]]), tmp_path / "graph.onnx"
    export_graph(module, inputs={"value": GraphInput(value, ("B", 3))}, outputs={"result": ("B", 3)}, path=path)
    assert len(traces) == again
    (result,) = onnxruntime.InferenceSession(path).run(None, {"value": value.numpy()})
    np.testing.assert_array_equal(result, module(value).numpy())
