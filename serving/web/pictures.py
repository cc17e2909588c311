"""Pictures in bodies: base64, data URLs and uploads to Pillow images within limits, and images to files' bytes."""

import base64
import binascii
import io
import struct
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentrt.errors import RequestError
from latentrt.images.framing import contained
from latentrt.images.photo import read_photo
from latentrt.output.png import encode_png
from latentrt.values import shown

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 1 << 24
"""Of a picture that is uploaded."""

_READ = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, OverflowError, LookupError, TypeError, struct.error, zlib.error)
_QUALITY = 95
_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD", "Qk")  # of those formats, in base64

MEDIA: Mapping[str, str] = MappingProxyType({"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"})
"""Formats of results and their media types."""


def decoded(data: bytes, what: str) -> "Image.Image":
    """A picture file's image, upright. Its pixels are counted before they are decoded.

    Raises:
        RequestError: no picture, a damaged one, or too many pixels.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=_READ)
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        raise RequestError(f"the {what} is not an image", expected=f"a file of {', '.join(_READ)}") from error
    if image.width * image.height > MOST_PIXELS:
        raise RequestError(
            f"the {what} has {image.width}x{image.height} pixels", expected=f"at most {MOST_PIXELS}", hint="shrink it"
        )
    picture = read_photo(image)  # decodes, and refuses what is damaged
    if picture.opacity is None:
        return Image.fromarray(picture.rgb)
    return Image.fromarray(np.dstack([picture.rgb, picture.opacity]))


def from_text(text: Any, what: str) -> "Image.Image":
    """A picture in base64, bare or as a data URL. Nothing is fetched from any other URL.

    Raises:
        RequestError: as `decoded`, or a URL.
    """
    return decoded(bytes_of(text, what), what)


def bytes_of(text: Any, what: str) -> bytes:
    """The bytes of a base64 text or a data URL."""
    if not isinstance(text, str) or not text:
        raise RequestError(f"the {what} is {shown(text)}", expected="a picture file in base64")
    if text[:5].lower() == "data:":
        head, _, text = text.partition(",")
        if not head.lower().endswith(";base64"):
            raise RequestError(f"the {what} is a data URL without base64", expected="data:image/png;base64,...")
    elif "://" in text[:16]:
        raise RequestError(
            f"the {what} is a URL", expected="the picture itself, in base64", hint="URLs are not fetched"
        )
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"the {what} is not base64", expected="a picture file in base64") from error


def looks_like_picture(text: str) -> bool:
    """Whether a text is a picture file in base64 rather than words."""
    return text.startswith("data:image/") or (len(text) > 64 and text.startswith(_BEGINNINGS) and " " not in text[:64])


def encoded(image: NDArray[np.uint8], form: str, *, quality: int | None = None, text: str | None = None) -> bytes:
    """A file's bytes of an image uint8 [H, W, 3]; PNG files hold the text that says how it was made.

    Raises:
        RequestError: the image is too large for the format.
    """
    if form == "png":
        return encode_png(image, text)
    from PIL import Image

    buffer = io.BytesIO()
    options: dict[str, Any] = {"subsampling": 0} if form == "jpeg" else {}
    try:
        Image.fromarray(image).save(buffer, form.upper(), quality=_QUALITY if quality is None else quality, **options)
    except (OSError, ValueError) as error:
        raise RequestError(f"the image does not fit into {form} ({error})", hint="ask for png") from error
    return buffer.getvalue()


def base64_of(data: bytes) -> str:
    """Bytes as base64 without a prefix."""
    return base64.b64encode(data).decode("ascii")


def fitted(image: "Image.Image", size: tuple[int, int], mode: int) -> "Image.Image":
    """A picture of exactly this size (width, height): stretched (mode 0), cropped to cover it (1), or whole with its
    border repeated (2), as AUTOMATIC1111's `resize_mode` has them."""
    from PIL import Image, ImageOps

    if image.size == size:
        return image
    if mode == 0:
        return image.resize(size, Image.Resampling.LANCZOS)
    if mode == 1:
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    inner = image.resize(contained(image.size, size), Image.Resampling.LANCZOS)
    left, top = (size[0] - inner.width) // 2, (size[1] - inner.height) // 2
    pixels = np.asarray(inner)
    pads = [(top, size[1] - inner.height - top), (left, size[0] - inner.width - left)]
    return Image.fromarray(np.pad(pixels, [*pads, *[(0, 0)] * (pixels.ndim - 2)], mode="edge"))
