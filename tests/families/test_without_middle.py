"""Residuals that are added to an exported U-Net, against what diffusers makes of the same."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from diffusers import UNet2DConditionModel

from latentrt.export.graphs.modules.unet import UNet
from latentrt.export.graphs.onnx_from_torch import GraphInput, export_graph
from latentrt.export.passes.residuals import add_step_residuals

pytestmark = pytest.mark.families
LIMIT = 1e-4  # of the largest value


@pytest.mark.compatibility(
    kind="ControlNet", what="for a U-Net without a middle block", recognised="mid_block_type", outcome="works"
)
def test_a_unet_without_a_middle_block_takes_that_of_the_middle_too(tmp_path: Path):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type=None,
        layers_per_block=1,
        cross_attention_dim=12,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()
    values = {"sample": torch.randn(2, 4, 10, 14), "timestep": torch.tensor([500.0, 20.0])}
    values["context"] = torch.randn(2, 5, 12)
    dims = {"sample": ("B", 4, "h", "w"), "timestep": ("B",), "context": ("B", "L", 12)}
    export_graph(
        UNet(unet),
        inputs={name: GraphInput(value, dims[name]) for name, value in values.items()},
        outputs={"prediction": ("B", 4, "h", "w")},
        path=tmp_path / "unet.onnx",
        prefix="unet.",
    )
    model = ir.load(tmp_path / "unet.onnx")
    sizes = {"K": 1, "B": 2, "h": 10, "w": 14, "h2": 5, "w2": 7}
    shapes = [[sizes.get(str(axis), axis) for axis in axes] for axes in add_step_residuals(model)]
    ir.save(model, tmp_path / "controlled.onnx")
    residuals = [torch.randn(*(int(size) for size in shape)) for shape in shapes]

    flat = [residual.flatten(0, 1) for residual in residuals]
    with torch.no_grad():
        expected, alone = (
            unet(values["sample"], values["timestep"], values["context"], **added).sample.numpy()
            for added in (
                {"down_block_additional_residuals": flat[:-1], "mid_block_additional_residual": flat[-1]},
                {"down_block_additional_residuals": flat[:-1], "mid_block_additional_residual": 0 * flat[-1]},
            )
        )
    feed = {name: value.numpy() for name, value in values.items()}
    feed |= {f"residual_{number}": value.numpy() for number, value in enumerate(residuals)}
    (found,) = ort.InferenceSession(tmp_path / "controlled.onnx").run(None, feed)
    largest = np.abs(expected).max()
    assert np.abs(found - expected).max() <= LIMIT * largest
    assert np.abs(alone - expected).max() >= 0.02 * largest
