"""Between an autoencoder's own latents and those of the network: which of its settings a pipeline uses."""

from collections.abc import Mapping
from typing import Any

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.checkpoint.settings.pipelines import LATENT_SETTINGS

_SETTINGS = ("shift_factor", "latents_mean", "latents_std")


def vae_factor(vae: Mapping[str, Any]) -> int:
    """Pixels of an image that a latent pixel stands for, along each axis, as the pipelines of diffusers count."""
    levels = vae.get("decoder_block_out_channels", vae.get("block_out_channels", ()))
    return int(2 ** (len(levels) - 1))


def check_latents(checkpoint: Checkpoint, *, extra_channels: int = 0) -> None:
    """Refuses an autoencoder whose settings the checkpoint's pipeline (diffusers) leaves out, or cannot do without.

    `StableDiffusionXLPipeline` decodes `latents * latents_std / scaling_factor + latents_mean`, and its image to image
    form encodes by the inverse; `StableDiffusion3Pipeline` has `shift_factor` in their place, and the others neither.

    Args:
        extra_channels: of an inpainting network, whose pipeline encodes the masked image without mean and deviation.
    """
    vae, pipeline = checkpoint.config("vae"), str(checkpoint.index["_class_name"])
    used, where = LATENT_SETTINGS[pipeline], checkpoint.root / "vae"
    for key in _SETTINGS:
        if vae.get(key) not in (None, 0) and key not in used:
            raise CheckpointError(
                f"{where} sets {key} to {vae[key]!r}, and a {pipeline} of diffusers decodes without it",
                expected="null",
                hint="the VAE belongs to another family; set the key to null to export what that pipeline makes of it",
            )
    if "shift_factor" in used and vae["shift_factor"] is None:
        raise CheckpointError(f"{where} sets no shift_factor", expected=f"a number, which a {pipeline} adds")
    statistics = [vae[key] for key in ("latents_mean", "latents_std") if vae.get(key) is not None]
    if not statistics:
        return
    if [len(each) for each in statistics] != [vae["latent_channels"]] * 2:
        raise CheckpointError(
            f"{where} has latents_mean = {vae['latents_mean']!r} and latents_std = {vae['latents_std']!r}",
            expected=f"both, or neither, each of {vae['latent_channels']} numbers",
        )
    if extra_channels:
        raise CheckpointError(
            f"{where} has latents_mean and latents_std, and the network sees a masked image",
            expected="a VAE without them",
            hint="the inpainting pipelines of diffusers encode without them and decode with them",
        )
