"""PNG files that say how they were made, and the names of the files of a batch.

The text chunk `parameters` has the form that most tools of the field write and read:

    a lighthouse at dusk
    Negative prompt: blurry
    Steps: 20, Sampler: dpmpp-2m, Schedule type: karras, CFG scale: 7.5, Seed: 7, Size: 512x512, ...
"""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentrt.errors import RequestError
from latentrt.files.atomic import write_whole

_KEY = "parameters"

_FIELD = re.compile(r"\{\{|\}\}|\{(?P<name>\w*)(?::(?P<spec>0?\d{0,2}d?))?\}|(?P<stray>[{}])")


def parameters_text(
    prompt: str,
    *,
    negative: str = "",
    steps: int,
    sampler: str,
    schedule: str,
    guidance: float,
    seed: int,
    size: tuple[int, int],
    model: str,
    version: str,
    extra: Mapping[str, str | int | float] | None = None,
) -> str:
    """The text of the `parameters` chunk.

    Args:
        negative: the negative prompt; its line is left out where it is empty.
        size: (width, height) in pixels.
        extra: more fields, by their names in the field, such as `Denoising strength`.
    """
    fields: dict[str, str | int | float] = {
        "Steps": steps,
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": guidance,
        "Seed": seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model": model,
        **({} if extra is None else extra),
        "Version": f"LatentRT {version}",
    }
    lines = [prompt]
    if negative:
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{name}: {_value(value)}" for name, value in fields.items()))
    return "\n".join(lines)


def write_png(path: Path, image: NDArray[np.uint8], *, parameters: str | None = None) -> None:
    """Write an image; the file appears whole or not at all.

    Args:
        image: uint8 [H, W, 3], RGB.
        parameters: the text chunk (tEXt, or iTXt where Latin-1 cannot hold it); None: no chunk.
    """
    check_pixels(image)
    write_whole(path, encode_png(image, parameters))


def check_pixels(image: NDArray[np.uint8]) -> None:
    """Raises RequestError for anything but uint8 [H, W, 3]."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise RequestError(f"an image {image.dtype} {list(image.shape)}", expected="uint8 [H, W, 3]")


def expand_pattern(pattern: str, *, index: int, seed: int, count: int = 1) -> Path:
    """The path of one image of a batch.

    `{index}` and `{seed}` are replaced, with a width if wanted (`{index:04d}`); `{{` and `}}` stand for
    braces. A pattern without a field names one file: for a larger `count`, `-{index}` goes before its suffix.

    Args:
        index: the image's place in the batch, from 0.

    Raises:
        RequestError: an unknown field, or a brace that is not part of one.
    """
    values = {"index": index, "seed": seed}
    has_field = False

    def replace(match: re.Match[str]) -> str:
        nonlocal has_field
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match["stray"] is not None or match["name"] not in values:
            raise RequestError(
                f"{match[0]!r} in the output pattern {pattern!r}",
                expected="the fields {index} and {seed}, with a width such as {index:04d} if wanted",
                hint="write {{ and }} for braces",
            )
        has_field = True
        return format(values[match["name"]], match["spec"] or "d")

    path = Path(_FIELD.sub(replace, pattern))
    if has_field or count == 1:
        return path
    return path.with_name(f"{path.stem}-{index}{path.suffix}")


def number(value: float) -> str:
    """The shortest text that is read as this number again."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _value(value: str | int | float) -> str:
    """A field's value, quoted as JSON where it holds a character that separates fields."""
    if isinstance(value, float):
        return number(value)
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def encode_png(image: NDArray[np.uint8], parameters: str | None = None) -> bytes:
    """The bytes of a PNG file of an image uint8 [H, W, 3], with the text chunk `parameters` if given."""
    from PIL import Image  # here: 35 ms that `import latentrt` need not take
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if parameters is not None:
        info.add_text(_KEY, parameters)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
