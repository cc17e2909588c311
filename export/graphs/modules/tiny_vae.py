"""The distilled autoencoder (`AutoencoderTiny` of diffusers, after TAESD) between latents and bytes."""

from diffusers import AutoencoderTiny
from torch import Tensor, nn

from latentrt.export.graphs.modules.vae import LatentAffine, to_bytes, to_pixels


class TinyDecoder(nn.Module):
    """latent [B, C, h, w] float32 -> image [B, H, W, 3] uint8."""

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.decoder = vae.decoder
        self.affine = LatentAffine(vae)

    def forward(self, latent: Tensor) -> Tensor:
        return to_bytes(self.decoder(self.affine.to_vae(latent)))


class TinyEncoder(nn.Module):
    """image [B, H, W, 3] uint8, keep [B, H, W, 1] float32 -> latent [B, C, h, w].

    There is no posterior to draw from, hence no `noise`.
    """

    def __init__(self, vae: AutoencoderTiny) -> None:
        super().__init__()
        self.encoder = vae.encoder
        self.affine = LatentAffine(vae)

    def forward(self, image: Tensor, keep: Tensor) -> Tensor:
        return self.affine.to_network(self.encoder(to_pixels(image, keep)))
