"""The row of a multimodal diffusion transformer, Stable Diffusion 3 and 3.5, from its configuration files."""

from collections.abc import Mapping, Sequence
from typing import Any

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.folder import Checkpoint, tokenizer_of
from latentrt.export.checkpoint.latents import vae_factor
from latentrt.family import Defaults, Family, TextEncoderSpec
from latentrt.samplers.noise_schedule import NoiseSchedule

T5 = "text_encoder_3"
T5_LENGTH = 256  # `max_sequence_length` of StableDiffusion3Pipeline (diffusers)
_T5_VOCABULARY = 32128  # of the published encoder, for a row whose text encoder was left out
_STEPS = 28


def mmdit_family(
    checkpoint: Checkpoint, clips: Sequence[TextEncoderSpec], *, noise: NoiseSchedule, largest_px: int
) -> Family:
    """Fills the row. T5 is optional: without it zeros stand for its tokens, as in `StableDiffusion3Pipeline`.

    Args:
        clips: its CLIP text encoders, in order.
        largest_px: largest width and height, if the transformer's positions reach that far.

    Raises:
        CheckpointError: a configuration that this version cannot export, or parts that do not fit together.
    """
    config, vae = checkpoint.config("transformer"), checkpoint.config("vae")
    _check_supported(checkpoint, config, vae, clips)
    factor = vae_factor(vae)
    multiple_px = factor * config["patch_size"]
    native_px = config["sample_size"] * factor
    return Family(
        name=str(checkpoint.index["_class_name"]).removesuffix("Pipeline"),
        text_encoders=(*clips, _t5(checkpoint, config["joint_attention_dim"])),
        latent_channels=vae["latent_channels"],
        vae_factor=factor,
        size_range_px=(4 * multiple_px, min(largest_px, 8 * native_px, config["pos_embed_max_size"] * multiple_px)),
        noise=noise,
        defaults=Defaults(
            size=(native_px, native_px),
            steps=_STEPS,
            guidance=7.0 if config.get("qk_norm") is None else 4.5,  # the model cards of 3 and of 3.5
            sampler=noise.default_sampler,
        ),
        context_width=config["joint_attention_dim"],
        size_multiple_px=multiple_px,
        blocks=config["num_layers"],
    )


def _t5(checkpoint: Checkpoint, width: int) -> TextEncoderSpec:
    part = T5
    vocabulary = _T5_VOCABULARY
    if part in checkpoint.parts:
        config = checkpoint.config(part)
        vocabulary = config["vocab_size"]
        tokens = len(checkpoint.tokenizer(tokenizer_of(part)))
        if config["d_model"] != width or tokens > vocabulary:
            raise CheckpointError(
                f"{part} makes {config['d_model']} features a token and knows {vocabulary} of {tokens} tokens",
                expected=f"{width} features, as the transformer takes, and all tokens",
                hint="the parts belong to different models",
            )
    return TextEncoderSpec(
        component=part,
        tokenizer=f"{tokenizer_of(part)}/tokenizer.json",
        length=T5_LENGTH,
        width=width,
        vocabulary=vocabulary,
        bos_id=None,
        eos_id=1,
        pad_id=0,
        band=1,
        optional=True,
    )


def _check_supported(
    checkpoint: Checkpoint, config: Mapping[str, Any], vae: Mapping[str, Any], clips: Sequence[TextEncoderSpec]
) -> None:
    """Refuses, before hours of work, what the step graph of this version does not carry."""
    where = checkpoint.root / "transformer"
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if config["caption_projection_dim"] != width:
        raise CheckpointError(
            f"{where} projects the text to {config['caption_projection_dim']} features",
            expected=f"{width}, num_attention_heads times attention_head_dim",
        )
    outputs = config["in_channels"] if config.get("out_channels") is None else config["out_channels"]
    channels = {config["in_channels"], outputs, vae["latent_channels"]}
    if len(channels) > 1:
        raise CheckpointError(
            f"the transformer takes {config['in_channels']} channels and gives {outputs}, the VAE has"
            f" {vae['latent_channels']}",
            expected="one number of channels",
        )
    pooled, width = (
        sum(text_encoder.pooled_width for text_encoder in clips),
        sum(text_encoder.width for text_encoder in clips),
    )
    if pooled != config["pooled_projection_dim"] or width > config["joint_attention_dim"]:
        raise CheckpointError(
            f"the CLIP text encoders make {width} features a token and {pooled} pooled",
            expected=f"at most {config['joint_attention_dim']} and {config['pooled_projection_dim']} pooled",
            hint="both CLIP text encoders are needed; T5 alone may be missing",
        )
