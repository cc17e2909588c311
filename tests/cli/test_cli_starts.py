"""`latentrt generate` from photos and to large images: options, files, metadata, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

QUICK = ("--steps", "2", "--guidance", "1", "--seed", "7", "--backend", "onnxruntime", "--json")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    levels = np.zeros((70, 90), np.uint8)
    levels[20:50, 30:60] = 255
    path = tmp_path / "mask.png"
    Image.fromarray(levels).save(path)
    return path


def test_a_photo_is_continued_and_kept(cli, tiny_bundle, photo: Path, tmp_path: Path):
    output = tmp_path / "wide.png"
    outcome = cli(
        "generate",
        tiny_bundle,
        "a red circle",
        "--image",
        photo,
        "--outpaint",
        "0,30,0,0",
        "-o",
        output,
        *QUICK,
        *("--overlap", 6),
    )
    assert outcome.code == 0, outcome.err
    made = np.asarray(Image.open(output))
    assert made.shape == (70, 120, 3)
    assert np.array_equal(made[:, :84], np.asarray(Image.open(photo))[:, :84])
    assert "Size: 120x70" in Image.open(output).text["parameters"]
    assert "Denoising strength: 1," in Image.open(output).text["parameters"]
    start = outcome.document["request"]["start"]
    assert (start["task"], start["photo"], start["right"], start["overlap"]) == ("Outpaint", str(photo), 30, 6)


def test_a_masked_part_is_painted_and_the_rest_kept(cli, tiny_bundle, photo: Path, mask: Path, tmp_path: Path):
    output = tmp_path / "part.png"
    arguments = ("--image", photo, "--mask", mask, "--margin", "8", "--feather", "2", "--size", "64x64", "-o", output)
    assert cli("generate", tiny_bundle, "a red circle", *arguments, *QUICK).code == 0
    made, before = np.asarray(Image.open(output)), np.asarray(Image.open(photo))
    outside = np.asarray(Image.open(mask)) < 128
    assert np.array_equal(made[outside], before[outside])
    assert not np.array_equal(made[~outside], before[~outside])


def test_upscaling_writes_the_larger_image(cli, tiny_bundle, tmp_path: Path):
    output = tmp_path / "large.png"
    upscale = ("--upscale", "1.5", "--upscale-strength", "0.5", "--upscale-space", "pixel", "--tile", "64")
    outcome = cli("generate", tiny_bundle, "a red circle", "--size", "64x64", *upscale, "-o", output, *QUICK)
    assert outcome.code == 0, outcome.err
    assert Image.open(output).size == (96, 96)
    assert outcome.document["request"]["upscale"] == {"factor": 1.5, "strength": 0.5, "space": "pixel"}


def test_a_run_that_stopped_goes_on_from_its_file(cli, tiny_bundle, tmp_path: Path):
    run = ("generate", tiny_bundle, "a red circle", "--sampler", "euler", *QUICK)
    latent, handed, whole = (tmp_path / name for name in ("half.npy", "handed.png", "whole.png"))
    outcome = cli(*run, "--denoising-end", "0.5", "--output-latent", latent)
    assert outcome.code == 0, outcome.err
    assert outcome.document["latents"] == [{"path": str(latent), "seed": 7, "replaced": False}]
    outcome = cli(*run, "--latent", latent, "--denoising-start", "0.5", "-o", handed)
    assert outcome.code == 0, outcome.err
    assert outcome.document["request"]["start"] == {
        "task": "Latent",
        "x": str(latent),
        "denoising_start": 0.5,
        "strength": None,
    }
    assert cli(*run, "-o", whole).code == 0
    assert np.abs(np.asarray(Image.open(handed)).astype(int) - np.asarray(Image.open(whole))).max() <= 1


BAD = [
    (("--denoising-start", "0.5"), "--denoising-start without a latent; expected --latent FILE with it"),
    (("--latent", "PHOTO", "--denoising-start", "0.5"), "cannot be read"),
    (("--latent", "x.npy", "--image", "PHOTO"), "--image with --latent; expected one of them"),
    (("--output-latent", "x.npy"), "--output with --output-latent; expected one of them"),
    (("--denoising-end", "2"), "denoising_end is 2.0; expected a number above 0, at most 1"),
    (("--strength", "0.5"), "--strength without a photo; expected --image FILE with it"),
    (("--mask", "MASK"), "--mask without a photo"),
    (("--image", "PHOTO", "--strength", "1.5"), "strength is 1.5; expected a number above 0, at most 1"),
    (("--image", "PHOTO", "--margin", "8"), "--margin without a mask"),
    (("--image", "PHOTO", "--mask", "MASK", "--feather", "8"), "--feather without --margin"),
    (("--image", "PHOTO", "--overlap", "8"), "--overlap without --outpaint"),
    (("--image", "PHOTO", "--mask", "MASK", "--margin", "8", "--feather", "-1"), "feather is -1"),
    (("--image", "PHOTO", "--mask", "MASK", "--outpaint", "0,8,0,0"), "--outpaint with --mask or --margin"),
    (("--image", "PHOTO", "--outpaint", "8"), "outpaint '8'; expected LEFT,RIGHT,TOP,BOTTOM in pixels"),
    (("--image", "PHOTO", "--mask", "alpha"), "no mask, and the photo is nowhere transparent"),
    (("--image", "nowhere.png"), "no photo at nowhere.png; expected an image file; check the path"),
    (("--upscale-strength", "0.5"), "--upscale-strength without --upscale"),
    (("--upscale", "0.5"), "factor of upscaling is 0.5; expected a number above 1"),
    (("--tile", "big"), "tile 'big'; expected a number of pixels, auto or none"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_what_does_not_go_together_is_refused(options, message, cli, tiny_bundle, photo, mask, tmp_path):
    files = {"PHOTO": photo, "MASK": mask}
    output = tmp_path / "none.png"
    outcome = cli(
        "generate", tiny_bundle, "a fox", *[files.get(word, word) for word in options], "-o", output, "--json"
    )
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert message in line
    assert not output.exists()
