"""OpenAI's Images API, asked by OpenAI's own package."""

import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
from live_server import Live, Serve, until
from PIL import Image

from latentrt import BackendError, Request
from latentrt.serving.web.settings import Settings
from latentrt.testing import fake_pipeline


def client_of(live: Live, *, key: str = "none", retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{live.url}/v1",
        api_key=key,
        max_retries=retries,
        timeout=30,
        http_client=httpx.Client(trust_env=False),
    )


@pytest.fixture
def client(live: Live) -> openai.OpenAI:
    return client_of(live)


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


PHOTO = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


@pytest.mark.compatibility(
    kind="Client", what="OpenAI Python package", recognised="`POST /v1/images/generations`", outcome="works"
)
def test_an_image_has_the_size_that_was_asked_for(client):
    made = client.images.generate(prompt="a fox", size="128x64", model="fake", extra_body={"seed": 5})
    assert pixels(made.data[0].b64_json).shape == (64, 128, 3)
    assert (made.data[0].seed, made.size, made.output_format, made.background) == (5, "128x64", "png", "opaque")
    assert base64.b64decode(made.data[0].b64_json)[:4] == b"\x89PNG"
    assert made.created > 1_600_000_000


def test_seeds_repeat_and_count(client):
    many = client.images.generate(prompt="a fox", n=3, extra_body={"seed": 40})
    single = [client.images.generate(prompt="a fox", extra_body={"seed": 40 + i}).data[0] for i in range(3)]
    assert [row.seed for row in many.data] == [row.seed for row in single] == [40, 41, 42]
    for row, alone in zip(many.data, single, strict=True):
        assert np.abs(pixels(row.b64_json).astype(int) - pixels(alone.b64_json)).max() <= 1
    again = client.images.generate(prompt="a fox", extra_body={"seed": 41}).data[0]
    assert again.b64_json == single[1].b64_json


@pytest.mark.parametrize(("form", "magic"), [("jpeg", b"\xff\xd8\xff"), ("webp", b"RIFF"), ("png", b"\x89PNG")])
def test_formats(client, form, magic):
    small, large = (
        client.images.generate(prompt="a fox", output_format=form, output_compression=quality, extra_body={"seed": 1})
        for quality in (5, 100)
    )
    data = base64.b64decode(small.data[0].b64_json)
    assert data.startswith(magic)
    assert (len(data) < len(base64.b64decode(large.data[0].b64_json))) == (form != "png")


@pytest.mark.parametrize("partials", [0, 1, 3])
def test_a_stream_has_partial_images_and_then_the_whole(live, client, partials):
    stream = client.images.generate(
        prompt="a fox", stream=True, partial_images=partials, extra_body={"seed": 1, "steps": 12}
    )
    events = list(stream)
    assert events[-1].type == "image_generation.completed"
    indices = [event.partial_image_index for event in events[:-1]]
    assert indices == list(range(len(indices)))
    assert len(indices) <= partials
    assert all(event.type == "image_generation.partial_image" for event in events[:-1])
    whole = client.images.generate(prompt="a fox", extra_body={"seed": 1, "steps": 12})
    assert events[-1].b64_json == whole.data[0].b64_json


def test_every_partial_image_that_was_asked_for_comes_from_a_run_that_is_slow_enough(serve: Serve):
    live = serve()
    live.gate.shut()
    options = {"prompt": "a fox", "partial_images": 2, "extra_body": {"steps": 8}}
    stream = iter(client_of(live).images.generate(stream=True, **options))
    events = []
    for _ in range(2):
        live.gate.let(3)
        events.append(next(stream))
    live.gate.open()
    events += stream
    kinds = [(event.type.partition(".")[2], getattr(event, "partial_image_index", None)) for event in events]
    assert kinds == [("partial_image", 0), ("partial_image", 1), ("completed", None)]


FAULTS = {
    "no prompt": ({}, 400, "prompt"),
    "an empty prompt": ({"prompt": " "}, 400, "prompt"),
    "no number": ({"prompt": "a", "n": "many"}, 400, "n"),
    "no image": ({"prompt": "a", "n": 0}, 400, "n"),
    "too many": ({"prompt": "a", "n": 11}, 400, "n"),
    "half a size": ({"prompt": "a", "size": "12"}, 400, "size"),
    "an odd size": ({"prompt": "a", "size": "65x64"}, 400, "size"),
    "a size that never fits": ({"prompt": "a", "size": "8192x8192"}, 400, "size"),
    "another model": ({"prompt": "a", "model": "dall-e-9"}, 404, "model"),
    "transparency": ({"prompt": "a", "background": "transparent"}, 400, "background"),
    "steps without end": ({"prompt": "a", "steps": 10**6}, 400, "num_inference_steps"),
    "half a character": ({"prompt": "\ud800"}, 400, "prompt"),
}


