"""Photos and masks from files, Pillow images and arrays: what is read, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentrt import RequestError
from latentrt.images.photo import read_mask, read_photo

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("source", ["array", "image", "path", "text"])
def test_a_photo_is_the_same_however_it_is_given(source: str, tmp_path: Path):
    path = saved(tmp_path / "photo.png", Image.fromarray(PIXELS))
    photo = {"array": PIXELS, "image": Image.fromarray(PIXELS), "path": path, "text": str(path)}[source]
    picture = read_photo(photo)
    assert np.array_equal(picture.rgb, PIXELS)
    assert picture.opacity is None
    assert picture.size == (9, 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_stands_as_its_exif_orientation_says(orientation: int, tmp_path: Path):
    turn = {
        1: lambda x: x,
        2: np.fliplr,
        3: lambda x: np.rot90(x, 2),
        4: np.flipud,
        5: lambda x: np.fliplr(np.rot90(x, -1)),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: np.fliplr(np.rot90(x, 1)),
        8: lambda x: np.rot90(x, 1),
    }[orientation]
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "turned.png", image, exif=exif)
    assert np.array_equal(read_photo(path).rgb, turn(PIXELS))
    assert np.array_equal(read_photo(Image.open(path)).rgb, turn(PIXELS))


def test_transparency_is_opacity_and_becomes_white_where_nobody_asks_for_it():
    rgba = np.dstack([PIXELS, np.full((6, 9), 255, np.uint8)])
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 51
    picture = read_photo(rgba)
    assert picture.opacity is not None
    assert np.array_equal(picture.opacity, rgba[..., 3])
    assert np.array_equal(picture.rgb, PIXELS)
    seen = picture.on_white()
    assert seen[0, 0].tolist() == [255, 255, 255]
    assert np.abs(seen[0, 1] - (0.2 * PIXELS[0, 1] + 0.8 * 255)).max() <= 0.5 + 1e-6
    assert np.array_equal(seen[1:], PIXELS[1:])


def test_an_opacity_of_255_everywhere_is_none():
    assert read_photo(np.dstack([PIXELS, np.full((6, 9), 255, np.uint8)])).opacity is None


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "LA"])
def test_other_pixel_formats_are_converted(mode: str):
    image = Image.fromarray(PIXELS).convert(mode)
    picture = read_photo(image)
    assert np.array_equal(picture.rgb, np.asarray(image.convert("RGB")))


def test_premultiplied_pixels_are_those_that_pillow_divides_again():
    premultiplied = Image.fromarray(np.dstack([PIXELS[..., 0], np.full((6, 9), 128, np.uint8)]), "LA").convert("La")
    divided = premultiplied.convert("LA")
    assert np.array_equal(read_photo(premultiplied).rgb, read_photo(divided).rgb)
    assert read_photo(premultiplied).opacity is not None


def test_a_mask_is_white_from_128():
    levels = np.array([[0, 127, 128, 255]], np.uint8)
    expected = [[False, False, True, True]]
    assert read_mask(levels).tolist() == expected
    assert read_mask(Image.fromarray(levels)).tolist() == expected
    assert read_mask(levels >= 128).tolist() == expected
    assert read_mask(np.dstack([levels] * 3)).tolist() == expected


def test_transparent_parts_of_a_mask_are_black():
    rgba = np.full((1, 3, 4), 255, np.uint8)
    rgba[0, :, 3] = (0, 127, 255)
    assert read_mask(rgba).tolist() == [[False, False, True]]


def bomb(folder: Path) -> Path:
    """A PNG that says 20000x20000 in its header; it is refused for that, unread."""
    path = saved(folder / "bomb.png", Image.fromarray(PIXELS))
    data = bytearray(path.read_bytes())
    data[16:24] = (20000).to_bytes(4, "big") * 2
    from zlib import crc32

    data[29:33] = crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def torn(folder: Path) -> Path:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = saved(folder / "torn.png", noise)
    path.write_bytes(path.read_bytes()[:4000])
    return path


def letter(folder: Path) -> Path:
    path = folder / "letter.png"
    path.write_text("Dear all,")
    return path


BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("nothing there", lambda folder: folder / "none.png", "no photo at"),
    ("a folder", lambda folder: folder, "cannot be read"),
    ("not an image", letter, "is not an image; expected a PNG"),
    ("torn", torn, "cannot be read"),
    ("a decompression bomb", bomb, "too many pixels; expected at most"),
    ("a list", lambda _: [[1, 2]], "the photo is [[1, 2]]; expected a path"),
    ("none", lambda _: None, "the photo is None"),
    ("floats", lambda _: PIXELS / 255, "the photo is float64 [6, 9, 3]; expected uint8"),
    ("two channels", lambda _: PIXELS[..., :2], "the photo is uint8 [6, 9, 2]; expected uint8"),
    ("a batch", lambda _: PIXELS[None], "the photo is uint8 [1, 6, 9, 3]"),
    ("no pixels", lambda _: PIXELS[:0], "the photo is uint8 [0, 9, 3]"),
    ("16 bits", lambda _: Image.fromarray(PIXELS[..., 0].astype(np.uint16)), "pixel format I;16; expected 8 bits"),
]


@pytest.mark.parametrize(("make", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_is_no_photo_is_refused(make: Callable[[Path], object], message: str, tmp_path: Path):
    with pytest.raises(RequestError) as caught:
        read_photo(make(tmp_path))
    assert message in str(caught.value)
