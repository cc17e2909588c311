"""`latentrt generate` with weights, embeddings, clip skip and an interval of guidance."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from latentrt.bundle import Bundle

QUICK = ("--steps", "3", "--size", "64x64", "--seed", "7", "--backend", "onnxruntime", "--json")


@pytest.fixture
def embedding(tiny_bundle: Path, tmp_path: Path) -> Path:
    width = Bundle.open(tiny_bundle).family.text_encoders[0].width
    path = tmp_path / "cat.safetensors"
    save_file({"emb_params": np.random.default_rng(0).standard_normal((2, width)).astype(np.float32)}, path)
    return path


def test_everything_that_prompts_may_hold(cli, tiny_bundle: Path, embedding: Path, tmp_path: Path):
    output = tmp_path / "cat.png"
    options = ("--embedding", f"cat={embedding}", "--clip-skip", "1", "--guidance-interval", "0.3,0.7", "-o", output)
    outcome = cli("generate", tiny_bundle, "a (red:1.2) <cat> BREAK x AND y :0.5", *options, *QUICK)
    assert outcome.code == 0, outcome.err
    text = Image.open(output).text["parameters"]
    assert "a (red:1.2) <cat> BREAK x AND y :0.5" in text
    assert "Clip skip: 2" in text
    assert "Guidance interval: 0.3 0.7" in text
    request = outcome.document["request"]
    assert (request["clip_skip"], request["guidance"]["interval"]) == (1, [0.3, 0.7])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a (fox",), "'(' at character 3 of a prompt without its other half"),
        (("a <cat>",), "embedding <cat> in a prompt; expected one that was loaded: there is none"),
        (("a AND ",), "nothing on one side"),
        (("a", "--negative", "b AND c"), "AND in a negative prompt"),
        (("a", "--syntax", "strange"), "syntax is 'strange'; expected weighted or plain"),
        (("a", "--clip-skip", "99"), "clip_skip is 99; expected 0 to"),
        (("a", "--guidance-interval", "0.8,0.2"), "interval of guidance is (0.8, 0.2)"),
        (("a", "--embedding", "cat"), "expected NAME=FILE"),
        (("a", "--embedding", "cat=missing.safetensors"), "missing.safetensors cannot be read"),
    ],
)
def test_bad_prompts_are_one_line_and_exit_with_2(cli, tiny_bundle: Path, tmp_path: Path, arguments, message: str):
    outcome = cli("generate", tiny_bundle, *arguments, "-o", tmp_path / "x.png", *QUICK[:-1])
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
