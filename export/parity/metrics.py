"""How alike two outputs or two images are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latentrt.arrays import Array
from latentrt.output.result import Images

EQUAL_DB = 100.0  # of images in which nothing differs: a number, for medians, charts and JSON


def signal_to_noise_db(found: Array, reference: Array) -> float:
    """Power of the reference over that of the error, dB; for uint8 the power of full scale, which makes it PSNR.

    Minus infinity for another shape or dtype, or a value that is not finite; infinity for equal arrays.
    """
    if found.shape != reference.shape or found.dtype != reference.dtype or not np.isfinite(found).all():
        return float("-inf")
    wanted = reference.astype(np.float64)
    noise = np.square(found.astype(np.float64) - wanted).mean()
    signal = 255.0**2 if reference.dtype == np.uint8 else np.square(wanted).mean()
    return float("inf") if noise == 0 else float(10 * np.log10(max(signal, 1e-300) / noise))


def psnr_db(found: Images, reference: Images) -> npt.NDArray[np.float64]:
    """[N] peak signal-to-noise ratio of each image, uint8 [N, H, W, 3]; `EQUAL_DB` where nothing differs."""
    ratios = [signal_to_noise_db(a, b) for a, b in zip(found, reference, strict=True)]
    return np.minimum(ratios, EQUAL_DB)


def worst_psnr_db(found: Images, reference: Images) -> float:
    """Of the images of a batch."""
    return float(psnr_db(found, reference).min())


def median_psnr_db(found: Images, reference: Images) -> float:
    """Of the images of a batch."""
    return float(np.median(psnr_db(found, reference)))


def cosine(found: Array, reference: Array) -> float:
    """Of the angle between the two as vectors."""
    a, b = found.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    return float(a @ b / max(1e-300, float(np.linalg.norm(a) * np.linalg.norm(b))))


def ssim(found: Images, reference: Images) -> npt.NDArray[np.float64]:
    """[N] structural similarity (Wang et al. 2004, equation 13) of the grey images, uniform windows of 8x8."""
    a, b = (images.astype(np.float64) @ (0.299, 0.587, 0.114) for images in (found, reference))
    mean_a, mean_b = _windows(a), _windows(b)
    var_a, var_b = _windows(a * a) - mean_a**2, _windows(b * b) - mean_b**2
    covariance = _windows(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity /= (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    means: npt.NDArray[np.float64] = similarity.mean(axis=(1, 2))
    return means


def _windows(images: npt.NDArray[np.float64], side: int = 8) -> npt.NDArray[np.float64]:
    """Means over all windows of side x side pixels, [N, H, W] -> [N, H - side + 1, W - side + 1]."""
    total = np.pad(images, ((0, 0), (1, 0), (1, 0))).cumsum(axis=1).cumsum(axis=2)
    corners = total[:, side:, side:] - total[:, :-side, side:] - total[:, side:, :-side] + total[:, :-side, :-side]
    means: npt.NDArray[np.float64] = corners / side**2
    return means
