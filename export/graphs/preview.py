"""A linear map from latents to colours, so that a preview costs no decoder call."""

import torch
from torch import nn

SAMPLES = 16


def fit_preview(decoder: nn.Module, *, channels: int) -> list[list[float]]:
    """Least squares from latent pixels (and 1) to the mean colour that the decoder gives them.

    The decoder is shown smooth random latents: neighbouring pixels agree, as they do in pictures.

    Args:
        decoder: latent [B, C, h, w] -> uint8 [B, H, W, 3].
        channels: C.

    Returns:
        [C + 1, 3], colours in 0..1; the last row is the constant.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(SAMPLES, channels, 2, 2, generator=generator)
    latents = nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear", align_corners=True)
    with torch.no_grad():
        images = torch.cat([decoder(latent[None]) for latent in latents])  # [N, H, W, 3]
    colours = nn.functional.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float() / 255, (8, 8))
    pixels = latents.permute(0, 2, 3, 1).reshape(-1, channels)
    design = torch.cat([pixels, torch.ones(len(pixels), 1)], dim=1).double()
    target = colours.permute(0, 2, 3, 1).reshape(-1, 3).double()
    solution = torch.linalg.lstsq(design, target).solution
    return [[round(value, 6) for value in row] for row in solution.tolist()]
