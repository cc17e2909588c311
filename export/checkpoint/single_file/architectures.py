"""What is told apart in single files, a row each: the published configuration of all that shapes do not tell."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from latentrt.export.checkpoint.single_file import layouts, sizes
from latentrt.export.checkpoint.single_file.layouts import Layout

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRow:
    """One network of a checkpoint.

    Args:
        part: its folder in diffusers' layout.
        prefixes: where it may lie in a file.
        layouts: how its keys may be named.
        sizes: its configuration as far as shapes tell it.
        tokenizer: folder of the tokenizer that it needs.
    """

    part: str
    kind: type[nn.Module]
    prefixes: tuple[str, ...]
    layouts: tuple[Layout, ...]
    sizes: Callable[[sizes.Shapes], dict[str, Any]]
    config: Config = field(default_factory=dict)
    tokenizer: str | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One kind of checkpoint.

    Args:
        tells: whether a network of these sizes, in a file with these keys, belongs to it.
        pipelines: diffusers' pipeline, by the network's input channels.
        network: what the sizes of the network leave open.
        head_width: features of an attention head; None where `network` states the heads.
        vae: what the sizes of the autoencoder leave open.
        scheduler: scheduler_config.json.
        index: further entries of model_index.json.
    """

    name: str
    tells: Callable[[Config, Collection[str]], bool]
    pipelines: Mapping[int, str]
    network: Config
    head_width: int | None = None
    vae: Config
    text_encoders: tuple[PartRow, ...]
    scheduler: Config
    index: Config = field(default_factory=dict)


_NETWORK_PREFIXES = ("model.diffusion_model.", "")
NETWORKS = (
    PartRow(
        part="unet", kind=UNet2DConditionModel, prefixes=_NETWORK_PREFIXES, layouts=layouts.UNET, sizes=sizes.unet_sizes
    ),
    PartRow(
        part="transformer",
        kind=SD3Transformer2DModel,
        prefixes=_NETWORK_PREFIXES,
        layouts=layouts.TRANSFORMER,
        sizes=sizes.transformer_sizes,
    ),
)
VAE = PartRow(
    part="vae",
    kind=AutoencoderKL,
    prefixes=("first_stage_model.", "vae.", ""),
    layouts=layouts.VAE,
    sizes=sizes.vae_sizes,
)


def _clip(part: str, kind: type[nn.Module], prefix: str, names: tuple[Layout, ...], activation: str) -> PartRow:
    return PartRow(
        part=part,
        kind=kind,
        prefixes=(prefix,),
        layouts=names,
        sizes=sizes.clip_sizes,
        config={"hidden_act": activation},
        tokenizer=part.replace("text_encoder", "tokenizer"),
    )


_T5 = PartRow(
    part="text_encoder_3",
    kind=T5EncoderModel,
    prefixes=("text_encoders.t5xxl.transformer.",),
    layouts=layouts.T5,
    sizes=sizes.t5_sizes,
    config={"feed_forward_proj": "gated-gelu"},
    tokenizer="tokenizer_3",
    optional=True,
)
_BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
_PNDM = {"_class_name": "PNDMScheduler", **_BETAS, "skip_prk_steps": True, "prediction_type": "epsilon"}
_EULER = {"_class_name": "EulerDiscreteScheduler", **_BETAS, "timestep_spacing": "leading"}
_SD2_TEXT_ENCODER = _clip(
    "text_encoder", CLIPTextModel, "cond_stage_model.model.", layouts.OPEN_CLIP_PENULTIMATE, "gelu"
)
_SD_PIPELINES = {4: "StableDiffusionPipeline", 9: "StableDiffusionInpaintPipeline"}
_SD_VAE = {"scaling_factor": 0.18215}
_SDXL_VAE = {"scaling_factor": 0.13025, "force_upcast": True}


def _is_sd1(network: Config, _: Collection[str]) -> bool:
    return network.get("addition_embed_type", "") is None and not network["use_linear_projection"]


def _is_sd2(network: Config, _: Collection[str]) -> bool:
    return network.get("addition_embed_type", "") is None and network["use_linear_projection"]


def _is_sdxl(network: Config, keys: Collection[str]) -> bool:
    return bool(network.get("addition_embed_type")) and not _refines(network, keys)


def _is_refiner(network: Config, keys: Collection[str]) -> bool:
    return bool(network.get("addition_embed_type")) and _refines(network, keys)


def _refines(network: Config, keys: Collection[str]) -> bool:
    """The refiner has OpenCLIP's text encoder alone, the base has it second. In a file without text encoders: the
    published base attends on its lowest level, the refiner does not."""
    first = {key.split(".")[3] for key in keys if key.startswith("conditioner.embedders.0.")}
    return "model" in first if first else not network["down_block_types"][-1].startswith("CrossAttn")


