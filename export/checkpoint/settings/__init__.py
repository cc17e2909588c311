"""What the configuration files of a checkpoint may say: every key of every class, and the values that are carried."""

from collections.abc import Mapping

from latentrt.export.checkpoint.settings.autoencoders import AUTOENCODER_KL, AUTOENCODER_TINY
from latentrt.export.checkpoint.settings.networks import CONTROLNET, SD3_CONTROLNET, SD3_TRANSFORMER, UNET
from latentrt.export.checkpoint.settings.pipelines import PIPELINES
from latentrt.export.checkpoint.settings.schedulers import SCHEDULERS
from latentrt.export.checkpoint.settings.table import Settings
from latentrt.export.checkpoint.settings.text_encoders import CLIP_TEXT, T5_ENCODER

__all__ = ["CONTROLNETS", "PARTS", "PIPELINES", "SCHEDULERS", "Settings"]

PARTS: Mapping[str, Settings] = {
    "UNet2DConditionModel": UNET,
    "SD3Transformer2DModel": SD3_TRANSFORMER,
    "AutoencoderKL": AUTOENCODER_KL,
    "AutoencoderTiny": AUTOENCODER_TINY,
    "CLIPTextModel": CLIP_TEXT,
    "CLIPTextModelWithProjection": CLIP_TEXT,
    "T5EncoderModel": T5_ENCODER,
}
"""Of the parts with weights, by the class that model_index.json names."""

CONTROLNETS: Mapping[str, Settings] = {"ControlNetModel": CONTROLNET, "SD3ControlNetModel": SD3_CONTROLNET}
"""By the class that a ControlNet's config.json names."""
