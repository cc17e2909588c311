"""Hugging Face's tasks, asked by huggingface_hub's client of an endpoint."""

import base64
import io
import re
import shutil
import subprocess
import textwrap
from pathlib import Path

import huggingface_hub
import numpy as np
import openai
import pytest
import webuiapi
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from live_server import Live, Serve
from PIL import Image

from latentrt.serving.web.settings import Settings

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' environment keeps this client from every network, that of this machine too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def client(live: Live) -> InferenceClient:
    return InferenceClient(model=live.url, timeout=30)


def photo() -> bytes:
    data = io.BytesIO()
    PHOTO.save(data, "PNG")
    return data.getvalue()


@pytest.mark.compatibility(kind="Client", what="huggingface_hub", recognised="text_to_image of a URL", outcome="works")
def test_text_to_image(client, live: Live):
    options = {"width": 128, "height": 64, "seed": 3, "num_inference_steps": 3, "guidance_scale": 2.0}
    made, again = (client.text_to_image("a fox", negative_prompt="fog", **options) for _ in range(2))
    assert made.size == (128, 64)
    assert np.array_equal(made, again)
    assert "Steps: 3" in made.info["parameters"]
    named = InferenceClient(model=f"{live.url}/models/fake", timeout=30).text_to_image(
        "a fox", negative_prompt="fog", **options, scheduler="EulerDiscreteScheduler"
    )
    assert np.array_equal(made, named)


@pytest.mark.compatibility(kind="Client", what="huggingface_hub", recognised="image_to_image of a URL", outcome="works")
def test_image_to_image(client):
    bare = client.image_to_image(photo())
    assert bare.size == (64, 64)
    near, far = (
        client.image_to_image(photo(), "a door", num_inference_steps=10, seed=3, strength=strength)
        for strength in (0.1, 0.9)
    )
    assert not np.array_equal(near, far)
    larger = client.image_to_image(photo(), "a door", target_size={"width": 128, "height": 128})
    assert larger.size == (128, 128)


def test_the_format_follows_accept(live: Live):
    with live.client() as http:
        for media, magic in (("image/jpeg", b"\xff\xd8"), ("image/webp", b"RIFF"), ("*/*", b"\x89PNG")):
            answer = http.post("/", json={"inputs": "a"}, headers={"Accept": media})
            assert answer.content.startswith(magic)
            assert answer.headers["content-type"].startswith("image/")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/", {}, 400),
        ("/", {"inputs": "a", "parameters": {"scheduler": "Nothing"}}, 400),
        ("/", {"inputs": "a", "parameters": {"width": 8192}}, 400),
        ("/", {"inputs": "a", "parameters": {"target_size": {"width": 64}}}, 400),
        ("/models/nothing", {"inputs": "a"}, 404),
    ],
)
def test_faults_are_a_text(live: Live, path, body, status):
    answer = live.client().post(path, json=body)
    assert answer.status_code == status
    assert isinstance(answer.json()["error"], str)
    assert answer.json().keys() == {"error"}


def test_a_key_is_needed_where_there_is_one(serve: Serve):
    live = serve(Settings(keys=("right",)))
    assert InferenceClient(model=live.url, token="right").text_to_image("a").size == (64, 64)
    with pytest.raises(HfHubHTTPError):
        InferenceClient(model=live.url, token="wrong").text_to_image("a")


PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
PROTOCOLS = dict(re.findall(r"^\*\*([\w ]+)\*\*(?:.+\n)+\n((?:    .*\n)+)", PAGE, re.M))


@pytest.mark.parametrize("protocol", ["OpenAI", "AUTOMATIC1111", "Hugging Face", "Jobs"])
def test_the_lines_in_the_docs_make_pictures(serve: Serve, tmp_path, monkeypatch: pytest.MonkeyPatch, protocol: str):
    live = serve()
    lines = textwrap.dedent(PROTOCOLS[protocol]).replace("7860", str(live.port)).replace(" <lora:ink:0.8>", "")
    monkeypatch.chdir(tmp_path)
    if "curl " in lines:
        if shutil.which("curl") is None:
            pytest.skip("no curl on this machine")
        subprocess.run(["bash", "-euc", lines], check=True, capture_output=True)
    else:
        libraries = {"openai": openai, "webuiapi": webuiapi, "huggingface_hub": huggingface_hub}
        exec(compile(lines, "docs/serving.md", "exec"), libraries | {"Path": Path, "base64": base64})
    assert Image.open("circle.png").width in (64, 128)
