"""Picture files by their suffix, each with the text that says how the picture was made."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from latentrt.errors import RequestError
from latentrt.files.atomic import write_whole
from latentrt.output.png import check_pixels, encode_png

QUALITY = 95
"""Of JPEG and WebP, which lose a little; PNG keeps every pixel."""

_EXIF, _USER_COMMENT = 0x8769, 0x9286  # Exif 2.3, 4.6.3 and 4.6.5


def _encode_jpeg(image: NDArray[np.uint8], parameters: str | None) -> bytes:
    return _encoded(image, "JPEG", parameters, subsampling=0)


def _encode_webp(image: NDArray[np.uint8], parameters: str | None) -> bytes:
    return _encoded(image, "WEBP", parameters)


FORMATS: Mapping[str, Callable[[NDArray[np.uint8], str | None], bytes]] = MappingProxyType(
    {".png": encode_png, ".jpg": _encode_jpeg, ".jpeg": _encode_jpeg, ".webp": _encode_webp}
)
"""By suffix, in lower case: what makes a file's bytes of an image uint8 [H, W, 3] and its text."""


def check_picture(path: Path, *, overwrite: bool = True) -> None:
    """Raises RequestError for a name that no picture can be written under, or a file that is there and may not be
    replaced."""
    if path.suffix.lower() not in FORMATS or path.is_dir():
        raise RequestError(
            f"output '{path}'", expected=f"a file that ends in {', '.join(FORMATS)}", hint="such as out/{seed}.png"
        )
    if not overwrite and path.exists():
        raise RequestError(f"{path} is there already", expected="a new name", hint="or overwrite=True, --overwrite")


def write_picture(
    path: Path, image: NDArray[np.uint8], *, parameters: str | None = None, overwrite: bool = True
) -> None:
    """Writes an image in the format of its name's suffix; the file appears whole or not at all.

    Args:
        path: a file that ends in .png, .jpg, .jpeg or .webp.
        image: uint8 [H, W, 3], RGB.
        parameters: how it was made: PNG's text chunk of that name, in the others the user comment of Exif, where the
            programs of the field look for it; None: nothing.
        overwrite: replaces a file that is there already, instead of refusing.

    Raises:
        RequestError: another suffix, a file that is there, or an image of another type or shape.
        EnvironmentLacks: the file cannot be written: disk full, no such folder, no permission.
    """
    check_picture(path, overwrite=overwrite)
    check_pixels(image)
    write_whole(path, FORMATS[path.suffix.lower()](image, parameters))


def _encoded(image: NDArray[np.uint8], form: str, parameters: str | None, **options: int) -> bytes:
    from PIL import Image

    exif, buffer = Image.Exif(), io.BytesIO()
    try:
        if parameters is not None:
            exif[_EXIF] = {_USER_COMMENT: b"UNICODE\0" + parameters.encode("utf-16-be")}
        Image.fromarray(image).save(buffer, form, quality=QUALITY, exif=exif, **options)
    except (OSError, ValueError) as error:  # sides or a text beyond what the format holds
        height, width = image.shape[:2]
        raise RequestError(
            f"{width}x{height} px and its text do not fit into {form} ({error})", hint="write a PNG file"
        ) from error
    return buffer.getvalue()
