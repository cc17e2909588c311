"""Jobs over HTTP, probes, metrics, limits and the command."""

import base64
import hashlib
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from live_server import Live, Serve, until
from PIL import Image

from latentrt import Request, RequestError
from latentrt.cli.command import discover
from latentrt.environment.version import VERSION
from latentrt.images.upscale import Upscale
from latentrt.serving.cli import models_of, settings_of
from latentrt.serving.stats import Spread
from latentrt.serving.web.settings import Settings

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "serving" / "web" / "static"


def events_of(text: str) -> list[tuple[str, dict]]:
    found = []
    for record in text.strip().split("\n\n"):
        kind, data = record.split("\n")
        found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_a_job_is_made_followed_and_fetched(serve: Serve):
    live = serve()
    live.gate.shut()
    with live.client() as http, ThreadPoolExecutor(1) as pool:
        body = {"id": "mine", "prompt": "a fox", "images": 2, "seed": 4, "steps": 5, "size": "128x64", "guidance": 3}
        made = http.post("/v1/jobs", json=body)
        assert (made.status_code, made.json()["id"], made.headers["location"]) == (202, "mine", "/v1/jobs/mine")
        assert http.post("/v1/jobs", json=body).status_code == 400
        followed = pool.submit(live.client().get, "/v1/jobs/mine/events")
        for step in range(1, 5):
            live.gate.let(1)
            until(lambda step=step: http.get("/v1/jobs/mine").json()["done"] == step, "a step")
        live.gate.open()
        events = events_of(followed.result().text)
        kinds = [kind for kind, _ in events]
        assert kinds[-1] == "done"
        assert set(kinds[:-1]) <= {"queued", "running"}
        assert any(len(row.get("previews", ())) == 2 for _, row in events)
        document = http.get("/v1/jobs/mine").json()
        assert (document["state"], document["seeds"], document["request"]["size"]) == ("done", [4, 5], [128, 64])
        pictures = [Image.open(io.BytesIO(http.get(path).content)) for path in document["images"]]
        assert [picture.size for picture in pictures] == [(128, 64)] * 2
        assert [picture.info["parameters"] for picture in pictures] == document["parameters"]
        assert http.get("/v1/jobs/mine/images/2").status_code == 400
        assert http.get("/v1/jobs/mine/images/x").status_code == 400


def test_exactly_one_job_is_cancelled(serve: Serve):
    live = serve()
    live.gate.shut()
    with live.client() as http:
        first, second, third = (http.post("/v1/jobs", json={"prompt": "a"}).json()["id"] for _ in range(3))
        until(lambda: http.get(f"/v1/jobs/{first}").json()["state"] == "running", "the start")
        assert http.post(f"/v1/jobs/{second}/cancel").json()["state"] == "cancelled"
        assert http.get(f"/v1/jobs/{second}/images/0").status_code == 409
        live.gate.open()
        for name in (first, third):
            assert live.service.job(name).wait(30)
            assert http.delete(f"/v1/jobs/{name}").json()["state"] == "done"
        assert http.get("/v1/jobs/nothing").status_code == 404


def test_who_listens_to_a_job_does_not_take_it_along(serve: Serve):
    live = serve()
    live.gate.shut()
    with live.client() as http:
        name = http.post("/v1/jobs", json={"prompt": "a"}).json()["id"]
        with http.stream("GET", f"/v1/jobs/{name}/events") as stream:
            next(stream.iter_lines())
    live.gate.open()
    assert live.service.job(name).wait(30)
    assert live.service.job(name).state == "done"


def test_what_a_model_can_do_is_told(live: Live):
    (model,) = live.client().get("/v1/capabilities").json()["models"]
    assert (model["name"], model["defaults"]["size"], model["size_range_px"]) == ("fake", [64, 64], [64, 512])
    assert "dpmpp-2m" in model["samplers"]


