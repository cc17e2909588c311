"""Settings of the networks that denoise, and of their ControlNets.

The graphs follow the forward pass of the whole network and hold the blocks as diffusers makes them: what a block is
made with is carried as it is, and what that forward pass asks for besides is carried only where the graph does it too.
"""

from collections.abc import Mapping

from diffusers import ControlNetModel, SD3ControlNetModel, SD3Transformer2DModel, UNet2DConditionModel

from latentrt.export.checkpoint.settings.table import Settings
from latentrt.export.checkpoint.settings.values import (
    COUNT,
    EVEN,
    FLAG,
    NUMBER,
    ODD,
    POSITIVE,
    WHOLE,
    Values,
    each,
    listed,
    only,
    optional,
    pair,
)

_ACTIVATIONS = only("silu", "swish", "mish", "gelu", "relu")

# What a U-Net and its ControlNets have in common.
_ENCODER: Mapping[str, Values] = {
    "in_channels": WHOLE,
    "flip_sin_to_cos": FLAG,
    "freq_shift": NUMBER,
    "down_block_types": listed(only("CrossAttnDownBlock2D", "DownBlock2D")),
    "only_cross_attention": each(FLAG),
    "block_out_channels": listed(WHOLE),
    "layers_per_block": each(WHOLE),
    "downsample_padding": only(1),  # 0 halves an odd size to the lower side, and the axes of the graph say the upper
    "mid_block_scale_factor": POSITIVE,
    "act_fn": _ACTIVATIONS,
    "norm_num_groups": WHOLE,
    "norm_eps": POSITIVE,
    "cross_attention_dim": each(WHOLE),
    "transformer_layers_per_block": each(each(COUNT)),
    "encoder_hid_dim": only(None),
    "encoder_hid_dim_type": only(None),
    "attention_head_dim": each(WHOLE),
    "num_attention_heads": only(None),  # diffusers refuses it too, for its name
    "use_linear_projection": FLAG,
    "class_embed_type": only(None),
    "num_class_embeds": only(None),
    "addition_embed_type": only(None, "text_time"),
    "addition_time_embed_dim": optional(WHOLE),
    "projection_class_embeddings_input_dim": optional(WHOLE),
    "upcast_attention": FLAG,  # in float16; `latentrt.export.convert.half_policy` places attention's products
    "resnet_time_scale_shift": only("default", "scale_shift"),
}

UNET = Settings(
    kind=UNet2DConditionModel,
    carried={
        **_ENCODER,
        "sample_size": optional(pair(WHOLE)),
        "out_channels": WHOLE,
        "center_input_sample": only(False),
        "mid_block_type": only(None, "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
        "up_block_types": listed(only("CrossAttnUpBlock2D", "UpBlock2D")),
        "reverse_transformer_layers_per_block": optional(listed(each(COUNT))),
        "dual_cross_attention": only(False),
        "resnet_skip_time_act": FLAG,
        "resnet_out_scale_factor": POSITIVE,
        "time_embedding_type": only("positional", "fourier"),
        "time_embedding_dim": optional(EVEN),
        "time_embedding_act_fn": only(None),
        "timestep_post_act": only(None),
        "time_cond_proj_dim": optional(EVEN),
        "conv_in_kernel": ODD,
        "conv_out_kernel": ODD,
        "attention_type": only("default"),
        "class_embeddings_concat": only(False),
        "mid_block_only_cross_attention": optional(FLAG),
        "cross_attention_norm": only(None),
    },
    idle=frozenset({"dropout", "addition_embed_type_num_heads"}),
)

_TRANSFORMER: Mapping[str, Values] = {
    "patch_size": WHOLE,
    "in_channels": WHOLE,
    "num_layers": WHOLE,
    "attention_head_dim": WHOLE,
    "num_attention_heads": WHOLE,
    "caption_projection_dim": WHOLE,
    "pooled_projection_dim": WHOLE,
    "dual_attention_layers": listed(COUNT, empty=True),
    "qk_norm": only(None, "rms_norm"),
}

SD3_TRANSFORMER = Settings(
    kind=SD3Transformer2DModel,
    carried={
        **_TRANSFORMER,
        "sample_size": WHOLE,
        "joint_attention_dim": WHOLE,
        "out_channels": optional(WHOLE),
        "pos_embed_max_size": WHOLE,
    },
    idle=frozenset(),
)

CONTROLNET = Settings(
    kind=ControlNetModel,
    carried={
        **_ENCODER,
        "conditioning_channels": only(3),
        "mid_block_type": only("UNetMidBlock2DCrossAttn", "UNetMidBlock2D"),
        "controlnet_conditioning_channel_order": only("rgb", "bgr"),
        "conditioning_embedding_out_channels": listed(WHOLE),
        "global_pool_conditions": only(False),
    },
    idle=frozenset({"addition_embed_type_num_heads"}),
)

SD3_CONTROLNET = Settings(
    kind=SD3ControlNetModel,
    carried={
        **_TRANSFORMER,
        "sample_size": WHOLE,
        "joint_attention_dim": optional(WHOLE),
        "pos_embed_max_size": optional(WHOLE),
        "extra_conditioning_channels": only(0),
        "pos_embed_type": only(None, "sincos"),
        "use_pos_embed": FLAG,
        "force_zeros_for_pooled_projection": FLAG,
    },
    idle=frozenset({"out_channels"}),
)
