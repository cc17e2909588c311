"""The multimodal diffusion transformer of Stable Diffusion 3 and 3.5, for every even latent size."""

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.embeddings import PatchEmbed
from torch import Tensor, nn


class MMDiT(nn.Module):
    """(sample [N, C, h, w], timestep [N], context [N, L, D], pooled [N, P], block_gate [N, blocks]) -> [N, C, h, w].

    Follows `SD3Transformer2DModel.forward` (diffusers, models/transformers/transformer_sd3.py), but crops the table
    of positions by indices that come from the sample's size: upstream crops by numbers, which a trace would keep.
    Block i adds `block_gate[:, i]` times what it would add: 1 changes nothing, 0 is upstream's `skip_layers`.
    h and w are multiples of the patch size and at most `pos_embed_max_size` patches.
    """

    def __init__(self, transformer: SD3Transformer2DModel) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, sample: Tensor, timestep: Tensor, context: Tensor, pooled: Tensor, block_gate: Tensor) -> Tensor:
        net = self.transformer
        patches = net.pos_embed.proj(sample)  # [N, width, h / patch, w / patch]
        rows, columns = patches.shape[2:]
        x = patches.flatten(2).transpose(1, 2) + positions(net.pos_embed, rows, columns)
        embedding = net.time_text_embed(timestep, pooled)
        context = net.context_embedder(context)

        for block, gate in zip(net.transformer_blocks, block_gate.unbind(1), strict=True):
            x, context = _block(block, x, context, embedding, gate[:, None])

        x = net.proj_out(net.norm_out(x, embedding))
        patch = net.config.patch_size
        x = x.unflatten(2, (patch, patch, net.out_channels)).unflatten(1, (rows, columns))
        image: Tensor = x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # N C rows patch columns patch
        return image


def positions(embed: PatchEmbed, rows: int, columns: int) -> Tensor:
    """The middle of a table of positions, [1, rows * columns, width]."""
    size = embed.pos_embed_max_size
    grid: Tensor = embed.pos_embed.unflatten(1, (size, size))
    for axis, count in ((1, rows), (2, columns)):
        grid = grid.index_select(axis, torch.arange(count, device=grid.device) + (size - count) // 2)
    return grid.flatten(1, 2)


def _block(
    block: JointTransformerBlock, x: Tensor, context: Tensor, embedding: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor]:
    """One joint block as `JointTransformerBlock.forward` (diffusers, models/attention.py), each of its residuals
    times `gate` [N, 1]. x [N, patches, width], context [N, L, width]; the last block leaves the context as it is."""
    normed, gate_attn, shift, scale, gate_ff, *dual = block.norm1(x, emb=embedding)
    if block.context_pre_only:
        attended, _ = block.attn(normed, encoder_hidden_states=block.norm1_context(context, embedding))
    else:
        normed_context, gate_context, shift_context, scale_context, gate_ff_context = block.norm1_context(
            context, emb=embedding
        )
        attended, attended_context = block.attn(normed, encoder_hidden_states=normed_context)
        context = context + _times(gate * gate_context, attended_context)
        context = context + _feed_forward(
            block.norm2_context, block.ff_context, context, shift_context, scale_context, gate_ff_context, gate
        )

    x = x + _times(gate * gate_attn, attended)
    if block.use_dual_attention:
        normed_dual, gate_dual = dual
        x = x + _times(gate * gate_dual, block.attn2(normed_dual))
    return x + _feed_forward(block.norm2, block.ff, x, shift, scale, gate_ff, gate), context


def _feed_forward(
    norm: nn.Module, network: nn.Module, x: Tensor, shift: Tensor, scale: Tensor, gate_ff: Tensor, gate: Tensor
) -> Tensor:
    return _times(gate * gate_ff, network(norm(x) * (1 + scale[:, None]) + shift[:, None]))


def _times(gate: Tensor, x: Tensor) -> Tensor:
    """[N, width] times [N, L, width]."""
    return gate[:, None] * x
