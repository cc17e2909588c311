"""What one traced module becomes."""

from pathlib import Path

import onnx
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
