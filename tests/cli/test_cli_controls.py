"""`generate --control`, `outline` and `control`: options, files, metadata, and what is refused."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentrt.cli.generate.controls import controls_of
from latentrt.errors import RequestError

QUICK = ("--steps", "2", "--guidance", "1", "--seed", "7", "--backend", "onnxruntime", "--json", "--size", "64x64")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.full((70, 90, 3), 255, np.uint8)
    pixels[20:50, 30:60] = 0
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("canny=edges.png", ("canny", "edges.png", 1.0, 0.0, 1.0)),
        ("canny=edges.png:0.8", ("canny", "edges.png", 0.8, 0.0, 1.0)),
        ("canny=edges.png:-1", ("canny", "edges.png", -1.0, 0.0, 1.0)),
        ("canny=edges.png:.5:0.2-0.75", ("canny", "edges.png", 0.5, 0.2, 0.75)),
        ("canny=C:/a=b.png", ("canny", "C:/a=b.png", 1.0, 0.0, 1.0)),
        ("canny=C:/edges.png:2:0-1", ("canny", "C:/edges.png", 2.0, 0.0, 1.0)),
    ],
)
def test_a_control_is_read_from_its_option(text: str, expected: tuple):
    (found,) = controls_of(argparse.Namespace(control=[text], guess=True))
    assert (found.name, found.image, found.scale, found.start, found.end) == expected
    assert found.guess


@pytest.mark.parametrize("text", ["canny", "=edges.png", "canny=", ""])
def test_another_form_is_refused(text: str):
    with pytest.raises(RequestError, match="expected NAME=IMAGE"):
        controls_of(argparse.Namespace(control=[text], guess=False))


def test_edges_of_a_photo_lead_a_run_and_are_named_in_the_file(cli, controlled_bundle, photo: Path, tmp_path: Path):
    edges, output = tmp_path / "edges.png", tmp_path / "made.png"
    assert cli("outline", photo, "-o", edges).code == 0
    lines = np.asarray(Image.open(edges))
    assert lines.shape == (70, 90, 3) and 0 < (lines > 0).mean() < 0.1
    control = f"random={edges}:0.5:0-0.5"
    outcome = cli("generate", controlled_bundle, "a red circle", "--control", control, "-o", output, *QUICK)
    assert outcome.code == 0, outcome.err
    assert "ControlNet: random 0.5 0-0.5," in Image.open(output).text["parameters"]
    (said,) = outcome.document["request"]["control"]
    assert (said["name"], said["scale"], said["end"]) == ("random", 0.5, 0.5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--control", "depth=PHOTO"), "control 'depth'; expected one of random"),
        (("--control", "random=none.png"), "no photo at none.png"),
        (("--control", "random=PHOTO:1:0.5-0.2"), "acts from 0.5 to 0.2"),
        (("--guess",), "--guess without a control"),
    ],
)
def test_bad_controls_are_refused_in_one_line(cli, controlled_bundle, photo: Path, tmp_path: Path, options, says):
    words = [word.replace("PHOTO", str(photo)) for word in options]
    outcome = cli("generate", controlled_bundle, "a red circle", *words, "-o", tmp_path / "made.png", *QUICK)
    assert outcome.code == 2
    assert says in outcome.err and "Traceback" not in outcome.err
    assert not (tmp_path / "made.png").exists()


def test_a_controlnet_that_is_not_there_is_refused(cli, tiny_bundle, tmp_path: Path):
    outcome = cli("control", tiny_bundle, f"canny={tmp_path / 'none'}", "-o", tmp_path / "bundle")
    assert outcome.code == 2 and "no folder" in outcome.err
    assert not list(tmp_path.glob("bundle*"))
