"""Picture files by suffix: what is in them, and what is not written."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentrt.errors import EnvironmentLacks, RequestError
from latentrt.output.picture_file import FORMATS, write_picture

TEXT = "a little fox 狐\nSteps: 20, Sampler: euler"


@pytest.fixture
def image() -> np.ndarray:
    rows, columns = np.mgrid[0:40, 0:60]
    return np.stack([rows * 6, columns * 4, (rows + columns) * 2], axis=-1).astype(np.uint8)


def comment(path: Path) -> str:
    """What Exif's user comment says, read as its standard has it."""
    with Image.open(path) as file:
        raw = file.getexif().get_ifd(0x8769)[0x9286]
    assert raw[:8] == b"UNICODE\0"
    return raw[8:].decode("utf-16-be")


@pytest.mark.parametrize(
    "suffix",
    [
        pytest.param(
            suffix,
            marks=pytest.mark.compatibility(
                kind="image", what=f"a result written as {suffix}", recognised="the suffix", outcome="works"
            ),
        )
        for suffix in [*FORMATS, ".JPG"]
    ],
)
def test_the_suffix_is_the_format_and_the_file_says_how_it_was_made(image: np.ndarray, tmp_path: Path, suffix: str):
    path = tmp_path / f"a{suffix}"
    write_picture(path, image, parameters=TEXT)
    with Image.open(path) as file:
        assert file.format == {".png": "PNG", ".webp": "WEBP"}.get(suffix, "JPEG")
        found = np.asarray(file.convert("RGB")).astype(int)
        text = file.info["parameters"] if suffix == ".png" else comment(path)
    assert text == TEXT
    assert np.abs(found - image).max() <= (0 if suffix == ".png" else 16)
    assert [path.name for path in tmp_path.iterdir()] == [path.name]


def test_a_file_that_is_there_is_refused_unless_it_may_be_replaced(image: np.ndarray, tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(RequestError, match=r"is there already.*overwrite"):
        write_picture(path, image, overwrite=False)
    assert path.read_bytes() == b"mine"
    write_picture(path, image)
    assert path.read_bytes() != b"mine"


@pytest.mark.parametrize("name", ["a.bmp", "a", "png", "a.png.txt"])
def test_other_suffixes_are_refused(image: np.ndarray, tmp_path: Path, name: str):
    with pytest.raises(RequestError, match=r"\.png, \.jpg, \.jpeg, \.webp"):
        write_picture(tmp_path / name, image)


def test_what_a_format_cannot_hold_is_said(image: np.ndarray, tmp_path: Path):
    with pytest.raises(RequestError, match="do not fit into WEBP"):
        write_picture(tmp_path / "a.webp", np.zeros((16400, 2, 3), np.uint8))
    with pytest.raises(RequestError, match="do not fit into JPEG"):
        write_picture(tmp_path / "a.jpg", image, parameters="x" * 70000)
    with pytest.raises(RequestError, match="an image float32"):
        write_picture(tmp_path / "a.jpg", image.astype(np.float32))
    with pytest.raises(EnvironmentLacks, match="cannot write"):
        write_picture(tmp_path / "none" / "a.jpg", image)
    assert list(tmp_path.iterdir()) == []
