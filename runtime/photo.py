"""Photos and masks as people have them - files, Pillow images, arrays - to arrays of 8-bit pixels."""

from __future__ import annotations

import struct
import warnings
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from latentrt.errors import RequestError

if TYPE_CHECKING:
    from PIL import Image

    Photo: TypeAlias = npt.NDArray[np.uint8] | Image.Image | str | PathLike[str]
    Mask: TypeAlias = npt.NDArray[np.uint8 | np.bool_] | Image.Image | str | PathLike[str]

Pixels: TypeAlias = npt.NDArray[np.uint8]
Bits: TypeAlias = npt.NDArray[np.bool_]

HALF = 128
"""Brightness from which a pixel of a mask is white: the level that diffusers' binarisation comes to."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A photo that has been read.

    Args:
        rgb: uint8 [H, W, 3]; where it is transparent, the colours as they are stored.
        opacity: uint8 [H, W], or None where all of it is opaque.
    """

    rgb: Pixels
    opacity: Pixels | None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    def on_white(self) -> Pixels:
        """uint8 [H, W, 3], as it looks on white paper."""
        if self.opacity is None:
            return self.rgb
        opacity = self.opacity[..., None].astype(np.uint32)
        levels: Pixels = ((self.rgb * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
        return levels


def read_photo(photo: Photo) -> Picture:
    """Pixels of a photo, upright as its EXIF orientation says.

    Args:
        photo: a path, a Pillow image, or uint8 [H, W], [H, W, 3] or [H, W, 4].

    Raises:
        RequestError: no image, one that cannot be read, or too many pixels.
    """
    image = _open(photo, "photo")
    if not image.has_transparency_data:
        return Picture(np.asarray(image.convert("RGB")), None)
    pixels = np.asarray(image.convert("RGBA"))
    opacity = pixels[..., 3]
    return Picture(np.ascontiguousarray(pixels[..., :3]), None if (opacity == 255).all() else opacity)


def read_mask(mask: Mask) -> Bits:
    """bool [H, W], True where the mask is white, which is where the model paints. Transparent parts count as black.

    Args:
        mask: a path, a Pillow image, uint8 as a photo, or bool [H, W].

    Raises:
        RequestError: as `read_photo`.
    """
    if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.ndim == 2:
        return mask.astype(np.bool_, copy=False)
    image = _open(mask, "mask")
    if not image.has_transparency_data:
        return np.asarray(image.convert("L")) >= HALF
    light, opacity = np.moveaxis(np.asarray(image.convert("LA")).astype(np.uint32), -1, 0)
    seen: Bits = light * opacity >= HALF * 255
    return seen


def _open(source: object, what: str) -> Image.Image:
    """A Pillow image with 8 bits a channel, upright."""
    from PIL import Image, ImageOps

    if isinstance(source, np.ndarray):
        return Image.fromarray(_checked(source, what))
    if isinstance(source, str | PathLike):
        image = _read(Path(source), what)
    elif isinstance(source, Image.Image):
        image = source
    else:
        raise RequestError(
            f"the {what} is a {type(source).__name__}", expected="a path, a Pillow image or a uint8 array"
        )
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"):
        raise RequestError(f"the {what} has the pixel format {image.mode}", expected="8 bits a channel")
    return ImageOps.exif_transpose(image)


def _read(path: Path, what: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return image
    except FileNotFoundError:
        raise RequestError(f"no {what} at {path}", expected="an image file", hint="check the path") from None
    except UnidentifiedImageError as error:
        raise RequestError(f"{path} is not an image", expected="a PNG, JPEG, WebP or the like") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise RequestError(
            f"{path} has too many pixels", expected=f"at most {Image.MAX_IMAGE_PIXELS}", hint="shrink it first"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise RequestError(f"{path} cannot be read ({error})", expected="a whole image file") from error


def _checked(array: npt.NDArray[np.generic], what: str) -> Pixels:
    right = array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
    if not right or not array.size:
        shape = ", ".join(map(str, array.shape))
        raise RequestError(
            f"the {what} is {array.dtype} [{shape}]", expected="uint8 [H, W], [H, W, 3] or [H, W, 4], 0 to 255"
        )
    return array.astype(np.uint8, copy=False)