def test_probes(serve: Serve):
    live = serve(Settings(keys=("right",)))
    live.gate.shut()
    with live.client() as http:
        for path in ("/health", "/healthz", "/livez", "/v2/health/live", "/ready", "/readyz", "/v2/health/ready"):
            assert http.get(path).status_code == 200
        key = {"Authorization": "Bearer right"}
        assert http.get("/metrics").status_code == 401
        assert http.get("/v2/models/fake/ready", headers=key).status_code == 200
        assert http.get("/v2/models/none/ready", headers=key).status_code == 404
        job = live.service.submit(None, Request("a", steps=3))
        live.doors.open = False
        drained = threading.Thread(target=live.service.drain)
        drained.start()

        def refused():
            answer = http.post("/v1/jobs", json={"prompt": "a"}, headers=key)
            return answer.status_code == 503 and "retry-after" in answer.headers

        until(refused, "the refusal")
        assert http.get("/health").json()["status"] == "draining"
        assert http.get("/ready").status_code == 503
        live.gate.open()
        drained.join(30)
        assert http.get(f"/v1/jobs/{job.id}", headers=key).json()["state"] == "done"


def test_metrics_count_what_was_made(serve: Serve, tmp_path: Path):
    live = serve()
    assert live.service.submit(None, Request("a", steps=3)).wait(30)
    until(lambda: (live.service.stats().done, live.service.stats().decode.number) == (1, 1), "the count")
    text = live.client().get("/metrics").text
    for line in (
        'latentrt_jobs_total{model="fake",status="done"} 1.0',
        'latentrt_steps_total{model="fake"} 3.0',
        'latentrt_step_batch_size_count{model="fake"} 3.0',
        'latentrt_step_batch_size_bucket{le="1.0",model="fake"} 3.0',
        'latentrt_requests_waiting{model="fake"} 0.0',
        'latentrt_images_total{model="fake"} 1.0',
        'latentrt_step_duration_seconds_count{model="fake"} 3.0',
        *(
            f'latentrt_{name}_seconds_count{{model="fake"}} 1.0'
            for name in ("request_latency", "request_queue", "time_to_first_step", "encode", "decode")
        ),
        'latentrt_request_latency_seconds_bucket{le="+Inf",model="fake"} 1.0',
    ):
        assert line in text, text
    (manifest,) = tmp_path.rglob("bundle.json")
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()[:12]
    assert f'latentrt_build_info{{bundle="{digest}",model="fake",version="{VERSION}"}} 1.0' in text


def test_metrics_have_the_names_of_vllm_where_they_are_asked_for(serve: Serve):
    live = serve(Settings(vllm_metrics=True))
    assert live.service.submit(None, Request("a", steps=3)).wait(30)
    until(lambda: live.service.stats().done == 1, "the count")
    text = live.client().get("/metrics").text
    for line in (
        'vllm:num_requests_running{model_name="fake"} 0.0',
        'vllm:num_requests_waiting{model_name="fake"} 0.0',
        'vllm:e2e_request_latency_seconds_count{model_name="fake"} 1.0',
        'vllm:request_queue_time_seconds_count{model_name="fake"} 1.0',
        'vllm:request_success_total{finished_reason="stop",model_name="fake"} 1.0',
    ):
        assert line in text, text


def test_a_job_is_enlarged(live: Live):
    with live.client() as http:
        body = {"prompt": "a", "steps": 2, "size": "64x64", "upscale": {"factor": 1.5, "strength": 0.6}}
        job = http.post("/v1/jobs", json=body).json()
        assert live.service.job(job["id"]).wait(30)
        assert live.service.job(job["id"]).request.upscale == Upscale(1.5, strength=0.6)
        picture = http.get(f"/v1/jobs/{job['id']}/images/0").content
        assert Image.open(io.BytesIO(picture)).size == (96, 96)
        for wrong in ({"factor": 1}, {"strength": 0}, {"space": "time"}, 2):
            assert http.post("/v1/jobs", json=body | {"upscale": wrong}).status_code == 400


def test_the_dashboard_names_what_the_server_counts_and_leaves_nothing_out(live: Live):
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    panels = dashboard["panels"]
    asked = {target["expr"] for panel in panels for target in panel["targets"]}
    named = {name for expression in asked for name in re.findall(r"latentrt_\w+", expression)}
    types = dict(re.findall(r"^# TYPE (latentrt_\w+) (\w+)$", live.client().get("/metrics").text, re.M))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) if name not in types else name for name in named}
    assert families == types.keys()
    assert all((types[family] == "histogram") == (family not in named) for family in families)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len({panel["id"] for panel in panels}) == len(panels)
    docs = (ROOT / "docs" / "serving.md").read_text()
    assert not [family for family in types if f"`{family}" not in docs]