def _is_sd3(network: Config, _: Collection[str]) -> bool:
    return "joint_attention_dim" in network


ARCHITECTURES = (
    Architecture(
        name="Stable Diffusion 1.x",
        tells=_is_sd1,
        pipelines=_SD_PIPELINES,
        network={"sample_size": 64, "attention_head_dim": 8},
        vae=_SD_VAE,
        text_encoders=(
            _clip("text_encoder", CLIPTextModel, "cond_stage_model.transformer.", layouts.CLIP, "quick_gelu"),
        ),
        scheduler=_PNDM,
    ),
    # The two that follow have equal keys and shapes: only what the network predicts tells them apart.
    Architecture(
        name="Stable Diffusion 2.x base",
        tells=_is_sd2,
        pipelines=_SD_PIPELINES,
        network={"sample_size": 64},
        head_width=64,
        vae=_SD_VAE,
        text_encoders=(_SD2_TEXT_ENCODER,),
        scheduler=_PNDM,
    ),
    Architecture(
        name="Stable Diffusion 2.x for 768 px",
        tells=_is_sd2,
        pipelines=_SD_PIPELINES,
        network={"sample_size": 96},
        head_width=64,
        vae=_SD_VAE,
        text_encoders=(_SD2_TEXT_ENCODER,),
        scheduler={"_class_name": "DDIMScheduler", **_BETAS, "prediction_type": "v_prediction"},
    ),
    Architecture(
        name="Stable Diffusion XL",
        tells=_is_sdxl,
        pipelines={4: "StableDiffusionXLPipeline", 9: "StableDiffusionXLInpaintPipeline"},
        network={"sample_size": 128, "addition_time_embed_dim": 256},
        head_width=64,
        vae=_SDXL_VAE,
        text_encoders=(
            _clip("text_encoder", CLIPTextModel, "conditioner.embedders.0.transformer.", layouts.CLIP, "quick_gelu"),
            _clip(
                "text_encoder_2",
                CLIPTextModelWithProjection,
                "conditioner.embedders.1.model.",
                layouts.OPEN_CLIP,
                "gelu",
            ),
        ),
        scheduler={**_EULER, "prediction_type": "epsilon"},
        index={"force_zeros_for_empty_prompt": True},
    ),
    Architecture(
        name="Stable Diffusion XL refiner",
        tells=_is_refiner,
        pipelines={4: "StableDiffusionXLImg2ImgPipeline"},
        network={"sample_size": 128, "addition_time_embed_dim": 256},
        head_width=64,
        vae=_SDXL_VAE,
        text_encoders=(
            _clip(
                "text_encoder_2",
                CLIPTextModelWithProjection,
                "conditioner.embedders.0.model.",
                layouts.OPEN_CLIP,
                "gelu",
            ),
        ),
        scheduler={**_EULER, "prediction_type": "epsilon"},
        index={
            "force_zeros_for_empty_prompt": False,
            "requires_aesthetics_score": True,
            "text_encoder": [None, None],
            "tokenizer": [None, None],
        },
    ),
    Architecture(
        name="Stable Diffusion 3",
        tells=_is_sd3,
        pipelines={16: "StableDiffusion3Pipeline"},
        network={"sample_size": 128},
        vae={"scaling_factor": 1.5305, "shift_factor": 0.0609, "force_upcast": True},
        text_encoders=(
            _clip(
                "text_encoder",
                CLIPTextModelWithProjection,
                "text_encoders.clip_l.transformer.",
                layouts.CLIP_PROJECTED,
                "quick_gelu",
            ),
            _clip(
                "text_encoder_2", CLIPTextModelWithProjection, "text_encoders.clip_g.transformer.", layouts.CLIP, "gelu"
            ),
            _T5,
        ),
        scheduler={"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
    ),
)

# Files that are something else: what their keys contain, and what they are.
OTHERS = (
    ("lora_", "a LoRA, which changes a checkpoint and is none"),
    ("control_model.", "a ControlNet, not the checkpoint that it steers"),
    ("controlnet_cond_embedding", "a ControlNet, not the checkpoint that it steers"),
    ("double_blocks.", "FLUX, which cannot be exported"),
    ("edm_std", "a model of continuous noise levels (EDM), which cannot be exported"),
    ("edm_mean", "a model of continuous noise levels (EDM), which cannot be exported"),
    ("edm_vpred.", "a model of continuous noise levels (EDM), which cannot be exported"),
    ("scaled_fp8", "quantised to scaled fp8; take the file in fp16 or fp32"),
    (".quant_state", "quantised for bitsandbytes; take the file in fp16 or fp32"),
    ("scale_weight", "quantised to scaled fp8; take the file in fp16 or fp32"),
)
