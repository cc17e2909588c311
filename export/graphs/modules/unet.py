"""The conditional U-Net of Stable Diffusion, traced for every size and not only for multiples of 64 px."""

import math

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn


class UNet(nn.Module):
    """(sample [N, C + E, h, w], timestep [N], context [N, L, D]) -> [N, C, h, w].

    SDXL's also takes pooled [N, P] and time_ids [N, n], one distilled with guidance inside guidance_embed [N].

    Follows `UNet2DConditionModel.forward` (diffusers, models/unets/unet_2d_condition.py) but always hands each
    up block the size of the residual that it joins: upstream decides that from the traced size, which would
    bind the graph to multiples of the network's whole downsampling.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet
        if unet.config.addition_embed_type == "text_time":
            self.time_ids = TimeIds(unet.add_time_proj)
        if unet.config.time_cond_proj_dim is not None:
            self.guidance_angles = GuidanceAngles(unet.config.time_cond_proj_dim)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        *,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
        guidance_embed: Tensor | None = None,
    ) -> Tensor:
        unet = self.unet
        guidance = None if guidance_embed is None else self.guidance_angles(guidance_embed)
        embedding = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep), guidance)
        if pooled is not None and time_ids is not None:
            embedding = embedding + unet.add_embedding(torch.cat([pooled, self.time_ids(time_ids)], dim=1))

        x = unet.conv_in(sample)
        residuals = [x]
        for block in unet.down_blocks:
            x, added = block(hidden_states=x, temb=embedding, **_cross(block, context))
            residuals += added

        if unet.mid_block is not None:
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
        prediction: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
        return prediction


class TimeIds(nn.Module):
    """Sizes and crops [N, n] to their angles [N, n * A], as `UNet2DConditionModel.get_aug_embed` (diffusers)."""

    def __init__(self, angles: nn.Module) -> None:
        super().__init__()
        self.angles = angles

    def forward(self, time_ids: Tensor) -> Tensor:
        angles: Tensor = self.angles(time_ids.flatten())  # [N * n, A]
        joined: Tensor = angles.unflatten(0, (-1, time_ids.shape[1])).flatten(1)  # type: ignore[no-untyped-call]
        return joined


class GuidanceAngles(nn.Module):
    """The scale of guidance [N] to sines and cosines [N, width] of 1000 * (scale - 1).

    Source: `LatentConsistencyModelPipeline.get_guidance_scale_embedding` (diffusers), after Meng et al. 2023, arXiv
    2210.03142; width is even in every published model.
    """

    rates: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        rates = torch.exp(torch.arange(width // 2, dtype=torch.float32) * -(math.log(10000.0) / (width // 2 - 1)))
        self.register_buffer("rates", rates, persistent=False)

    def forward(self, guidance: Tensor) -> Tensor:
        angles = (1000 * (guidance - 1))[:, None] * self.rates
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def _cross(block: nn.Module, context: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