def test_times_fall_into_buckets():
    spread = Spread().with_time(0.01).with_time(0.02).with_time(1000) + Spread().with_time(0.02)
    assert (spread.counts[0], spread.counts[1], spread.counts[-1]) == (1, 2, 1)
    assert (spread.number, round(spread.total_s, 2)) == (4, 1000.05)


def test_the_list_of_jobs_says_what_runs_and_nothing_of_prompts(serve: Serve):
    live = serve(loras={})
    live.gate.shut()
    with live.client() as http:
        names = [
            http.post("/v1/jobs", json={"prompt": "unspeakable", "steps": 3, "images": count}).json()["id"]
            for count in (2, 1)
        ]
        until(lambda: live.service.in_flight()["fake"], "the call")
        found = http.get("/v1/jobs").json()
        live.gate.open()
        for name in names:
            assert live.service.job(name).wait(30)
        until(lambda: not live.service.in_flight()["fake"], "the end of the call")
        after = http.get("/v1/jobs").json()
    images = {names[0]: 2, names[1]: 1}
    assert {row["id"]: row["images"] for row in found["jobs"]} == images
    assert found["jobs"] == sorted(found["jobs"], key=lambda row: (row["position"], row["created"]))
    assert all(0 < count <= images[name] for name, count in found["in_flight"]["fake"].items())
    assert "unspeakable" not in json.dumps(found)
    assert (after["jobs"], after["in_flight"]) == ([], {"fake": {}})


def bomb() -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.zeros((5000, 5000), np.uint8)).save(data, "PNG")
    return data.getvalue()


PICTURES = {
    "no base64": ("%%%", "base64"),
    "no picture": (base64.b64encode(b"nothing" * 20).decode(), "not an image"),
    "a cut one": (base64.b64encode(bomb()[:200]).decode(), ""),
    "too many pixels": (base64.b64encode(bomb()).decode(), "pixels"),
    "a URL": ("http://169.254.169.254/latest", "URL"),
    "a file": ("file:///etc/passwd", "URL"),
    "a path": ("/etc/passwd", "image"),
    "an empty data URL": ("data:image/png;base64,", "image"),
    "a data URL of text": ("data:text/plain,abc", "base64"),
}


@pytest.mark.parametrize(("text", "said"), PICTURES.values(), ids=PICTURES)
def test_bad_pictures_are_refused(live: Live, text, said):
    with live.client() as http:
        answers = [
            http.post("/v1/jobs", json={"prompt": "a", "start": {"image": text}}),
            http.post("/sdapi/v1/img2img", json={"prompt": "a", "init_images": [text]}),
            http.post("/v1/images/edits", json={"prompt": "a", "images": [{"image_url": text}]}),
        ]
    assert [answer.status_code for answer in answers] == [400] * 3
    assert all(said in answer.text for answer in answers)


def test_bodies_are_limited_in_bytes_and_time(serve: Serve):
    live = serve(Settings(body_bytes=1000, body_s=0.2))
    with live.client() as http:
        assert http.post("/v1/jobs", content=b" " * 2000).status_code == 413

        def chunks():
            yield from [b" " * 600] * 3

        assert http.post("/v1/jobs", content=chunks()).status_code == 413
        assert http.post("/v1/images/edits", files={"image": b"x" * 2000}).status_code == 413

        def slow():
            yield b"{"
            gone.wait(30)
            yield b"}"

        gone = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(http.post, "/v1/jobs", content=slow())
            until(lambda: len(live.seen) >= 4, "the request")
            gone.wait(1.0)
            gone.set()
            assert asked.result().status_code == 408


def test_a_foreign_name_of_the_server_is_refused(serve: Serve):
    live = serve(Settings(hosts=("127.0.0.1",)))
    with live.client() as http:
        assert http.get("/v1/capabilities").is_success
        assert http.get("/v1/capabilities", headers={"Host": "rebound.example"}).status_code == 421


