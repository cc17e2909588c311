"""Pictures over HTTP whose weights a request changes: the same as those that a pipeline makes alone."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from controls import picture
from diffusers import StableDiffusionPipeline
from fastapi.testclient import TestClient
from lora_files import random_layers, write_lora
from PIL import Image

import latentrt
from latentrt import Control, Request
from latentrt.serving.service import Service
from latentrt.serving.web.app import create_app

ASKED = {"seed": 5, "steps": 4, "width": 64, "height": 64, "cfg_scale": 5}
REQUEST = Request("a red circle", seed=5, steps=4, size=(64, 64), guidance=5)


def png(array: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def array(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def made(http: TestClient, **body) -> np.ndarray:
    answer = http.post("/sdapi/v1/txt2img", json=ASKED | body)
    assert answer.status_code == 200, answer.text
    return array(base64.b64decode(answer.json()["images"][0]))


def of_job(http: TestClient, service: Service, **body) -> np.ndarray:
    job = http.post("/v1/jobs", json={"prompt": "a red circle", "seed": 5, "steps": 4, "size": "64x64"} | body).json()
    assert service.job(job["id"]).wait(60)
    return array(http.get(f"/v1/jobs/{job['id']}/images/0").content)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.compatibility(
    kind="Client", what="LoRA tags of AUTOMATIC1111's prompts", recognised="`<lora:NAME:0.8>`", outcome="works"
)
def test_loras_over_http(shapes_bundle: Path, shapes_checkpoint: Path, tmp_path: Path):
    layers = random_layers(StableDiffusionPipeline.from_pretrained(shapes_checkpoint), text_encoder=("q_proj",))
    path = write_lora(tmp_path / "change.safetensors", layers)
    with latentrt.load(shapes_bundle, backend="onnxruntime", threads=1) as alone:
        plain = alone.run(REQUEST).images[0]
        alone.set_lora([(path, 0.8)])
        changed = alone.run(REQUEST).images[0]
    assert apart(plain, changed) > 8
    with Service({"shapes": shapes_bundle}, backend="onnxruntime", threads=1, loras={"change": path}) as service:
        http = TestClient(create_app(service))
        assert apart(made(http, prompt="a red circle <lora:change:0.8>"), changed) <= 1
        assert apart(made(http, prompt="a red circle"), plain) <= 1
        loras = [{"name": "change", "scale": 0.8}]
        assert apart(of_job(http, service, guidance=5, loras=loras), changed) <= 1
        assert http.post("/sdapi/v1/txt2img", json=ASKED | {"prompt": "<lora:none:1>"}).status_code in (400, 404)


@pytest.mark.compatibility(
    kind="Client",
    what="units of AUTOMATIC1111's ControlNet extension",
    recognised="`alwayson_scripts`",
    outcome="works",
)
def test_controlnets_over_http(controlled_bundle: Path):
    lines = picture(3, (64, 64))
    with latentrt.load(controlled_bundle, backend="onnxruntime", threads=1) as alone:
        plain = alone.run(REQUEST).images[0]
        control = [Control("random", lines, scale=0.5, end=0.75)]
        led = alone.generate("a red circle", seed=5, steps=4, size=(64, 64), guidance=5, control=control).images[0]
    assert apart(plain, led) > 8
    names = {"control_v11p_sd15_canny": "random"}
    with Service({"shapes": controlled_bundle}, backend="onnxruntime", threads=1, controls=names) as service:
        http = TestClient(create_app(service))
        assert set(http.get("/controlnet/model_list").json()["model_list"]) == {"random", "control_v11p_sd15_canny"}
        for name in ("random", "control_v11p_sd15_canny [d14c016b]"):
            unit = {"model": name, "image": png(lines), "weight": 0.5, "guidance_end": 0.75}
            scripts = {"ControlNet": {"args": [unit]}}
            assert apart(made(http, prompt="a red circle", alwayson_scripts=scripts), led) <= 1
        assert apart(made(http, prompt="a red circle"), plain) <= 1
