"""A ControlNet of a diffusion transformer: what it adds behind the blocks, on top of what others have added."""

from diffusers import SD3ControlNetModel
from torch import Tensor, nn

from latentrt.export.graphs.modules.control import per_branch
from latentrt.export.graphs.modules.mmdit import positions


class TransformerControl(nn.Module):
    """The graph of one ControlNet (docs/controlnet.md gives the contract): running residuals in, the sums out.

    Follows `SD3ControlNetModel.forward` (diffusers, models/controlnets/controlnet_sd3.py), with a scale of its own for
    each branch, image and residual, and positions that are cropped as in `MMDiT`.

    Args:
        controlnet: with a `pos_embed`, be it the transformer's, and the layers whose residuals the transformer takes.
        offset: added to the picture's latent. Some were trained on latents from which no shift was taken away.
    """

    def __init__(self, controlnet: SD3ControlNetModel, *, offset: float) -> None:
        super().__init__()
        self.controlnet = controlnet
        self.offset = offset

    def forward(
        self,
        state: Tensor,  # [B, 4, C, h, w]
        timestep: Tensor,  # [B]
        scalings: Tensor,  # [B, 3]
        image_latent: Tensor,  # [B, C, h, w]
        scale: Tensor,  # [K, B, R]
        context: Tensor | None = None,  # [K, B, L, D]
        pooled: Tensor | None = None,  # [K, B, P]; None stands for zeros
        **residuals: Tensor,  # residual_0 to residual_{R-1}, [K, B, h', w', width]; none stands for zeros
    ) -> tuple[Tensor, ...]:
        net = self.controlnet
        branches, batch = scale.shape[:2]
        sample = scalings[:, 0, None, None, None] * state[:, 0]
        patches = net.pos_embed.proj(sample)  # [B, width, h', w']
        rows, columns = patches.shape[2:]
        x = patches.flatten(2).transpose(1, 2) + net.pos_embed_input(image_latent + self.offset)
        if net.pos_embed.pos_embed is not None:
            x = x + positions(net.pos_embed, rows, columns)
        x = per_branch(x, branches)
        if pooled is None:
            pooled = x.new_zeros(branches, batch, net.config.pooled_projection_dim)
        embedding = net.time_text_embed(per_branch(timestep, branches), pooled.flatten(0, 1))
        text = None if context is None else net.context_embedder(context.flatten(0, 1))

        sums = []
        for index, (block, out) in enumerate(zip(net.transformer_blocks, net.controlnet_blocks, strict=True)):
            if text is None:
                x = block(x, embedding)
            else:
                text, x = block(hidden_states=x, encoder_hidden_states=text, temb=embedding)
            own = out(x).unflatten(1, (rows, columns)).unflatten(0, (branches, batch))
            scaled = own * scale[:, :, index, None, None, None]
            running = residuals.get(f"residual_{index}")
            sums.append(scaled if running is None else running + scaled)
        return tuple(sums)
