"""The conditional U-Net of Stable Diffusion, traced for every size and not only for multiples of 64 px."""

from diffusers import UNet2DConditionModel
from torch import Tensor, nn


class UNet(nn.Module):
    """(sample [N, C, h, w], timestep [N], context [N, L, D]) -> [N, C, h, w].

    Follows `UNet2DConditionModel.forward` (diffusers, models/unets/unet_2d_condition.py) but always hands each
    up block the size of the residual that it joins: upstream decides that from the traced size, which would
    bind the graph to multiples of the network's whole downsampling.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        unet = self.unet
        embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))

        x = unet.conv_in(sample)
        residuals = [x]
        for block in unet.down_blocks:
            x, added = block(hidden_states=x, temb=embedding, **_cross(block, context))
            residuals += added

        x = unet.mid_block(x, embedding, **_cross(unet.mid_block, context))

        for block in unet.up_blocks:
            joined = tuple(residuals[-len(block.resnets) :])
            del residuals[-len(block.resnets) :]
            x = block(
                hidden_states=x,
                temb=embedding,
                res_hidden_states_tuple=joined,
                upsample_size=residuals[-1].shape[2:] if residuals else None,
                **_cross(block, context),
            )
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))


def _cross(block: nn.Module, context: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
