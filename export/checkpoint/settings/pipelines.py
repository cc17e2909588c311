"""Settings of the pipelines: the parts and switches of model_index.json."""

import inspect
from collections.abc import Mapping

import diffusers

from latentrt.export.checkpoint.settings.table import Settings
from latentrt.export.checkpoint.settings.values import FLAG, Values, listed, optional

_NAMES = listed(optional(Values(lambda value: isinstance(value, str), "a name")))
_PART = Values(lambda value: value is None or _NAMES.holds(value), "a library and a class")

_PARTS = (
    "unet", "transformer", "vae", "scheduler",
    *(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")),
)  # fmt: skip
# Shown a finished picture, or a picture that no request here can give.
_IDLE_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
_IDLE = ("requires_safety_checker", "add_watermarker")

_CARRIED: Mapping[str, Values] = {
    **dict.fromkeys(_PARTS, _PART),
    "force_zeros_for_empty_prompt": FLAG,
    "requires_aesthetics_score": FLAG,
}

_WITHOUT = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
)
_WITH_STATISTICS = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")
_WITH_SHIFT = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")


def _row(name: str) -> Settings:
    kind = getattr(diffusers, name)
    keys = inspect.signature(kind).parameters
    carried = {key: values for key, values in _CARRIED.items() if key in keys}
    return Settings(kind=kind, carried=carried, idle=frozenset((*_IDLE, *_IDLE_PARTS)))


OLD_SAMPLE_SIZES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
"""Those that take a `sample_size` below 64 for 64 where the U-Net was saved by diffusers before 0.9: the first files of
Stable Diffusion 1 say 32."""

OVERRULED_SCHEDULERS: Mapping[str, Mapping[str, object]] = {
    "StableDiffusionPipeline": {"steps_offset": 1, "clip_sample": False},
    "StableDiffusionImg2ImgPipeline": {"steps_offset": 1, "clip_sample": False},
    "StableDiffusionInpaintPipeline": {"steps_offset": 1, "skip_prk_steps": True},
}
"""What each sets in its scheduler's configuration, whatever the file says."""

LATENT_SETTINGS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_WITHOUT, ()),
    **dict.fromkeys(_WITH_STATISTICS, ("latents_mean", "latents_std")),
    **dict.fromkeys(_WITH_SHIFT, ("shift_factor",)),
}
"""What each uses of its autoencoder's settings besides `scaling_factor`, between latents and pictures."""

PIPELINES: Mapping[str, Settings] = {name: _row(name) for name in LATENT_SETTINGS}
"""By the class that model_index.json names."""
