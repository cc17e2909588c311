"""The graph of one whole denoising step: network, guidance, parametrisation, mask and sampler in one call."""

import torch
from torch import Tensor, nn


class Step(nn.Module):
    """One step of any linear sampler around a denoising network (docs/bundle.md gives the contract).

    Args:
        network: (sample [K*B, C + E, h, w], timestep [K*B], context [K*B, L, D]) -> [K*B, C, h, w], and by name those
            of pooled [K*B, P], time_ids [K*B, n], guidance_embed [K*B] and block_gate [K*B, blocks] that it takes.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        state: Tensor,  # [B, 4, C, h, w]
        noise: Tensor,  # [B, C, h, w]
        known: Tensor,  # [B, C, h, w]
        mask: Tensor,  # [B, 1, h, w]
        timestep: Tensor,  # [B]
        scalings: Tensor,  # [B, 3]
        transition: Tensor,  # [B, 4, 6]
        context: Tensor,  # [K, B, L, D]
        guidance: Tensor,  # [K, B]
        rescale: Tensor,  # [B]
        pooled: Tensor | None = None,  # [K, B, P]
        time_ids: Tensor | None = None,  # [K, B, n]
        guidance_embed: Tensor | None = None,  # [B]
        extra: Tensor | None = None,  # [B, E, h, w]
        block_gate: Tensor | None = None,  # [K, blocks]
    ) -> tuple[Tensor, Tensor]:
        branches = guidance.shape[0]
        x = state[:, 0]
        c_in, c_skip, c_out = (column[:, None, None, None] for column in scalings.unbind(1))

        sample = c_in * x if extra is None else torch.cat([c_in * x, extra], dim=1)
        added = {
            "pooled": None if pooled is None else pooled.flatten(0, 1),
            "time_ids": None if time_ids is None else time_ids.flatten(0, 1),
            "guidance_embed": None if guidance_embed is None else _per_branch(guidance_embed, branches),
            "block_gate": None if block_gate is None else _per_image(block_gate, x.shape[0]),
        }
        output = self.network(
            _per_branch(sample, branches),
            _per_branch(timestep, branches),
            context.flatten(0, 1),
            **{name: value for name, value in added.items() if value is not None},
        ).unflatten(0, (branches, -1))  # [K, B, C, h, w]
        prediction = (guidance[:, :, None, None, None] * output).sum(0)
        prediction = _rescaled(prediction, towards=output[-1], amount=rescale)

        denoised = c_skip * x + c_out * prediction
        denoised = mask * denoised + (1 - mask) * known
        return _advance(state, denoised, noise, transition), denoised


def _per_branch(value: Tensor, branches: int) -> Tensor:
    """[B, ...] -> [K*B, ...], branch-major."""
    return value.unsqueeze(0).expand(branches, *value.shape).flatten(0, 1)


def _per_image(value: Tensor, batch: int) -> Tensor:
    """[K, ...] -> [K*B, ...], branch-major."""
    return value.unsqueeze(1).expand(-1, batch, *value.shape[1:]).flatten(0, 1)


def _rescaled(prediction: Tensor, *, towards: Tensor, amount: Tensor) -> Tensor:
    """Guidance rescale (Lin et al. 2023, arXiv 2305.08891, section 3.4), `amount` 0 = off."""
    ratio = _std(towards) / _std(prediction).clamp_min(1e-12)
    return prediction * (1 + amount * (ratio - 1))[:, None, None, None]


def _std(x: Tensor) -> Tensor:
    """Standard deviation of each image, [B, C, h, w] -> [B]."""
    flat = x.flatten(1)
    return (flat - flat.mean(1, keepdim=True)).square().mean(1).sqrt()


def _advance(state: Tensor, denoised: Tensor, noise: Tensor, transition: Tensor) -> Tensor:
    """next state = transition @ [state, denoised, noise], multiplied and summed so that no backend
    may lower its precision as it would a matrix product's."""
    basis = torch.cat([state, denoised[:, None], noise[:, None]], dim=1)  # [B, 6, C, h, w]
    return (transition[:, :, :, None, None, None] * basis[:, None]).sum(2)
