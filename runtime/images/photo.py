"""Photos and masks as people have them - files, Pillow images, arrays - to arrays of 8-bit pixels."""

from __future__ import annotations

import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from latentrt.arrays import FloatArray
from latentrt.errors import RequestError
from latentrt.values import FilePath, shown

if TYPE_CHECKING:
    from PIL import Image

    Photo: TypeAlias = npt.NDArray[np.uint8] | Image.Image | str | PathLike[str]
    Mask: TypeAlias = npt.NDArray[np.uint8 | np.bool_] | Image.Image | str | PathLike[str]

Pixels: TypeAlias = npt.NDArray[np.uint8]
Bits: TypeAlias = npt.NDArray[np.bool_]
Encode: TypeAlias = Callable[[Pixels, FloatArray, FloatArray], FloatArray]
"""(image uint8 [H, W, 3], keep float32 [H, W, 1], noise float32 [C, h, w]) -> latent float32 [C, h, w]."""

HALF = 128
"""Brightness from which a pixel of a mask is white: the level that diffusers' binarisation comes to."""


_MODES = dict.fromkeys(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"), None) | {
    "La": "LA",
    "RGBa": "RGBA",
    "HSV": "RGB",
}
"""Those of 8 bits a channel, and what those that Pillow converts to few others go through."""

# What Pillow's decoders raise about files that are cut or damaged.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    LookupError,
    TypeError,
    AttributeError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Source:
    """What a picture may be given as; the picture itself is judged when it is read."""

    what: str

    def read(self, name: str, value: Any) -> Any:
        if isinstance(value, str | PathLike):
            return FilePath().read(name, value)
        pillow = sys.modules.get("PIL.Image")  # an image can only come from a module that is loaded
        if not isinstance(value, np.ndarray) and not (pillow is not None and isinstance(value, pillow.Image)):
            raise RequestError(f"the {self.what} is {shown(value)}", expected="a path, a Pillow image or a uint8 array")
        return value


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
    with _readable(photo, "photo"):
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
    with _readable(mask, "mask"):
        image = _open(mask, "mask")
        if not image.has_transparency_data:
            return np.asarray(image.convert("L")) >= HALF
        light, opacity = np.moveaxis(np.asarray(image.convert("LA")).astype(np.uint32), -1, 0)
    seen: Bits = light * opacity >= HALF * 255
    return seen


def _open(source: object, what: str) -> Image.Image:
    """A Pillow image with 8 bits a channel, upright, whose modes convert to all that is asked of it."""
    from PIL import Image, ImageOps

    if isinstance(source, np.ndarray):
        return Image.fromarray(_checked(source, what))
    Source(what).read(what, source)
    if isinstance(source, Image.Image):
        image = source
    else:
        with Image.open(Path(source)) as image:  # type: ignore[arg-type]
            image.load()
    if image.mode not in _MODES:
        raise RequestError(f"the {what} has the pixel format {image.mode}", expected="8 bits a channel")
    if not all(image.size):
        raise RequestError(f"the {what} has no pixels", expected="a picture")
    through = _MODES[image.mode]
    return ImageOps.exif_transpose(image if through is None else image.convert(through))


@contextmanager
def _readable(source: object, what: str) -> Iterator[None]:
    """Whatever Pillow raises about a damaged image, when it is opened or only when its pixels are asked for, as
    RequestError."""
    from PIL import Image, UnidentifiedImageError

    path = source if isinstance(source, str | PathLike) else f"the {what}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except FileNotFoundError:
        raise RequestError(f"no {what} at {path}", expected="an image file", hint="check the path") from None
    except UnidentifiedImageError as error:
        raise RequestError(f"{path} is not an image", expected="a PNG, JPEG, WebP or the like") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise RequestError(
            f"{path} has too many pixels", expected=f"at most {Image.MAX_IMAGE_PIXELS}", hint="shrink it first"
        ) from error
    except _DAMAGE as error:
        raise RequestError(f"{path} cannot be read ({error})", expected="a whole image file") from error


def _checked(array: npt.NDArray[np.generic], what: str) -> Pixels:
    right = array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
    if not right or not array.size:
        shape = ", ".join(map(str, array.shape))
        raise RequestError(
            f"the {what} is {array.dtype} [{shape}]", expected="uint8 [H, W], [H, W, 3] or [H, W, 4], 0 to 255"
        )
    return array.astype(np.uint8, copy=False)