def test_nothing_of_a_prompt_is_logged(live: Live, caplog: pytest.LogCaptureFixture):
    if not live.inside:
        pytest.skip("its log is elsewhere")
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger="latentrt"):  # a command set its own
        live.client().post("/v1/images/generations?prompt=unspeakable", json={"prompt": "unspeakable"})
        live.client().post("/v1/images/generations", json={"prompt": "unspeakable", "n": 99})

        def told() -> list[int]:
            return [record.fields["status"] for record in caplog.records if hasattr(record, "fields")]

        until(lambda: len(told()) >= 2, "both lines")  # a line is written after the answer is sent
    assert told() == [200, 400]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("latentrt")]
    assert not [line for line in ours if "unspeakable" in line]


def test_the_page_needs_nothing_from_elsewhere(serve: Serve):
    live = serve(Settings(keys=("right",)))  # a browser has no key before it has the page
    with live.client() as http:
        answer = http.get("/")
        assert answer.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        parts, texts = ["index.html"], {}
        while parts:
            name = parts.pop()
            if name not in texts:
                texts[name] = http.get(f"/static/{name}").raise_for_status().text
                parts += re.findall(r"""(?:static/|from "\./)([\w.]+)""", texts[name])
        tag = http.get("/static/main.js").headers["etag"]
        assert http.get("/static/main.js", headers={"If-None-Match": tag}).status_code == 304
        for name in ("..%2fpage.py", "../page.py", "%2e%2e/app.py", "none.js", "a%00b", "/etc/passwd"):
            assert http.get(f"/static/{name}").status_code in (401, 404), name
    assert texts.keys() == {path.name for path in STATIC.iterdir()}
    for name, text in texts.items():
        addresses = [line for line in text.splitlines() if re.search(r"https?://|@import|[\"']//", line)]
        assert all("www.w3.org/2000/svg" in line for line in addresses), name
        assert len(text.splitlines()) < 300, name
        assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval)\b", text), name


def options(*arguments: str):
    from latentrt.cli import command_parser

    return command_parser("serve", discover()["serve"]).parse(["bundle", *arguments])


def test_another_address_needs_a_key_or_the_words(tmp_path: Path):
    keys = tmp_path / "keys"
    keys.write_text("# of the team\none\n\ntwo\n")
    assert settings_of(options()).hosts is not None
    assert settings_of(options("--host", "0.0.0.0", "--api-key-file", str(keys))).keys == ("one", "two")
    assert settings_of(options("--host", "0.0.0.0", "--open-to-everyone")).keys == ()
    with pytest.raises(RequestError, match="open-to-everyone"):
        settings_of(options("--host", "0.0.0.0"))
    with pytest.raises(RequestError, match="colon"):
        settings_of(options("--basic-auth-file", str(keys)))
    with pytest.raises(RequestError, match="cannot read"):
        settings_of(options("--api-key-file", str(tmp_path / "none")))


def test_models_have_names():
    assert models_of(["a=x/y", "x/z"]) == {"a": "x/y", "z": "x/z"}
    for rows in (["a=x", "a=y"], ["=x"], ["a/b=x"], ["a="]):
        with pytest.raises(RequestError):
            models_of(rows)


@pytest.mark.skipif(os.name != "posix", reason="SIGTERM")
def test_the_command_serves_and_ends_in_order(shapes_bundle: Path):
    code = "import sys; from latentrt.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", f"shapes={shapes_bundle}", "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--log-format", "json", "--backend", "onnxruntime", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            lines = []
            while not lines or lines[-1] != "}\n":
                lines.append(process.stdout.readline())
                assert lines[-1], process.stderr.read()
            url = json.loads("".join(lines))["url"]
            body = {"prompt": "a red circle on a white background", "size": "64x64", "steps": 30}
            name = httpx.post(f"{url}/v1/jobs", json=body, trust_env=False).json()["id"]
            until(lambda: httpx.get(f"{url}/v1/jobs/{name}", trust_env=False).json()["done"] > 0, "a step")
            process.send_signal(signal.SIGTERM)
            errors = process.communicate(timeout=60)[1]
            assert process.returncode == 0, errors
        finally:
            process.kill()
    rows = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert next(row for row in rows if "path" in row)["path"] == "/v1/jobs"
    assert "red circle" not in errors
