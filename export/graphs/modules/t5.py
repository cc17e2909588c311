"""The T5 text encoder: an encoder without a mask, as diffusers' pipelines call it."""

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel


class T5Encoder(nn.Module):
    """ids [N, L] int64 -> hidden [N, L, D]; L is `length`.

    Follows `T5Stack.forward` (transformers, models/t5/modeling_t5.py) with no attention mask: padding is attended
    to, since `StableDiffusion3Pipeline.encode_prompt` (diffusers) passes none.
    """

    def __init__(self, model: T5EncoderModel, *, length: int) -> None:
        super().__init__()
        self.encoder = model.encoder
        attention = model.encoder.block[0].layer[0].SelfAttention
        position = torch.arange(length)
        buckets = attention._relative_position_bucket(
            position[None, :] - position[:, None],
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        self.register_buffer("buckets", buckets, persistent=False)  # [L, L]; half precision would miss some

    def forward(self, ids: Tensor) -> Tensor:
        x = self.encoder.embed_tokens(ids)
        attention = self.encoder.block[0].layer[0].SelfAttention
        bias = attention.relative_attention_bias(self.buckets).permute(2, 0, 1)[None]  # [1, heads, L, L]
        for block in self.encoder.block:
            x, *_ = block(x, position_bias=bias)
        hidden: Tensor = self.encoder.final_layer_norm(x)
        return hidden
