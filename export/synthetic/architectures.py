"""The published architectures of Stable Diffusion, and each of them at a thousandth of its size, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderSizes:
    """A text encoder of CLIP's kind.

    Args:
        width, layers, heads: of the transformer.
        projects: whether it is a `CLIPTextModelWithProjection`, whose projection is as wide as the text encoder.
        activation: of its perceptron.
        pads: the token that fills a chunk.
        eos_id: in config.json; None is the tokenizer's. OpenCLIP's conversions say 2, which stands for the highest id.
    """

    width: int
    layers: int
    heads: int
    projects: bool = False
    activation: str = "quick_gelu"
    pads: str = "<|endoftext|>"
    eos_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Sizes of one checkpoint. Widths in channels, `sample_size` in latent pixels.

    Args:
        pipeline: its class in diffusers.
        unet_heads: attention heads of each level, or of all.
        text_encoders: by their part of the checkpoint.
        unet, vae, index: further settings of the U-Net, the VAE and model_index.json.
        scheduler, schedule: class and settings.
        gain: factor on the weights that carry conditions, so that random ones let them matter.
    """

    unet_channels: tuple[int, ...]
    unet_attention: tuple[bool, ...]
    unet_layers: int
    unet_heads: int | tuple[int, ...]
    norm_groups: int
    text_encoders: Mapping[str, TextEncoderSizes]
    vocabulary: int
    vae_channels: tuple[int, ...]
    vae_layers: int
    sample_size: int
    pipeline: str = "StableDiffusionPipeline"
    unet: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)
    scheduler: str = "PNDMScheduler"
    schedule: Mapping[str, Any] = field(
        default_factory=lambda: {**_BETAS, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}
    )
    gain: float = 1.0
    dtype: torch.dtype = torch.float32

    @property
    def context_width(self) -> int:
        """Features of a token's context."""
        return sum(text_encoder.width for text_encoder in self.text_encoders.values())


# The published configuration of Stable Diffusion 1.5: 860 M, 123 M and 84 M parameters.
_SD15 = Architecture(
    unet_channels=(320, 640, 1280, 1280),
    unet_attention=(True, True, True, False),
    unet_layers=2,
    unet_heads=8,
    norm_groups=32,
    text_encoders={"text_encoder": TextEncoderSizes(width=768, layers=12, heads=12)},
    vocabulary=49408,
    vae_channels=(128, 256, 512, 512),
    vae_layers=2,
    sample_size=64,
)

