"""Configurations as far as the shapes of the weights tell them, under diffusers' and transformers' names.

What shapes do not tell (groups, activations) comes from the row of the architecture; heads are taken to have 64
features.
"""

import math
from collections.abc import Mapping
from typing import Any

from latentrt.export.checkpoint.single_file.layouts import indices

ASSUMED = (
    "num_attention_heads",
    "attention_head_dim",
    "num_heads",
    "d_kv",
    "projection_dim",
)  # a given config overrules

Shapes = Mapping[str, tuple[int, ...]]


def unet_sizes(shapes: Shapes) -> dict[str, Any]:
    """Of a UNet2DConditionModel."""
    levels = range(1 + max(indices(shapes, r"down_blocks\.(\d+)\.")))
    attends = [f"down_blocks.{level}.attentions.0.proj_in.weight" in shapes for level in levels]
    middle = _depth(shapes, "mid_block")
    depths = [_depth(shapes, f"down_blocks.{level}") if attends[level] else 1 for level in levels]
    depths[-1] = middle
    embedding = shapes.get("add_embedding.linear_1.weight")
    return {
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "block_out_channels": tuple(shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in levels),
        "down_block_types": tuple("CrossAttnDownBlock2D" if here else "DownBlock2D" for here in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attends)),
        "layers_per_block": 1 + max(indices(shapes, r"down_blocks\.0\.resnets\.(\d+)\.")),
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else tuple(depths),
        "cross_attention_dim": shapes["mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": len(shapes["mid_block.attentions.0.proj_in.weight"]) == 2,
        "time_cond_proj_dim": _dim(shapes, "time_embedding.cond_proj.weight", 1),
        "addition_embed_type": None if embedding is None else "text_time",
        "projection_class_embeddings_input_dim": None if embedding is None else embedding[1],
    }


def transformer_sizes(shapes: Shapes) -> dict[str, Any]:
    """Of an SD3Transformer2DModel."""
    hidden, channels, patch, _ = shapes["pos_embed.proj.weight"]
    normed = _dim(shapes, "transformer_blocks.0.attn.norm_q.weight", 0)
    head = 64 if normed is None else normed
    return {
        "in_channels": channels,
        "out_channels": shapes["proj_out.weight"][0] // patch**2,
        "patch_size": patch,
        "num_layers": 1 + max(indices(shapes, r"transformer_blocks\.(\d+)\.")),
        "num_attention_heads": hidden // head,
        "attention_head_dim": head,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed.pos_embed"][1]),
        "qk_norm": None if normed is None else "rms_norm",
        "dual_attention_layers": tuple(sorted(indices(shapes, r"transformer_blocks\.(\d+)\.attn2\."))),
    }


def vae_sizes(shapes: Shapes) -> dict[str, Any]:
    """Of an AutoencoderKL."""
    levels = range(1 + max(indices(shapes, r"encoder\.down_blocks\.(\d+)\.")))
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": tuple(shapes[f"encoder.down_blocks.{n}.resnets.0.conv1.weight"][0] for n in levels),
        "down_block_types": ("DownEncoderBlock2D",) * len(levels),
        "up_block_types": ("UpDecoderBlock2D",) * len(levels),
        "layers_per_block": 1 + max(indices(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def clip_sizes(shapes: Shapes) -> dict[str, Any]:
    """Of a CLIPTextModel, with or without projection. All published text encoders have heads of 64."""
    vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
    projection = _dim(shapes, "text_projection.weight", 0)
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": 1 + max(indices(shapes, r"text_model\.encoder\.layers\.(\d+)\.")),
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
        "projection_dim": width if projection is None else projection,
    }


def t5_sizes(shapes: Shapes) -> dict[str, Any]:
    """Of a T5EncoderModel; heads of 64."""
    vocabulary, width = shapes["shared.weight"]
    inner = shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0]
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_ff": shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        "d_kv": 64,
        "num_heads": inner // 64,
        "num_layers": 1 + max(indices(shapes, r"encoder\.block\.(\d+)\.")),
        "relative_attention_num_buckets": shapes[
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        ][0],
    }


def _depth(shapes: Shapes, block: str) -> int:
    return 1 + max(indices(shapes, rf"{block}\.attentions\.0\.transformer_blocks\.(\d+)\."))


def _dim(shapes: Shapes, key: str, axis: int) -> int | None:
    return shapes[key][axis] if key in shapes else None
