"""The layouts in which networks lie in single files, and their conversion to diffusers' names by diffusers itself.

Every function here takes one network's tensors under their keys without the prefix of the file, and changes only names
and the arrangement of values, so that it can be run on shapes alone.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from diffusers.loaders.single_file_utils import (
    LDM_UNET_KEY,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)

Tensors = dict[str, torch.Tensor]
Convert = Callable[[Tensors], Tensors]


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to name a network's weights: the key that tells it, and the way to diffusers' names."""

    tell: str
    convert: Convert


def as_it_is(tensors: Tensors) -> Tensors:
    """diffusers' own names."""
    return dict(tensors)


def ldm_unet(tensors: Tensors) -> Tensors:
    """The U-Net of Latent Diffusion and of its successor for SDXL (`openaimodel.UNetModel`)."""
    downsamplers = indices(tensors, r"input_blocks\.(\d+)\.0\.op\.weight")
    last = max(indices(tensors, r"input_blocks\.(\d+)\."))
    config = {
        "layers_per_block": min(downsamplers, default=last + 1) - 1,
        "addition_embed_type": "text_time" if "label_emb.0.0.weight" in tensors else None,
    }
    keyed = {LDM_UNET_KEY + key: value for key, value in tensors.items()}
    converted: Tensors = convert_ldm_unet_checkpoint(keyed, config)
    return converted


def ldm_vae(tensors: Tensors) -> Tensors:
    """The autoencoder of Latent Diffusion, SDXL and SD 3 (`AutoencoderKL`, `SDVAE`)."""
    levels = [None] * (1 + max(indices(tensors, r"encoder\.down\.(\d+)\.")))
    config = {"down_block_types": levels, "up_block_types": levels}
    converted: Tensors = convert_ldm_vae_checkpoint(dict(tensors), config)
    return converted


def mmdit(tensors: Tensors) -> Tensors:
    """The transformer of SD 3 and 3.5 (`mmdit.MMDiT`)."""
    converted: Tensors = convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors))
    return converted


def clip(tensors: Tensors) -> Tensors:
    """transformers' CLIP; old files leave `text_model.` out."""
    inner = ("text_model.", "text_projection.", "logit_scale")
    return {key if key.startswith(inner) else f"text_model.{key}": value for key, value in tensors.items()}


def clip_projected(tensors: Tensors) -> Tensors:
    """The same with a projection: the identity where a file has none, as SD 3's own code assumes."""
    converted = clip(tensors)
    norm = converted["text_model.final_layer_norm.weight"]
    converted.setdefault("text_projection.weight", torch.eye(norm.shape[0], dtype=norm.dtype, device=norm.device))
    return converted


def open_clip(tensors: Tensors) -> Tensors:
    """OpenCLIP's text encoder, all layers."""
    return _open_clip(tensors, prefix="")


def open_clip_penultimate(tensors: Tensors) -> Tensors:
    """OpenCLIP's text encoder as SD 2.x uses it: without layer 23, the last of the published one."""
    return _open_clip(tensors, prefix="cond_stage_model.model.")


def _open_clip(tensors: Tensors, *, prefix: str) -> Tensors:
    width = tensors["ln_final.weight"].shape[0]
    converted = convert_open_clip_checkpoint(
        SimpleNamespace(config=SimpleNamespace(hidden_size=width)),
        {prefix + key: value for key, value in tensors.items()},
        prefix=prefix,
    )
    return {key: value.contiguous() for key, value in converted.items()}


def indices(keys: Iterable[str], pattern: str) -> set[int]:
    """The numbers that stand at the group of a pattern."""
    return {int(match[1]) for key in keys if (match := re.match(pattern, key))}


UNET = (Layout("input_blocks.0.0.weight", ldm_unet), Layout("down_blocks.0.resnets.0.conv1.weight", as_it_is))
TRANSFORMER = (
    Layout("joint_blocks.0.x_block.attn.qkv.weight", mmdit),
    Layout("transformer_blocks.0.attn.add_q_proj.weight", as_it_is),
)
VAE = (
    Layout("encoder.down.0.block.0.conv1.weight", ldm_vae),
    Layout("encoder.down_blocks.0.resnets.0.conv1.weight", as_it_is),
)
CLIP = (Layout("text_model.embeddings.token_embedding.weight", clip), Layout("embeddings.token_embedding.weight", clip))
CLIP_PROJECTED = (Layout("text_model.embeddings.token_embedding.weight", clip_projected),)
OPEN_CLIP = (Layout("token_embedding.weight", open_clip),)
OPEN_CLIP_PENULTIMATE = (Layout("token_embedding.weight", open_clip_penultimate),)
T5 = (Layout("shared.weight", as_it_is),)
