"""PNG files, their `parameters` text, and names of output files."""

import errno
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_text import read_parameters
from PIL import Image

from latentrt.errors import EnvironmentLacks, RequestError
from latentrt.output.png import expand_pattern, parameters_text, write_png

SETTINGS = {
    "steps": 20,
    "sampler": "dpmpp-2m",
    "schedule": "karras",
    "guidance": 7.5,
    "seed": 7,
    "size": (768, 512),
    "model": "sd15",
    "version": "1.2.3",
}


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def chunk_types(path: Path) -> list[bytes]:
    """The types of a PNG's chunks, read from the file itself."""
    data, types, at = path.read_bytes(), [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        types.append(data[at + 4 : at + 8])
        at += length + 12
    return types


def test_text_has_the_form_of_the_field() -> None:
    assert parameters_text("a lighthouse\nat dusk", negative="blurry", **SETTINGS) == (
        "a lighthouse\nat dusk\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: dpmpp-2m, Schedule type: karras, CFG scale: 7.5, Seed: 7, Size: 768x512, "
        "Model: sd15, Version: LatentRT 1.2.3"
    )


def test_text_without_negative_prompt_and_with_more_fields() -> None:
    text = parameters_text("a", **{**SETTINGS, "guidance": 7.0}, extra={"Denoising strength": 0.6, "Clip skip": 2})
    assert text.splitlines()[1].startswith("Steps: 20,")
    assert "CFG scale: 7, " in text
    assert text.endswith("Model: sd15, Denoising strength: 0.6, Clip skip: 2, Version: LatentRT 1.2.3")


def test_values_that_hold_separators_are_quoted() -> None:
    assert 'Model: "a, b: \\"c\\"", ' in parameters_text("a", **{**SETTINGS, "model": 'a, b: "c"'})


@pytest.mark.parametrize(
    ("text", "chunk"),
    [("a fox", b"tEXt"), ("un château", b"tEXt"), ("маяк 夕暮れ 👩‍🚀", b"iTXt"), ("", b"tEXt")],
)
def test_round_trip(tmp_path: Path, image: np.ndarray, text: str, chunk: bytes) -> None:
    path = tmp_path / "out.png"
    write_png(path, image, parameters=text)
    assert chunk in chunk_types(path)
    assert read_parameters(path) == text
    with Image.open(path) as read:
        assert read.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(read), image)


@settings(deadline=None, max_examples=60)
@given(text=st.text())
def test_any_text_round_trips(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.png"
    write_png(path, np.zeros((1, 1, 3), np.uint8), parameters=text)
    assert read_parameters(path) == text


def test_without_parameters_there_is_no_text_chunk(tmp_path: Path, image: np.ndarray) -> None:
    write_png(tmp_path / "out.png", image)
    assert not {b"tEXt", b"iTXt", b"zTXt"} & set(chunk_types(tmp_path / "out.png"))
    assert read_parameters(tmp_path / "out.png") is None


def test_replaces_a_file_and_leaves_nothing_beside(tmp_path: Path, image: np.ndarray) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    write_png(path, image, parameters="new")
    assert read_parameters(path) == "new"
    assert list(tmp_path.iterdir()) == [path]
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode  # the permissions that any new file gets


def test_full_disk_leaves_the_old_file(tmp_path: Path, image: np.ndarray) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the third KiB no longer fits
    try:
        with pytest.raises(EnvironmentLacks, match=r"out\.png") as caught:
            write_png(path, image)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 3
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("code", "hint"),
    [(errno.ENOSPC, "disk space"), (errno.EACCES, "may write to"), (errno.EROFS, "may write to")],
)
def test_message_says_what_to_do(
    tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch, code: int, hint: str
) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError(code, "as the system puts it")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(EnvironmentLacks, match=rf"out\.png \(as the system puts it\).*{hint}"):
        write_png(tmp_path / "out.png", image)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_missing_or_none(tmp_path: Path, image: np.ndarray) -> None:
    with pytest.raises(EnvironmentLacks, match=r"none.out\.png.*create the folder"):
        write_png(tmp_path / "none" / "out.png", image)
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentLacks, match=r"file.out\.png"):
        write_png(tmp_path / "file" / "out.png", image)
    with pytest.raises(EnvironmentLacks):
        write_png(tmp_path, image)


@pytest.mark.parametrize(
    "other", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)]
)
def test_other_arrays_are_refused(tmp_path: Path, other: np.ndarray) -> None:
    with pytest.raises(RequestError, match=r"uint8 \[H, W, 3\]"):
        write_png(tmp_path / "out.png", other)


@pytest.mark.parametrize(
    ("pattern", "count", "expected"),
    [
        ("out.png", 1, "out.png"),
        ("out.png", 4, "out-3.png"),
        ("out.v1.png", 4, "out.v1-3.png"),
        ("out", 4, "out-3"),
        ("out-{seed}.png", 4, "out-42.png"),
        ("out-{seed}.png", 1, "out-42.png"),
        ("{seed}/out-{index:04d}.png", 4, "42/out-0003.png"),
        ("{seed}/out.png", 4, "42/out.png"),
        ("{index:03}-{seed:6}.png", 4, "003-    42.png"),
        ("{{index}}.png", 1, "{index}.png"),
        ("{{index}}.png", 4, "{index}-3.png"),
    ],
)
def test_pattern(pattern: str, count: int, expected: str) -> None:
    assert expand_pattern(pattern, index=3, seed=42, count=count) == Path(expected)


@pytest.mark.parametrize(
    "pattern",
    [
        *("{prompt}.png", "{}.png", "{0}.png", "{seed.real}.png", "{seed!r}.png", "{seed:x}.png", "{seed"),
        *("a}.png", "{seed:>9}.png", "{index:99999d}.png", "{{index}.png"),
    ],
)
def test_unknown_fields_are_refused(pattern: str) -> None:
    with pytest.raises(RequestError, match=r"\{index\} and \{seed\}"):
        expand_pattern(pattern, index=0, seed=0)
