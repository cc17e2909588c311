"""A ControlNet: what it adds to the skip connections of a U-Net, on top of what others have added."""

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from latentrt.export.graphs.modules.unet import TimeIds


class Control(nn.Module):
    """The graph of one ControlNet (docs/controlnet.md gives the contract): running residuals in, the sums out.

    Follows `ControlNetModel.forward` (diffusers, models/controlnets/controlnet.py), with a scale of its own for each
    branch, image and residual. The picture is embedded once for all branches.
    """

    def __init__(self, controlnet: ControlNetModel) -> None:
        super().__init__()
        self.controlnet = controlnet
        if controlnet.config.addition_embed_type == "text_time":
            self.time_ids = TimeIds(controlnet.add_time_proj)

    def forward(
        self,
        state: Tensor,  # [B, 4, C, h, w]
        timestep: Tensor,  # [B]
        scalings: Tensor,  # [B, 3]
        context: Tensor,  # [K, B, L, D]
        image: Tensor,  # uint8 [B, H, W, 3]
        scale: Tensor,  # [K, B, R]
        pooled: Tensor | None = None,  # [K, B, P]
        time_ids: Tensor | None = None,  # [K, B, n]
        **residuals: Tensor,  # residual_0 to residual_{R-1}, [K, B, c, h', w']; none stands for zeros
    ) -> tuple[Tensor, ...]:
        net = self.controlnet
        branches, batch = scale.shape[:2]
        sample = scalings[:, 0, None, None, None] * state[:, 0]
        embedding = net.time_embedding(net.time_proj(per_branch(timestep, branches)))
        if pooled is not None and time_ids is not None:
            added = [pooled.flatten(0, 1), self.time_ids(time_ids.flatten(0, 1))]
            embedding = embedding + net.add_embedding(torch.cat(added, dim=1))
        context = context.flatten(0, 1)

        x = per_branch(net.conv_in(sample) + self._embedded(image), branches)
        found = [x]
        for block in net.down_blocks:
            x, outputs = block(hidden_states=x, temb=embedding, **_cross(block, context))
            found += outputs
        x = net.mid_block(x, embedding, **_cross(net.mid_block, context))

        own = [layer(value) for layer, value in zip(net.controlnet_down_blocks, found, strict=True)]
        own.append(net.controlnet_mid_block(x))
        sums = []
        for index, value in enumerate(own):
            scaled = value.unflatten(0, (branches, batch)) * scale[:, :, index, None, None, None]
            running = residuals.get(f"residual_{index}")
            sums.append(scaled if running is None else running + scaled)
        return tuple(sums)

    def _embedded(self, image: Tensor) -> Tensor:
        pixels = (image.to(torch.float32) / 255).permute(0, 3, 1, 2)  # TensorRT transposes no bytes
        if self.controlnet.config.controlnet_conditioning_channel_order == "bgr":
            pixels = pixels.flip(1)
        embedded: Tensor = self.controlnet.controlnet_cond_embedding(pixels)
        return embedded


def per_branch(value: Tensor, branches: int) -> Tensor:
    """[B, ...] -> [K*B, ...], branch-major."""
    return value.unsqueeze(0).expand(branches, *value.shape).flatten(0, 1)


def _cross(block: nn.Module, context: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": context} if getattr(block, "has_cross_attention", False) else {}
