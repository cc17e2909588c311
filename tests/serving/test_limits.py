"""What clients may not do: bombs, tricks with paths and names, headers, addresses that a server would fetch."""

import base64
import io
import socket
import struct
import zlib
from collections.abc import Callable
from urllib.parse import quote

import numpy as np
import pytest
from live_server import Live, Serve
from PIL import Image

from latentrt.serving.web.settings import Settings


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, data: bytes = b"", before: bytes = b"") -> bytes:
    """A file that says its size, whatever it holds."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def saved(form: str, size: tuple[int, int], **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.zeros(size[::-1], np.uint8)).save(data, form, **options)
    return data.getvalue()


def unfolding() -> bytes:
    """A PNG of little more than a text."""
    text = chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a" * (80 << 20), 9))
    return png(64, 64, data=bytes(65 * 64), before=text)


BOMBS: dict[str, Callable[[], bytes]] = {
    "a size beyond every memory": lambda: png(1 << 30, 1 << 30),
    "more pixels than are taken": lambda: saved("PNG", (5000, 5000)),
    "many in a GIF": lambda: saved("GIF", (5000, 5000)),
    "many in a WebP": lambda: saved("WEBP", (5000, 5000), method=0),
    "many in a JPEG": lambda: saved("JPEG", (5000, 5000)),
    "a text that unfolds": unfolding,
    "fewer pixels than it says": lambda: png(4000, 4000, data=b"\0" * 100),
    "no pixels": lambda: png(0, 0),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_everywhere(live: Live, bomb: str):
    data = BOMBS[bomb]()
    text = base64.b64encode(data).decode()
    assert len(data) < 1 << 20
    with live.client() as http:
        answers = [
            http.post("/v1/jobs", json={"prompt": "a", "start": {"image": text}}),
            http.post("/v1/jobs", json={"prompt": "a", "controls": [{"name": "x", "image": text}]}),
            http.post("/sdapi/v1/img2img", json={"init_images": [text]}),
            http.post("/sdapi/v1/png-info", json={"image": text}),
            http.post("/sdapi/v1/extra-single-image", json={"image": text, "upscaler_1": "Lanczos"}),
            http.post("/controlnet/detect", json={"controlnet_module": "canny", "controlnet_input_images": [text]}),
            http.post("/v1/images/edits", files={"image": data}, data={"prompt": "a"}),
            http.post("/v1/images/variations", files={"image": data}),
            http.post("/", content=data, headers={"Content-Type": "image/png"}),
        ]
    assert [answer.status_code for answer in answers] == [400] * len(answers)


def test_a_picture_is_not_enlarged_beyond_the_limit(live: Live):
    text = base64.b64encode(saved("PNG", (4000, 4000))).decode()
    body = {"image": text, "upscaler_1": "Nearest", "upscaling_resize": 64}
    assert live.client().post("/sdapi/v1/extra-single-image", json=body).status_code == 400
    thin = base64.b64encode(saved("PNG", (1, 4000))).decode()
    made = live.client().post("/sdapi/v1/img2img", json={"init_images": [thin], "width": 64, "height": 64, "steps": 4})
    assert made.is_success
    for mode in (1, 2):
        body = {"init_images": [thin], "width": 512, "height": 64, "steps": 4, "resize_mode": mode}
        assert live.client().post("/sdapi/v1/img2img", json=body).is_success


TRICKS = ("../../etc/passwd", "/etc/passwd", "..\\fake", "fake\x00", "fake/../fake", "file:///etc/passwd", "~", ".", "")


@pytest.mark.parametrize("name", TRICKS)
def test_names_are_looked_up_and_never_opened(live: Live, name: str):
    picture = base64.b64encode(saved("PNG", (64, 64))).decode()
    bodies = {
        "/v1/jobs": [
            {"model": name},
            {"loras": [{"name": name}]},
            {"controls": [{"name": name, "image": picture}]},
        ],
        "/v1/images/generations": [{"model": name}],
        "/sdapi/v1/txt2img": [
            {"prompt": f"a <lora:{name or '.'}:1>"},
            {"override_settings": {"sd_model_checkpoint": name or "."}},
            {"alwayson_scripts": {"controlnet": {"args": [{"model": name or ".", "image": picture}]}}},
        ],
    }
    with live.client() as http:
        for path, rows in bodies.items():
            for row in rows:
                answer = http.post(path, json={"prompt": "a", **row})
                assert answer.status_code in (400, 404, 422), (path, row, answer.text)
        for path in ("/v1/models/", "/models/", "/static/", "/v1/jobs/") if name.strip(".") else ():
            assert http.get(path + quote(name, safe="")).status_code in (404, 405), path


@pytest.mark.parametrize("name", ["a\r\nX-Injected: 1", "a\nb", "\u6f22", "a/b", "\x7f", "x" * 129])
def test_a_name_of_a_job_says_nothing_in_a_header(live: Live, name: str):
    with live.client() as http:
        for path, field in (("/v1/jobs", "id"), ("/sdapi/v1/txt2img", "force_task_id")):
            answer = http.post(path, json={"prompt": "a", field: name})
            assert answer.status_code == 400
            assert "x-injected" not in answer.headers
        made = http.post("/v1/jobs", json={"prompt": "a", "id": f'of "me"? {ascii(name)[1:9].replace("/", "-")}%0d'})
        assert http.get(made.headers["location"]).json()["id"] == made.json()["id"]


def test_what_a_client_says_comes_back_in_no_header(serve: Serve):
    live = serve(Settings(cors=("https://lite.koboldai.net",)))
    words = "spoilt"
    with live.client() as http:
        headers = {"Origin": f"https://{words}.example", "Accept": words, "X-Request-Id": words, "Referer": words}
        answers = [
            http.get("/v1/models", headers=headers),
            http.get(f"/{words}", headers=headers),
            http.options("/v1/jobs", headers=headers | {"Access-Control-Request-Method": "POST"}),
            http.post("/v1/images/generations", json={"prompt": words, "model": words}, headers=headers),
        ]
    assert not [value for answer in answers for value in answer.headers.values() if words in value]


def test_nothing_is_fetched(live: Live):
    """Not from this machine, which stands for every other one: no address is asked, whatever names it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        for host in (f"http://127.0.0.1:{port}", f"http://localhost:{port}", f"HTTP://0x7f000001:{port}"):
            url = f"{host}/a.png"
            with live.client() as http:
                answers = [
                    http.post("/v1/jobs", json={"prompt": "a", "start": {"image": url}}),
                    http.post("/v1/jobs", json={"prompt": "a", "controls": [{"name": "a", "image": url}]}),
                    http.post("/v1/images/edits", json={"prompt": "a", "images": [{"image_url": url}]}),
                    http.post("/v1/images/edits", data={"prompt": "a", "image": url}),
                    http.post("/sdapi/v1/img2img", json={"init_images": [url]}),
                    http.post("/sdapi/v1/png-info", json={"image": url}),
                    http.post("/sdapi/v1/extra-single-image", json={"image": url}),
                    http.post("/controlnet/detect", json={"controlnet_input_images": [url]}),
                ]
                http.post("/", json={"inputs": url, "parameters": {"num_inference_steps": 1}})  # words, there
            assert [answer.status_code for answer in answers] == [400] * len(answers)
        with pytest.raises(TimeoutError):
            listener.accept()
