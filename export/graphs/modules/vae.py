"""Latents to bytes and bytes to latents: the two halves of the VAE with all image arithmetic inside."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn


class Decoder(nn.Module):
    """latent [B, C, h, w] float32 -> image [B, H, W, 3] uint8."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv = nn.Identity() if vae.post_quant_conv is None else vae.post_quant_conv
        self.decoder = vae.decoder
        self.affine = LatentAffine(vae)

    def forward(self, latent: Tensor) -> Tensor:
        return to_bytes(self.decoder(self.post_quant_conv(self.affine.to_vae(latent))))


class Encoder(nn.Module):
    """image [B, H, W, 3] uint8, keep [B, H, W, 1] float32, noise [B, C, h, w] float32 -> latent [B, C, h, w].

    `keep` masks after normalisation (0 = mid grey), as inpainting models expect; `noise` draws from the
    posterior, zeros give its mean.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.encoder = vae.encoder
        self.quant_conv = nn.Identity() if vae.quant_conv is None else vae.quant_conv
        self.affine = LatentAffine(vae)

    def forward(self, image: Tensor, keep: Tensor, noise: Tensor) -> Tensor:
        moments = self.quant_conv(self.encoder(to_pixels(image, keep)))
        mean, log_variance = moments.chunk(2, dim=1)
        sample = mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise
        return self.affine.to_network(sample)


def to_bytes(image: Tensor) -> Tensor:
    """[B, 3, H, W] in -1..1 to [B, H, W, 3] uint8, by the scaling, clamping and rounding of
    `VaeImageProcessor.postprocess` (diffusers, image_processor.py)."""
    levels = ((image / 2 + 0.5).clamp(0, 1) * 255).round()
    return levels.permute(0, 2, 3, 1).to(torch.uint8)


def to_pixels(image: Tensor, keep: Tensor) -> Tensor:
    """[B, H, W, 3] uint8 to [B, 3, H, W] in -1..1, mid grey where `keep` [B, H, W, 1] is 0."""
    return ((image.to(torch.float32) / 127.5 - 1) * keep).permute(0, 3, 1, 2)


class LatentAffine(nn.Module):
    """Between the VAE's own latents and those that the network sees: a scale and a shift, of all channels or of each.

    Follows `StableDiffusionXLPipeline.__call__` (diffusers) where the VAE has a mean and a deviation for each channel,
    else `StableDiffusion3Pipeline.__call__`, whose shift the other pipelines lack. Which of them a checkpoint may have
    is checked by `latentrt.export.checkpoint.latents`.
    """

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        config = vae.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        self.scale: float | Tensor = float(config.scaling_factor)
        self.shift: float | Tensor = float(config.shift_factor or 0)
        if mean is not None and deviation is not None:
            self.scale = self.scale / torch.tensor(deviation, dtype=torch.float32)[:, None, None]  # [C, 1, 1]
            self.shift = torch.tensor(mean, dtype=torch.float32)[:, None, None]

    def to_vae(self, latent: Tensor) -> Tensor:
        return latent / self.scale + self.shift

    def to_network(self, latent: Tensor) -> Tensor:
        return (latent - self.shift) * self.scale
