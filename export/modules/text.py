"""The CLIP text tower with clip skip and textual-inversion embeddings as graph inputs."""

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel


class TextEncoder(nn.Module):
    """ids [N, 77] int64, skip [1] int64, extra_embeddings [E, D] float32 -> hidden [N, 77, D], pooled [N, D].

    `skip` counts layers from the top: 0 reads the last one, 1 the one before it; the final norm is applied
    to whichever is read, as `StableDiffusionPipeline.encode_prompt` (diffusers) does for its `clip_skip`.
    Ids from the vocabulary's size upward index `extra_embeddings`, which has at least one row.
    `pooled` is the last layer at the first end-of-text token.
    """

    def __init__(self, model: CLIPTextModel, *, eos_id: int) -> None:
        super().__init__()
        self.model = model
        self.eos_id = eos_id
        length = model.config.max_position_embeddings
        causal = torch.full((length, length), float("-inf")).triu(1)
        self.register_buffer("causal", causal[None, None], persistent=False)

    def forward(self, ids: Tensor, skip: Tensor, extra_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        x = self._embed(ids, extra_embeddings)
        layers = []
        for layer in self.model.encoder.layers:
            x = layer(x, self.causal)
            layers.append(x)
        norm = self.model.final_layer_norm
        hidden = norm(torch.stack(layers)[len(layers) - 1 - skip].squeeze(0))
        end = (ids == self.eos_id).int().argmax(dim=1)  # [N]
        pooled = norm(x).gather(1, end[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        return hidden, pooled

    def _embed(self, ids: Tensor, extra_embeddings: Tensor) -> Tensor:
        table = self.model.embeddings
        vocabulary = table.token_embedding.num_embeddings
        known = table.token_embedding(ids.clamp(max=vocabulary - 1))
        extra = extra_embeddings[(ids - vocabulary).clamp(min=0)]
        tokens = torch.where((ids < vocabulary)[:, :, None], known, extra)
        return tokens + table.position_embedding.weight