# Stable Diffusion 2.1: 866 M, 340 M and 84 M parameters. Its text encoder is OpenCLIP's without the last layer.
_SD21 = replace(
    _SD15,
    unet_heads=(5, 10, 20, 20),
    text_encoders={"text_encoder": TextEncoderSizes(width=1024, layers=23, heads=16, activation="gelu", pads="!")},
    unet={"use_linear_projection": True, "upcast_attention": True},
    scheduler="DDIMScheduler",
    schedule={
        **_BETAS,
        "prediction_type": "v_prediction",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
    sample_size=96,
)

# Stable Diffusion XL: 2567 M, 123 M, 695 M and 84 M parameters.
_SDXL = replace(
    _SD15,
    pipeline="StableDiffusionXLPipeline",
    unet_channels=(320, 640, 1280),
    unet_attention=(False, True, True),
    unet_heads=(5, 10, 20),
    text_encoders={
        "text_encoder": TextEncoderSizes(width=768, layers=12, heads=12),
        "text_encoder_2": TextEncoderSizes(
            width=1280, layers=32, heads=20, projects=True, activation="gelu", pads="!", eos_id=2
        ),
    },
    unet={
        "use_linear_projection": True,
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    },
    vae={"scaling_factor": 0.13025, "force_upcast": True},
    index={"force_zeros_for_empty_prompt": True},
    scheduler="EulerDiscreteScheduler",
    schedule={**_BETAS, "timestep_spacing": "leading", "steps_offset": 1},
    sample_size=128,
)

_TINY_SD15 = replace(
    _SD15,
    unet_channels=(32, 64, 64),
    unet_attention=(True, True, False),
    unet_layers=1,
    unet_heads=2,
    norm_groups=16,
    text_encoders={"text_encoder": TextEncoderSizes(width=32, layers=3, heads=2)},
    vocabulary=600,
    vae_channels=(16, 16, 32, 32),
    vae_layers=1,
    sample_size=16,
)

# What the families differ in needs one level of the U-Net; tiny-sd15 has several.
_ONE_LEVEL: Mapping[str, Any] = {"unet_channels": (32,), "unet_attention": (True,), "gain": 4.0}

_TINY_SD21 = replace(
    _SD21,
    **_ONE_LEVEL,
    unet_layers=1,
    unet_heads=(2,),
    norm_groups=16,
    text_encoders={"text_encoder": TextEncoderSizes(width=48, layers=3, heads=2, activation="gelu", pads="!")},
    vocabulary=600,
    vae_channels=_TINY_SD15.vae_channels,
    vae_layers=1,
    sample_size=16,
)

_TINY_SDXL = replace(
    _SDXL,
    **_ONE_LEVEL,
    unet_layers=1,
    unet_heads=(2,),
    norm_groups=16,
    text_encoders={
        "text_encoder": TextEncoderSizes(width=32, layers=3, heads=2),
        "text_encoder_2": TextEncoderSizes(
            width=48, layers=3, heads=2, projects=True, activation="gelu", pads="!", eos_id=2
        ),
    },
    unet={
        **_SDXL.unet,
        "transformer_layers_per_block": (2,),
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 48 + 6 * 8,
    },
    vocabulary=600,
    vae_channels=_TINY_SD15.vae_channels,
    vae_layers=1,
    sample_size=16,
)

_CONSISTENCY = {**_BETAS, "original_inference_steps": 50, "clip_sample": False, "set_alpha_to_one": True}
_TRAILING = {**_BETAS, "timestep_spacing": "trailing"}
_NINE = {"in_channels": 9}

ARCHITECTURES: Mapping[str, Architecture] = {
    "sd15": _SD15,
    "sd21": replace(_SD21, dtype=torch.float16),
    "sdxl": replace(_SDXL, dtype=torch.float16),
    "tiny-sd15": _TINY_SD15,
    "tiny-sd15-inpaint": replace(_TINY_SD15, **_ONE_LEVEL, pipeline="StableDiffusionInpaintPipeline", unet=_NINE),
    "tiny-lcm": replace(
        _TINY_SD15,
        **_ONE_LEVEL,
        pipeline="LatentConsistencyModelPipeline",
        unet={"time_cond_proj_dim": 32},
        scheduler="LCMScheduler",
        schedule=_CONSISTENCY,
    ),
    "tiny-sd2-base": replace(_TINY_SD21, scheduler=_SD15.scheduler, schedule=_SD15.schedule),
    "tiny-sd21": _TINY_SD21,
    "tiny-sd2-inpaint": replace(
        _TINY_SD21,
        pipeline="StableDiffusionInpaintPipeline",
        unet={**_TINY_SD21.unet, **_NINE},
        scheduler=_SD15.scheduler,
        schedule=_SD15.schedule,
    ),
    "tiny-sd-turbo": replace(_TINY_SD21, scheduler="EulerDiscreteScheduler", schedule=_TRAILING),
    "tiny-sdxl": _TINY_SDXL,
    "tiny-sdxl-turbo": replace(_TINY_SDXL, scheduler="EulerAncestralDiscreteScheduler", schedule=_TRAILING),
    # As the cards of SDXL-Lightning, Hyper-SD and TCD ask for; their weights look like those that they were made from.
    "tiny-sdxl-lightning": replace(_TINY_SDXL, schedule=_TRAILING),
    "tiny-sdxl-hyper": replace(_TINY_SDXL, scheduler="DDIMScheduler", schedule={**_TRAILING, "clip_sample": False}),
    # No pipeline of diffusers has it: a U-Net that was trained on, to predict a flow.
    "tiny-sdxl-flow": replace(_TINY_SDXL, scheduler="FlowMatchEulerDiscreteScheduler", schedule={"shift": 3.0}),
    "tiny-sdxl-tcd": replace(_TINY_SDXL, scheduler="TCDScheduler", schedule=_CONSISTENCY),
    "tiny-sdxl-refiner": replace(
        _TINY_SDXL,
        pipeline="StableDiffusionXLImg2ImgPipeline",
        text_encoders={"text_encoder_2": _TINY_SDXL.text_encoders["text_encoder_2"]},
        unet={**_TINY_SDXL.unet, "projection_class_embeddings_input_dim": 48 + 5 * 8},
        index={"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True},
        gain=8.0,  # it begins late
    ),
    "tiny-sdxl-inpaint": replace(
        _TINY_SDXL, pipeline="StableDiffusionXLInpaintPipeline", unet={**_TINY_SDXL.unet, **_NINE}
    ),
}
