"""`--lora` on the command line: at run time, and baked in."""

from pathlib import Path

import numpy as np
import pytest
from lora_files import TEXT_ENCODER, random_layers, write_lora
from PIL import Image

from latentrt import Bundle, Lora
from latentrt.cli.arguments import lora
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.parity.torch.pipeline import reference_pipeline
from latentrt.lora import merge
from latentrt.weights.onnx_initializers import read_initializers

PROMPT = (
    "a red circle on a white background",
    "--seed",
    7,
    "--steps",
    2,
    "--size",
    "64x64",
    "--backend",
    "onnxruntime",
)


@pytest.fixture(scope="module")
def style(shapes_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = random_layers(reference_pipeline(Checkpoint.open(shapes_checkpoint)), text_encoder=TEXT_ENCODER)
    return write_lora(tmp_path_factory.mktemp("lora") / "style.safetensors", layers)


def test_a_baked_bundle_makes_the_picture_that_the_lora_makes(cli, shapes_bundle: Path, style: Path, tmp_path: Path):
    def picture(name: str, bundle: Path, *more: object) -> np.ndarray:
        path = tmp_path / f"{name}.png"
        assert cli("generate", bundle, *PROMPT, "-o", path, "--cache-dir", tmp_path / "cache", *more).code == 0
        return np.asarray(Image.open(path), np.int16)

    plain = picture("plain", shapes_bundle)
    applied = picture("applied", shapes_bundle, "--lora", f"{style}:-0.8")
    made = cli("convert", shapes_bundle, "-o", tmp_path / "baked", "--lora", f"{style}:-0.8", "--json")
    assert made.code == 0, made.err
    assert not np.array_equal(applied, plain)
    # The weights are equal to the bit. As constants they are packed, and ONNX Runtime's sums end one rounding apart.
    np.testing.assert_allclose(picture("baked", tmp_path / "baked"), applied, rtol=0, atol=1)
    assert 'Lora: "style:-0.8"' in Image.open(tmp_path / "applied.png").text["parameters"]
    baked = Bundle.open(tmp_path / "baked")
    baked.verify()
    for graph in merge(Bundle.open(shapes_bundle), [Lora(style, -0.8)]).graphs.values():
        stored = read_initializers(baked.component(graph.component).graph.path)
        for name, weight in graph.new_weights():
            np.testing.assert_array_equal(stored[name].read().values, weight.values)
    rows = baked.manifest["components"]
    assert [rows[name]["lora"][0]["name"] for name in ("step", "text_encoder")] == ["style.safetensors"] * 2
    assert rows["decoder"]["lora"] == []
    # What compared the weights of before with torch says nothing of these.
    assert {row["component"] for row in baked.manifest["parity"]} == {"decoder", "encoder"}


def test_a_baked_bundle_in_fp16_was_rounded_once(cli, shapes_bundle: Path, style: Path, tmp_path: Path):
    made = cli("convert", shapes_bundle, "-o", tmp_path / "b", "--lora", style, "--precision", "step=fp16",
               "--range-check", "none")  # fmt: skip
    assert made.code == 0, made.err
    rows = Bundle.open(tmp_path / "b").manifest["components"]
    assert rows["step"]["precision"] == "fp16" and rows["step"]["lora"][0]["scale"] == 1.0
    assert not (tmp_path / "b.lora").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("convert", "BUNDLE", "-o", "new"), "--precision, --lora"),
        (("convert", "BUNDLE", "-o", "new", "--lora", "STYLE:0"), "scale other than 0"),
        (("convert", "BUNDLE", "-o", "new", "--lora", "nowhere.safetensors"), "cannot be read"),
        (("generate", "BUNDLE", "a", "-o", "a.png", "--lora", "nowhere.safetensors:2"), "nowhere.safetensors cannot"),
        (("generate", "BUNDLE", "a", "-o", "a.png", "--lora", "STYLE:inf"), "is inf"),
    ],
)
def test_bad_use_is_a_line_and_code_2(arguments, says: str, cli, shapes_bundle, style, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = {"BUNDLE": str(shapes_bundle), "STYLE": str(style)}
    made = cli(*(words.get(word, word.replace("STYLE", str(style))) for word in arguments))
    assert made.code == 2
    assert says in made.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [("a.safetensors", "a.safetensors", 1), ("a:0.5", "a", 0.5), ("C:/a", "C:/a", 1), ("a:-2", "a", -2)],
)
def test_a_scale_follows_the_last_colon(text: str, path: str, scale: float):
    assert (lora(text).path, lora(text).scale) == (path, scale)


def test_a_lora_is_baked_into_both_forms_of_the_step(cli, controlled_bundle: Path, style: Path, tmp_path: Path):
    made = cli("convert", controlled_bundle, "-o", tmp_path / "baked", "--lora", style, "--json")
    assert made.code == 0, made.err
    baked, merged = Bundle.open(tmp_path / "baked"), merge(Bundle.open(controlled_bundle), [Lora(style)]).graphs
    assert "step-control" in merged
    for name in ("step", "step-control"):
        stored = read_initializers(baked.component(name).graph.path)
        for key, weight in merged[name].new_weights():
            np.testing.assert_array_equal(stored[key].read().values, weight.values)
