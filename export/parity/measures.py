"""How alike two outputs or two images are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latentrt.arrays import Array
from latentrt.output.result import Images


def sqnr_db(found: Array, reference: Array) -> float:
    """Power of the reference over that of the error in dB; minus infinity if any value is not finite."""
    error = float(np.square(found.astype(np.float64) - reference).sum())
    power = float(np.square(reference.astype(np.float64)).sum())
    if not np.isfinite(error):
        return float("-inf")
    return float("inf") if error == 0 else 10 * float(np.log10(max(power, 1e-300) / error))


def cosine(found: Array, reference: Array) -> float:
    """Of the angle between the two as vectors."""
    a, b = found.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    return float(a @ b / max(1e-300, float(np.linalg.norm(a) * np.linalg.norm(b))))


def psnr_db(found: Images, reference: Images) -> npt.NDArray[np.float64]:
    """[N] peak signal-to-noise ratio of each image; 100 where nothing differs."""
    error = np.square(found.astype(np.float64) - reference).mean(axis=(1, 2, 3))
    ratios: npt.NDArray[np.float64] = 10 * np.log10(255**2 / np.maximum(error, 255**2 * 1e-10))
    return ratios


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