@pytest.mark.parametrize(("body", "status", "param"), FAULTS.values(), ids=FAULTS)
def test_faults_have_the_form_of_the_protocol(live: Live, body, status, param):
    answer = live.client().post("/v1/images/generations", content=json.dumps(body))
    error = answer.json()["error"]
    assert answer.status_code == status
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"prompt": NaN}', b"[" * 100_000, b'{"n": 1e999}'])
def test_what_is_no_object_of_json_is_refused(live: Live, data):
    answer = live.client().post("/v1/images/generations", content=data)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_other_ways_and_places_are_told_in_the_same_form(live: Live, client):
    with live.client() as http:
        wrong, nowhere = http.get("/v1/images/generations"), http.get("/v1/nothing")
        slash = http.post("/v1/images/generations/", json={"prompt": "a"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "unknown_url")
    assert slash.status_code == 200


def test_a_wrong_key_is_told_as_one(serve: Serve):
    live = serve(Settings(keys=("right", "other")))
    with pytest.raises(openai.AuthenticationError) as caught:
        client_of(live, key="wrong").images.generate(prompt="a")
    assert caught.value.code == "invalid_api_key"
    assert client_of(live, key="other").images.generate(prompt="a").data
    assert live.client().post("/v1/images/generations", json={"prompt": "a"}, headers={"api-key": "right"}).is_success


def test_what_fails_for_good_is_asked_once(serve: Serve):
    live = serve()

    def fail(feed):
        raise BackendError("broken")

    live.gate._made = fail
    with pytest.raises(openai.APIStatusError) as caught:
        client_of(live, retries=2).images.generate(prompt="a")
    assert caught.value.status_code == 500
    assert live.seen == ["POST /v1/images/generations"]
    streamed = client_of(live, retries=2).images.generate(prompt="a", stream=True)
    with pytest.raises(openai.APIError):
        list(streamed)


def test_a_full_queue_is_told_and_the_client_comes_again(serve: Serve):
    live = serve(queue=1)
    live.gate.shut()
    running = live.service.submit(None, Request("a", steps=2))
    until(lambda: running.state == "running", "the start")
    waiting = live.service.submit(None, Request("b", steps=2))
    answer = live.client().post("/v1/images/generations", json={"prompt": "c"})
    assert answer.status_code == live.full
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["type"] == {429: "rate_limit_error", 503: "server_error"}[live.full]
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client_of(live, retries=2).images.generate, prompt="d")
        until(lambda: live.seen.count("POST /v1/images/generations") == 2, "the second try")
        live.gate.open()
        assert waiting.wait(60)
        assert asked.result().data


def test_a_client_that_goes_takes_its_job_with_it(serve: Serve):
    live = serve()
    live.gate.shut()
    for patience_s in (0.5, 2, 8, 32):  # on a busy machine a client may go before the server has heard of it
        with pytest.raises(openai.APITimeoutError):
            client_of(live).images.generate(prompt="a", timeout=patience_s, extra_body={"steps": 500})
        if live.service.jobs():
            break
    job = live.service.jobs()[0]
    until(lambda: job.state == "cancelled", "the cancelling")
    time.sleep(live.lag_s)
    calls = live.gate.calls
    live.gate.open()
    assert client_of(live).images.generate(prompt="b", extra_body={"steps": 3}).data
    assert live.gate.calls <= calls + 1 + 3


@pytest.mark.compatibility(
    kind="Client", what="OpenAI Python package", recognised="`POST /v1/images/edits` with a mask", outcome="works"
)
def test_an_edit_paints_where_the_mask_is_transparent(client):
    mask = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])
    mask[16:48, 32:64, 3] = 0
    made = client.images.edit(
        image=("photo.png", png(PHOTO)), mask=("mask.png", png(mask)), prompt="a door", extra_body={"seed": "3"}
    )
    image = pixels(made.data[0].b64_json)
    outside = mask[..., 3] == 255
    assert image.shape == PHOTO.shape
    assert np.array_equal(image[outside], PHOTO[outside])
    assert (image[~outside] != PHOTO[~outside]).any()
    assert made.data[0].seed == 3


