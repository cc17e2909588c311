"""What stands for the parts of a pipeline of diffusers that a comparison of one part has no need of."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn


class Still:
    """A scheduler of one step that changes nothing."""

    order = 1
    init_noise_sigma = 1.0
    config = FrozenDict({})
    timesteps = torch.ones(1)

    def set_timesteps(self, *_: Any, **__: Any) -> None:
        """One step, whatever was asked."""

    def scale_model_input(self, sample: Tensor, _: Any) -> Tensor:
        return sample

    def step(self, _: Tensor, __: Any, sample: Tensor, *, return_dict: bool = True) -> tuple[Tensor, Tensor]:
        return sample, sample

    def add_noise(self, latents: Tensor, _: Tensor, __: Tensor) -> Tensor:
        return latents

    def scale_noise(self, latents: Tensor, _: Tensor, __: Tensor) -> Tensor:
        return latents


class Silent(nn.Module):
    """A denoiser that predicts zeros, whatever it is told."""

    def __init__(self, *, channels: int, like: Tensor) -> None:
        super().__init__()
        self.device, self.dtype = like.device, like.dtype
        self.config = FrozenDict(
            {
                "sample_size": 8,
                "in_channels": channels,
                "patch_size": 2,
                "joint_attention_dim": 1,
                "time_cond_proj_dim": 8,
                "addition_time_embed_dim": 1,
            }
        )
        self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=7))  # six numbers and one of text

    def forward(self, sample: Tensor | None = None, *_: Any, **given: Any) -> tuple[Tensor]:
        return (torch.zeros_like(given["hidden_states"] if sample is None else sample),)


class Ids:
    """A tokenizer to which every prompt is the same ids."""

    def __init__(self, ids: Tensor) -> None:
        self._ids = ids
        self.added_tokens_encoder: dict[str, int] = {}
        self.model_max_length = ids.shape[1]

    def __call__(self, *_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=self._ids, attention_mask=torch.ones_like(self._ids))

    def tokenize(self, _: str) -> Sequence[str]:
        return ()


class NoTextEncoder(nn.Module):
    """A text encoder with no features, beside one that is compared."""

    def __init__(self, beside: Any) -> None:
        super().__init__()
        self.device, self.dtype = beside.device, beside.dtype
        self._layers = int(beside.config.num_hidden_layers)
        self.config: Any = beside.config

    def forward(self, ids: Tensor, **_: Any) -> Any:
        hidden = torch.zeros(*ids.shape, 0, device=ids.device)
        return _Output(hidden[:, 0], (hidden,) * (1 + self._layers))


class _Output(tuple[Tensor, ...]):
    """The pooled output first, and the layers by name."""

    hidden_states: tuple[Tensor, ...]

    def __new__(cls, pooled: Tensor, layers: tuple[Tensor, ...]) -> "_Output":
        made = super().__new__(cls, (pooled,))
        made.hidden_states = layers
        return made


class Posterior:
    """An autoencoder that draws from its own posterior with given noise; None where it has none to draw from."""

    def __init__(self, vae: Any, noise: Tensor | None) -> None:
        self._vae, self._noise = vae, noise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vae, name)

    def encode(self, pixels: Tensor) -> Any:
        found = self._vae.encode(pixels)
        if self._noise is None:
            return found
        drawn = found.latent_dist.mean + found.latent_dist.std * self._noise
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda generator=None: drawn))
