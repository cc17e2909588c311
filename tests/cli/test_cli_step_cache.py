"""Step caching from the command line: a bundle made ready for it, images made with it, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import latentrt
from latentrt.bundle import Bundle

SHORT = ("--size", "64x72", "--backend", "onnxruntime", "--threads", 1, "--seed", 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cached")


def test_a_bundle_is_converted_and_makes_cached_images(cli, tiny_bundle, folder):
    outcome = cli("convert", tiny_bundle, "-o", folder / "b", "--step-cache", "--shallow-layers", 2)
    assert outcome.code == 0, outcome.err
    bundle = Bundle.open(folder / "b")
    assert bundle.manifest["components"]["step-shallow"]["shallow_layers"] == 2
    assert bundle.component("step-shallow").graph.weights == bundle.component("step").graph.weights
    grown = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    assert grown - sum(entry["bytes"] for entry in Bundle.open(tiny_bundle).manifest["files"].values()) < 1e6
    with latentrt.load(folder / "b", backend="onnxruntime", threads=1) as pipe:
        for given, cache in (("2", 2), ("0,1,4", (0, 1, 4))):
            path = folder / f"{given}.png"
            outcome = cli(
                "generate", folder / "b", "a red circle", "-o", path, "--steps", 5, "--step-cache", given, *SHORT
            )
            assert outcome.code == 0, outcome.err
            expected = pipe.generate("a red circle", seed=7, steps=5, size=(64, 72), cache=cache).images[0]
            with Image.open(path) as image:
                assert np.array_equal(np.asarray(image), expected)
                assert f"Step cache: {given.replace(',', ' ')}" in image.info["parameters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step-cache", "3"), "latentrt convert BUNDLE -o OTHER --step-cache"),
        (("--step-cache", "1,2"), "call 0 among the deep ones"),
        (("--step-cache", "0"), "at least 1"),
        (("--step-cache", "often"), "whole numbers"),
    ],
)
def test_what_cannot_be_cached_is_refused_before_the_work(arguments, message: str, cli, tiny_bundle, tmp_path):
    outcome = cli("generate", tiny_bundle, "a red circle", "-o", tmp_path / "a.png", "--steps", 5, *arguments, *SHORT)
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--step-cache", "--shallow-layers", 9), "1 to 2"), (("--shallow-layers", 1), "--step-cache")],
)
def test_layers_that_the_network_lacks_are_refused(arguments, message: str, cli, tiny_bundle, tmp_path):
    outcome = cli("convert", tiny_bundle, "-o", tmp_path / "b", *arguments)
    assert (outcome.code, message in outcome.err) == (2, True), outcome.err
    assert not (tmp_path / "b").exists()