def test_an_edit_without_a_mask_follows_the_picture(client):
    options = {"prompt": "a door", "size": "64x64"}
    near, far = (
        client.images.edit(
            image=("photo.png", png(PHOTO)), **options, extra_body={"seed": 3, "strength": strength, "steps": 10}
        ).data[0]
        for strength in (0.1, 1.0)
    )
    noise = client.images.generate(**options, extra_body={"seed": 3, "steps": 10}).data[0]
    assert near.b64_json != far.b64_json
    assert near.b64_json != noise.b64_json
    with pytest.raises(openai.BadRequestError, match="one image"):
        client.images.edit(image=[("a.png", png(PHOTO)), ("b.png", png(PHOTO))], prompt="a")
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=("a.png", png(PHOTO)), mask=("m.png", png(PHOTO)), prompt="a")
    assert caught.value.param == "mask"


def test_edits_stream_and_come_as_json_too(live: Live, client):
    events = list(client.images.edit(image=("p.png", png(PHOTO)), prompt="a door", stream=True, partial_images=1))
    assert events[-1].type == "image_edit.completed"
    data = base64.b64encode(png(PHOTO)).decode()
    body = {"prompt": "a door", "images": [{"image_url": f"data:image/png;base64,{data}"}], "size": "64x64"}
    with live.client() as http:
        assert http.post("/v1/images/edits", json=body).is_success
        fetched = http.post("/v1/images/edits", json=body | {"images": [{"image_url": "http://127.0.0.1/a.png"}]})
    assert fetched.status_code == 400
    assert "URL" in fetched.json()["error"]["message"]


def test_variations(client):
    made = client.images.create_variation(image=("photo.png", png(PHOTO)), n=2, size="512x512")
    assert [pixels(row.b64_json).shape for row in made.data] == [(512, 512, 3)] * 2
    assert made.data[0].b64_json != made.data[1].b64_json


def test_models_and_aliases(serve: Serve):
    client = client_of(serve(Settings(aliases={"gpt-image-1": "fake"})))
    assert [model.id for model in client.models.list()] == ["fake", "gpt-image-1"]
    assert client.models.retrieve("gpt-image-1").id == "gpt-image-1"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")
    assert client.images.generate(prompt="a", model="gpt-image-1").data


def test_fields_that_nobody_knows_are_ignored_and_null_is_absence(live: Live):
    fields = ("n", "size", "quality", "background", "output_format", "response_format", "stream", "seed", "user")
    body = {"prompt": "a", **dict.fromkeys(fields), "style": "vivid", "moderation": "low", "whatever": {"a": [1]}}
    answer = live.client().post("/v1/images/generations?api-version=1", json=body)
    assert answer.is_success
    assert len(answer.json()["data"]) == 1


@pytest.mark.parametrize(("quality", "steps"), [("low", 2), ("medium", 4), ("high", 6), ("auto", 4), (None, 4)])
def test_quality_is_a_share_of_the_steps(live: Live, quality, steps):
    model = live.service.models["fake"]
    before = {job.id for job in live.service.jobs()}
    live.client().post("/v1/images/generations", json={"prompt": "a", "quality": quality})
    (job,) = (job for job in live.service.jobs() if job.id not in before)
    assert job.request.steps == round(model.defaults.steps * steps / 4)


def test_a_url_leads_to_the_picture(live: Live, client):
    made = client.images.generate(prompt="a", response_format="url", extra_body={"seed": 2})
    whole = client.images.generate(prompt="a", extra_body={"seed": 2})
    assert made.data[0].url.startswith(live.url)
    assert live.client().get(made.data[0].url).content == base64.b64decode(whole.data[0].b64_json)


def test_many_at_once_get_their_own(live: Live, tmp_path):
    with ThreadPoolExecutor(64) as pool:

        def ask(seed):
            options = {"seed": seed, "steps": 2 + seed % 5}
            return client_of(live).images.generate(prompt=f"fox {seed}", extra_body=options).data[0]

        rows = list(pool.map(ask, range(64)))
    alone = fake_pipeline(tmp_path)
    for seed, row in enumerate(rows):
        image = alone.run(Request(f"fox {seed}", seed=seed, steps=2 + seed % 5)).images[0]
        assert row.seed == seed
        assert np.abs(pixels(row.b64_json).astype(int) - image).max() <= 1
