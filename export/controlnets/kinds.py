"""The kinds of ControlNets, one row for each class of diffusers: what they belong to, read and add."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, SD3ControlNetModel
from diffusers.models.embeddings import PatchEmbed
from torch import nn

from latentrt.export.controlnets.parts import latent_shift, patch_embedding
from latentrt.export.graphs.modules.control import Control
from latentrt.export.graphs.modules.control_mmdit import TransformerControl
from latentrt.export.passes.residuals import Dims, residual_dims, residuals_taken, token_dims
from latentrt.family import Family

Config = Mapping[str, Any]
Fact = tuple[str, object, object]


@dataclass(frozen=True, slots=True)
class Kind:
    """One row.

    Args:
        network: the part of a checkpoint that such ControlNets belong to.
        facts: of a configuration and a family, what has to agree: in words, as found, as expected.
        made: how many residuals it makes, if several places of the denoiser share one.
        residuals: axes of those that the family's denoiser takes.
        inputs: axes of what it reads besides `state`, `timestep`, `scalings` and `scale`.
        completed: with what it shares with the model; the folder has the graphs of the bundle.
        offset: added to the latent of its picture, by the same folder.
        module: what is traced of one that is completed, with that offset.
    """

    network: str
    model: type[nn.Module]
    facts: Callable[[Config, Family], Sequence[Fact]]
    made: Callable[[Config], int | None]
    residuals: Callable[[Config, Family], list[Dims]]
    inputs: Callable[[Config, Family], dict[str, Dims]]
    completed: Callable[[Any, Family, Path], nn.Module]
    offset: Callable[[Config, Path], float]
    module: Callable[[Any, float], nn.Module]


def _unet_facts(config: Config, family: Family) -> list[Fact]:
    halvings = len(config.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)) - 1
    sizes = config.get("addition_embed_type") == "text_time"
    return [
        ("features of a token's context", config.get("cross_attention_dim", 1280), family.width),
        ("channels of the latent", config.get("in_channels", 4), family.latent_channels),
        ("inputs for pooled texts and sizes", int(sizes), int(bool(family.time_ids))),
        ("pixels for one of the latent", 2**halvings, family.vae_factor),
    ]


def _unet_places(config: Config) -> list[Dims]:
    """The skip connections that the encoder of a U-Net or of its ControlNet makes, and its middle block."""
    channels = list(config.get("block_out_channels", (320, 640, 1280, 1280)))
    layers = config.get("layers_per_block", 2)
    counts = [layers] * len(channels) if isinstance(layers, int) else list(layers)
    found = [residual_dims(channels[0], 0)]
    for level, (width, count) in enumerate(zip(channels, counts, strict=True)):
        found += [residual_dims(width, level)] * count
        if level + 1 < len(channels):
            found.append(residual_dims(width, level + 1))
    return [*found, residual_dims(channels[-1], len(channels) - 1)]


def _unet_inputs(_: Config, family: Family) -> dict[str, Dims]:
    dims: dict[str, Dims] = {"context": ("K", "B", "L", family.width), "image": ("B", "H", "W", 3)}
    if family.time_ids:
        dims |= {"pooled": ("K", "B", family.pooled_width), "time_ids": ("K", "B", len(family.time_ids))}
    return dims


def _patch(config: Config) -> int:
    return int(config.get("patch_size", 2))


def _width(config: Config) -> int:
    return int(config.get("attention_head_dim", 64) * config.get("num_attention_heads", 18))


def _reads_text(config: Config) -> bool:
    return config.get("joint_attention_dim", 4096) is not None


def _reads_pooled(config: Config) -> bool:
    return not config.get("force_zeros_for_pooled_projection", True)


def _transformer_facts(config: Config, family: Family) -> list[Fact]:
    layers, most = int(config.get("num_layers", 18)), family.size_range_px[1] // family.multiple_px
    facts: list[Fact] = [
        ("channels of the latent", config.get("in_channels", 16), family.latent_channels),
        ("features of the pooled texts", config.get("pooled_projection_dim", 2048), family.pooled_width),
        ("pixels for one token", _patch(config) * family.vae_factor, family.multiple_px),
        ("layers", layers, min(layers, family.blocks)),
    ]
    if _reads_text(config):
        facts.append(("features of a token's context", config.get("joint_attention_dim", 4096), family.width))
    if config.get("use_pos_embed", True) and config.get("pos_embed_type", "sincos") is not None:
        reach = config.get("pos_embed_max_size", 96) or 0
        facts.append(("positions along each axis", reach, max(reach, most)))
    return facts


def _transformer_residuals(config: Config, family: Family) -> list[Dims]:
    taken = residuals_taken(blocks=family.blocks, made=int(config.get("num_layers", 18)))
    return [token_dims(_width(config), _patch(config))] * taken


def _transformer_inputs(config: Config, family: Family) -> dict[str, Dims]:
    dims: dict[str, Dims] = {"image_latent": ("B", family.latent_channels, "h", "w")}
    if _reads_text(config):
        dims["context"] = ("K", "B", "L", family.width)
    if _reads_pooled(config):
        dims["pooled"] = ("K", "B", family.pooled_width)
    return dims


def _completed(net: SD3ControlNetModel, family: Family, folder: Path) -> SD3ControlNetModel:
    """With the transformer's patches, where it has none of its own, and without the layers that none of it takes."""
    if net.pos_embed is None:
        net.pos_embed = _patches(folder)
    taken = len(_transformer_residuals(net.config, family))
    net.transformer_blocks, net.controlnet_blocks = net.transformer_blocks[:taken], net.controlnet_blocks[:taken]
    return net


