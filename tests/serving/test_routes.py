"""Every route, as the application's own description has it, asked for anything: never 500, nothing of the inside told,
and each refusal in the form of its protocol. ROUTE_EXAMPLES, or `make fuzz-routes`, asks for more."""

import asyncio
import base64
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from latentrt.serving.service import Service
from latentrt.serving.web.app import create_app
from latentrt.serving.web.settings import Settings
from latentrt.testing import fake_pipeline

EXAMPLES = int(os.environ.get("ROUTE_EXAMPLES", "8"))
ERRORS = {
    "openai": {"error"},
    "sdapi": {"error", "detail", "body", "errors"},
    "task": {"error"},
    "probe": {"name", "ready"},
}


@dataclass(frozen=True)
class Asked:
    """A request, to the byte."""

    method: str
    path: str
    query: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def media(self) -> str:
        return next((value.decode() for name, value in self.headers if name == b"content-type"), "")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    with Service({"fake": fake_pipeline(tmp_path_factory.mktemp("routes"))}, keep_s=5) as service:
        yield create_app(service, Settings(cors=("https://lite.koboldai.net",), body_s=20))


async def call(app, asked: Asked) -> Answer:
    """What the application answers; as a server does, it keeps the connection until then."""
    sent, given = [], iter([{"type": "http.request", "body": asked.body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        found = next(given, None)
        return await asyncio.Event().wait() if found is None else found

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": unquote(asked.path),
        "raw_path": asked.path.encode(),
        "query_string": asked.query,
        "root_path": "",
        "headers": [(b"host", b"localhost"), *asked.headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    return Answer(sent[0]["status"], sent[0]["headers"], b"".join(message.get("body", b"") for message in sent[1:]))


def check(asked: Asked, answer: Answer) -> None:
    told = f"{asked} -> {answer.status} {answer.body[:300]!r}"
    assert answer.status < 500, told
    assert not any(word in answer.body for word in (b"Traceback", b'File "', b"site-packages", b"/serving/")), told
    assert all(b"\n" not in value and b"\r" not in value for _, value in answer.headers), told
    if answer.status >= 400 and asked.method != "HEAD":
        assert answer.media == "application/json", told
        found = json.loads(answer.body)
        form = form_of(asked)
        assert found.keys() == ERRORS[form], told
        if form == "openai":
            assert found["error"].keys() == {"message", "type", "param", "code"}, told


def form_of(asked: Asked) -> str:
    path = unquote(asked.path)
    if path.startswith(("/sdapi/", "/controlnet/", "/internal/")):
        return "sdapi"
    return "task" if path.startswith("/models/") or (path == "/" and asked.method == "POST") else "openai"


def _picture() -> str:
    data = io.BytesIO()
    Image.fromarray(np.zeros((64, 64, 4), np.uint8)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


PICTURE = _picture()
PICTURES = st.sampled_from(
    [PICTURE, f"data:image/png;base64,{PICTURE}", PICTURE[:60], "http://169.254.169.254/", "", "/"]
)
HEAVY = {"steps", "num_inference_steps", "n", "n_iter", "batch_size", "images", "width", "height"}
NAMES = ("image", "mask", "inputs", "data", "init_images", "images", "photo")
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | PICTURES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner),
    max_leaves=6,
)
SAMPLERS = ("euler", "Euler a", "dpmpp-2m", "LMS")
KNOWN: dict[str, tuple[Any, ...]] = {
    "image": (PICTURE, f"data:image/png;base64,{PICTURE}"),
    "inputs": (PICTURE, "a fox"),
    "init_images": ([PICTURE],),
    "imageList": ([{"data": PICTURE}],),
    "controlnet_input_images": ([PICTURE],),
    "start": ({"image": PICTURE}, {"image": PICTURE, "mask": PICTURE, "margin": 4}, {}),
    "mask": (PICTURE, ""),
    "model": ("fake", "fake", "none"),
    "sd_model_checkpoint": ("fake", "none"),
    "size": ("64x64", "128x64", "auto", "64X64", "65x64", "0x0", "99999x1"),
    **dict.fromkeys(("sampler", "sampler_name", "scheduler"), SAMPLERS),
    "schedule": ("karras", "default"),
    "upscaler_1": ("Lanczos", "None"),
    "controlnet_module": ("canny", "none"),
}
WORDS = st.text(max_size=30) | st.sampled_from(
    ["a fox", "<lora:none:1>", "(a:1.2)", "fake", "euler", "../fake", "\r\nX: 1"]
)


def values(name: str, schema: dict[str, Any]) -> st.SearchStrategy:
    """What a field may be, more or less."""
    if name in KNOWN:
        return st.sampled_from(KNOWN[name])
    match schema.get("type"):
        case "integer":
            low, high = schema.get("minimum", 0), schema.get("maximum", 1000)
            return st.integers(low, min(high, low + 2)) if name in HEAVY else st.integers(low, high)
        case "number":
            return st.floats(schema["minimum"], min(schema["maximum"], schema["minimum"] + 2))
        case "boolean":
            return st.booleans()
        case "array":
            return st.lists(objects() | JUNK, max_size=2)
        case "object":
            return objects()
    return st.sampled_from(schema["enum"]) if "enum" in schema else WORDS


def beyond(schema: dict[str, Any]) -> st.SearchStrategy:
    """What a field may not be."""
    bounds = [bound + by for name, by in (("minimum", -1), ("maximum", 1)) if (bound := schema.get(name)) is not None]
    return JUNK | st.sampled_from(bounds) if bounds else JUNK


def objects() -> st.SearchStrategy:
    """Inner objects of bodies, which the description leaves open."""
    names = ("image", "mask", "strength", "name", "scale", "model", "args", "data", "seed", "width", "height", "prompt")
    numbers = st.floats(0, 1) | st.integers(0, 128)
    inner = st.dictionaries(st.sampled_from(names), PICTURES | numbers | WORDS | JUNK, max_size=4)
    units = st.fixed_dictionaries({"controlnet": st.fixed_dictionaries({"args": st.lists(inner, max_size=2)})})
    return inner | units


def bodies(operation: dict[str, Any]) -> st.SearchStrategy:
    """(headers, bytes) of what an operation takes."""
    nothing = st.just(([], b""))
    content = operation.get("requestBody", {}).get("content", {})
    for media, described in content.items():
        schema = described["schema"]
        right = {name: values(name, one) for name, one in schema["properties"].items()}
        must = {name: right.pop(name) for name in schema.get("required", ())}
        wrong = {name: beyond(one) for name, one in schema["properties"].items()}
        whole = st.fixed_dictionaries(must, optional=right)
        spoilt_fields = st.tuples(whole, st.fixed_dictionaries({}, optional=wrong)).map(lambda two: two[0] | two[1])
        typed = st.sampled_from(
            [media, "application/json", "application/json; charset=utf-8", "text/plain", "multipart/form-data"]
        )
        spoilt = st.tuples(typed, st.binary(max_size=200) | JUNK.map(lambda value: json.dumps(value).encode()))
        told = form if media.startswith("multipart") else plain
        good, half = whole.map(told), spoilt_fields.map(told)
        return st.one_of(good, good, half, spoilt).map(lambda pair: ([(b"content-type", pair[0].encode())], pair[1]))
    return nothing


def plain(body: dict[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(body).encode()


def form(body: dict[str, Any]) -> tuple[str, bytes]:
    """A body as a form of parts, its pictures as files."""
    parts = []
    for name, value in body.items():
        text = value if isinstance(value, str) else json.dumps(value)
        parts.append(f'Content-Disposition: form-data; name="{name}"\r\n\r\n{text}'.encode(errors="replace"))
    for name in ("image", "mask"):
        head = f'Content-Disposition: form-data; name="{name}"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        parts.append(head.encode() + base64.b64decode(PICTURE))
    return "multipart/form-data; boundary=edge", b"".join(
        b"--edge\r\n" + part + b"\r\n" for part in parts
    ) + b"--edge--\r\n"


PARTS = st.sampled_from(
    ["fake", "0", "1", "-1", "x", "..", "%2e%2e%2ffake", "%00", "a b", "é", "fake%0d%0aX:1", "a" * 300]
)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"accept", b"origin", b"authorization", b"x-stainless-lang", b"content-length", b"if-none-match"]
        ),
        st.sampled_from(
            [b"", b"*/*", b"image/webp", b"https://lite.koboldai.net", b"Basic !", b"12", b"\xff", b"Bearer"]
        ),
    ),
    max_size=2,
)
QUERY = st.sampled_from(
    [b"", b"format=jpeg", b"format=x", b"skip_current_image=true", b"skip_current_image=2", b"%00=%ff&a"]
)


@st.composite
def requests(draw, method: str, path: str, operation: dict[str, Any]) -> Asked:
    for part in operation.get("parameters", ()):
        if part["in"] == "path":
            path = path.replace(f"{{{part['name']}}}", draw(PARTS))
    headers, body = draw(bodies(operation))
    return Asked(method.upper(), path, draw(QUERY), [*headers, *draw(HEADERS)], body)


def operations() -> list[tuple[str, str]]:
    """Of the description, which needs no model."""
    schema = create_app(Nothing()).openapi()
    return [(method, path) for path, found in schema["paths"].items() for method in found]


class Nothing:
    """A service that nobody asks."""

    models = MappingProxyType({})


@pytest.mark.parametrize(("method", "path"), operations())
def test_a_route_refuses_what_it_cannot_do_in_the_form_of_its_protocol(app, method: str, path: str):
    operation = app.openapi()["paths"][path][method]

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES < 100)
    @given(requests(method, path, operation))
    def ask(asked: Asked) -> None:
        check(asked, asyncio.run(asyncio.wait_for(call(app, asked), 60)))

    ask()


@pytest.mark.parametrize(
    "path", sorted({path for _, path in operations()} | {"/nowhere", "/sdapi/v1/nowhere", "/static/x"})
)
def test_another_method_is_refused_in_the_form_of_the_protocol(app, path: str):
    for method in ("PUT", "PATCH", "TRACE"):
        asked = Asked(method, path.replace("{name}", "fake").replace("{index}", "0"))
        answer = asyncio.run(call(app, asked))
        check(asked, answer)
        assert answer.status in (404, 405)


def test_everything_that_takes_a_body_says_what_it_is():
    schema = create_app(Nothing()).openapi()
    posts = {path: found["post"] for path, found in schema["paths"].items() if "post" in found}
    bare = {path for path, found in posts.items() if "requestBody" not in found}
    ends = ("/cancel", "/interrupt", "/skip", "-checkpoint")
    assert not {path for path in bare if not path.endswith(ends) and "/refresh-" not in path}
