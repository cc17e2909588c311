"""The CLIP text encoders, OpenAI's and OpenCLIP's, with clip skip and textual-inversion embeddings as graph inputs."""

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.clip.modeling_clip import CLIPTextEmbeddings


class TextEncoder(nn.Module):
    """ids [N, 77] int64, skip [1] int64, extra_embeddings [E, D] float32 -> hidden [N, 77, D], pooled [N, P].

    `skip` counts layers from the top: 0 reads the last one, 1 the one before it. Ids from the vocabulary's size
    upward index `extra_embeddings`, which has at least one row. `pooled` is the last layer at the first end-of-text
    token, after the final norm, and projected where the text encoder has a projection.

    Args:
        model: the text encoder.
        eos_id: the end-of-text token.
        normed: whether the final norm is applied to whichever layer `hidden` reads, as `encode_prompt` of
            `StableDiffusionPipeline` (diffusers) does, or to none, as that of `StableDiffusionXLPipeline`.
    """

    def __init__(self, model: CLIPTextModel | CLIPTextModelWithProjection, *, eos_id: int, normed: bool) -> None:
        super().__init__()
        self.model = model
        self.eos_id = eos_id
        self.normed = normed
        length = model.config.max_position_embeddings
        causal = torch.full((length, length), float("-inf")).triu(1)
        self.register_buffer("causal", causal[None, None], persistent=False)

    def forward(self, ids: Tensor, skip: Tensor, extra_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        text_encoder = getattr(self.model, "text_model", self.model)
        x = _embed(text_encoder.embeddings, ids, extra_embeddings)
        layers = []
        for layer in text_encoder.encoder.layers:
            x = layer(x, self.causal)
            layers.append(x)
        hidden = torch.stack(layers)[len(layers) - 1 - skip].squeeze(0)
        if self.normed:
            hidden = text_encoder.final_layer_norm(hidden)
        end = (ids == self.eos_id).int().argmax(dim=1)  # [N]
        pooled = text_encoder.final_layer_norm(x).gather(1, end[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        if isinstance(self.model, CLIPTextModelWithProjection):
            pooled = self.model.text_projection(pooled)
        return hidden, pooled


def _embed(table: CLIPTextEmbeddings, ids: Tensor, extra_embeddings: Tensor) -> Tensor:
    vocabulary = table.token_embedding.num_embeddings
    known = table.token_embedding(ids.clamp(max=vocabulary - 1))
    extra = extra_embeddings[(ids - vocabulary).clamp(min=0)]
    tokens = torch.where((ids < vocabulary)[:, :, None], known, extra)
    embedded: Tensor = tokens + table.position_embedding.weight
    return embedded