def _offset(config: Config, folder: Path) -> float:
    """The VAE's shift, where it was trained without (`StableDiffusion3ControlNetPipeline.__call__`, diffusers: as with
    the zeros)."""
    return 0.0 if _reads_pooled(config) else latent_shift(folder / "encoder.onnx")


def _patches(folder: Path) -> PatchEmbed:
    """The embedding of patches in the step's graph, `SD3ControlNetModel._get_pos_embed_from_transformer`."""
    weight, bias, table = (torch.from_numpy(value) for value in patch_embedding(folder / "step.onnx"))
    width, channels, patch, _ = weight.shape
    side = int(table.shape[1] ** 0.5)
    embed = PatchEmbed(
        height=patch, width=patch, patch_size=patch, in_channels=channels, embed_dim=width, pos_embed_type=None
    )
    embed.load_state_dict({"proj.weight": weight, "proj.bias": bias})
    embed.pos_embed_max_size = side
    del embed.pos_embed
    embed.register_buffer("pos_embed", table)
    return embed.requires_grad_(False)


PLACES: Mapping[str, Callable[[Config], list[Dims]]] = {
    "unet": _unet_places,
    "transformer": lambda config: [token_dims(_width(config), _patch(config))] * (config["num_layers"] - 1),
}
"""Axes of what can be added at each place of a denoiser, from its configuration, by its part of the checkpoint."""

KINDS: Mapping[str, Kind] = {
    "ControlNetModel": Kind(
        network="unet",
        model=ControlNetModel,
        facts=_unet_facts,
        made=lambda _: None,
        residuals=lambda config, _: _unet_places(config),
        inputs=_unet_inputs,
        completed=lambda net, _, __: net,
        offset=lambda _, __: 0.0,
        module=lambda net, _: Control(net),
    ),
    "SD3ControlNetModel": Kind(
        network="transformer",
        model=SD3ControlNetModel,
        facts=_transformer_facts,
        made=lambda config: int(config.get("num_layers", 18)),
        residuals=_transformer_residuals,
        inputs=_transformer_inputs,
        completed=_completed,
        offset=_offset,
        module=lambda net, offset: TransformerControl(net, offset=offset),
    ),
}
"""By the class that a ControlNet's config.json names."""
