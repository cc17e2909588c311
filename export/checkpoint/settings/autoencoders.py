"""Settings of the autoencoders. Which of them a pipeline uses is said by `latentrt.export.checkpoint.latents`."""

from diffusers import AutoencoderKL, AutoencoderTiny

from latentrt.export.checkpoint.settings.table import Settings
from latentrt.export.checkpoint.settings.values import FLAG, NUMBER, POSITIVE, WHOLE, listed, only, optional, pair

AUTOENCODER_KL = Settings(
    kind=AutoencoderKL,
    carried={
        "in_channels": only(3),
        "out_channels": only(3),
        "down_block_types": listed(only("DownEncoderBlock2D", "AttnDownEncoderBlock2D")),
        "up_block_types": listed(only("UpDecoderBlock2D", "AttnUpDecoderBlock2D")),
        "block_out_channels": listed(WHOLE),
        "layers_per_block": WHOLE,
        "act_fn": only("silu", "swish", "mish", "gelu", "relu"),
        "latent_channels": WHOLE,
        "norm_num_groups": WHOLE,
        "sample_size": pair(WHOLE),  # of tiles alone, but diffusers divides by it
        "scaling_factor": POSITIVE,
        "shift_factor": optional(NUMBER),
        "latents_mean": optional(listed(NUMBER)),
        "latents_std": optional(listed(POSITIVE)),
        "use_quant_conv": FLAG,
        "use_post_quant_conv": FLAG,
        "mid_block_add_attention": FLAG,
    },
    idle=frozenset(
        {"force_upcast"}
    ),  # in half precision; the export's is judged by `latentrt.export.convert.overflow_check`
)

AUTOENCODER_TINY = Settings(
    kind=AutoencoderTiny,
    carried={
        "in_channels": only(3),
        "out_channels": only(3),
        "encoder_block_out_channels": listed(WHOLE),
        "decoder_block_out_channels": listed(WHOLE),
        "act_fn": only("silu", "swish", "mish", "gelu", "relu"),
        "upsample_fn": only("nearest"),
        "latent_channels": WHOLE,
        "upsampling_scaling_factor": only(2),
        "num_encoder_blocks": listed(WHOLE),
        "num_decoder_blocks": listed(WHOLE),
        "scaling_factor": POSITIVE,
        "shift_factor": NUMBER,
    },
    idle=frozenset({"force_upcast", "latent_magnitude", "latent_shift"}),
    retired=frozenset({"block_out_channels"}),  # diffusers writes the decoder's under this name too
)
