"""What a server does that is killed, loads, is full of connections, or is asked by many at a time."""

import hashlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from live_server import Live, Serve, until

from benchmarks.serving.soak import Server, soak
from latentrt import BackendError, RequestError
from latentrt.serving.model import Model
from latentrt.serving.service import Service
from latentrt.serving.web.health import Doors
from latentrt.serving.web.listening import ConnectionLimits
from latentrt.serving.web.listening import Server as HttpServer
from latentrt.testing import fake_pipeline


@contextmanager
def command(bundle: Path, *options: str):
    """`latentrt serve` in a process of its own, and its address."""
    words = [sys.executable, "-m", "latentrt.cli", "serve", f"shapes={bundle}", "--json", "--threads", "1", *options]
    words += ["--backend", "onnxruntime"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = list(itertools.takewhile(lambda line: line != "}\n", process.stdout))
            assert lines, process.stderr.read()
            yield process, json.loads("".join([*lines, "}"]))["url"]
        finally:
            process.kill()
            process.communicate()


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "engines" not in path.relative_to(folder).parts
    }


def get(url: str) -> httpx.Response:
    return httpx.get(url, trust_env=False, timeout=30)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_jobs_of_a_killed_server_are_told_about_by_the_next_one(shapes_bundle: Path):
    before = content(shapes_bundle)
    with command(shapes_bundle, "--port", "0") as (process, url):
        assert get(f"{url}/health").status_code == 200
        body = {"id": "mine", "prompt": "a", "size": "64x64", "steps": 500}
        assert httpx.post(f"{url}/v1/jobs", json=body, trust_env=False, timeout=30).status_code == 202
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    port = url.rsplit(":", 1)[1]
    with command(shapes_bundle, "--port", port) as (process, url):
        for path in ("/v1/jobs/mine", "/v1/jobs/mine/images/0", "/v1/jobs/mine/events"):
            answer = get(url + path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
            assert "server" in answer.json()["error"]["message"]
        until(lambda: get(f"{url}/ready").status_code == 200, "the model's load")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert content(shapes_bundle) == before


def test_a_server_is_not_ready_before_its_model_is(serve: Serve):
    live = serve()
    live.gate.shut()
    with live.client() as http:
        preparing = threading.Thread(target=live.service.prepare)
        preparing.start()
        until(lambda: http.get("/ready").status_code == 503, "the preparation")
        health = http.get("/health").json()
        assert (health["status"], health["unready"]) == ("loading", ["fake"])
        assert http.get("/v2/models/fake/ready").status_code == 503
        job = http.post("/v1/jobs", json={"prompt": "a", "steps": 2}).json()["id"]
        live.gate.open()
        preparing.join(30)
        assert http.get("/ready").status_code == 200
        assert http.get("/health").json()["status"] == "ok"
        assert live.service.job(job).wait(30)


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    with Service({name: fake_pipeline(tmp_path / name) for name in ("good", "bad")}) as service:
        bad, pipe = service._workers["bad"].model, Model.pipe

        def broken(self):
            if self is bad:
                raise BackendError("no such device")
            return pipe(self)

        monkeypatch.setattr(Model, "pipe", broken)
        assert {name: str(error) for name, error in service.prepare().items()} == {"bad": "no such device"}
        assert service.unready == {"bad"}


@contextmanager
def listening(live: Live, limits: ConnectionLimits):
    """Another server of the same service, whose connections are limited."""
    from latentrt.serving.web.app import create_app

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = HttpServer(create_app(live.service, doors=Doors()), limits=limits, drain=lambda: None)
        thread = threading.Thread(target=server.listen, args=(listener,))
        thread.start()
        try:
            until(lambda: server.started, "the start")
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


def rest(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def connected(port: int) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", port))
    found.settimeout(30)
    return found


def test_connections_that_say_nothing_or_too_little_are_closed(live: Live):
    with listening(live, ConnectionLimits(head_s=0.3)) as port:
        silent, slow, kept = connected(port), connected(port), connected(port)
        slow.sendall(b"GET /health HTTP/1.1\r\nX: ")
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert kept.recv(1 << 16).startswith(b"HTTP/1.1 200")
        kept.sendall(b"GET /hea")
        for connection in (silent, slow, kept):
            with connection:
                assert not rest(connection).startswith(b"HTTP/1.1 200")


def test_a_slow_job_outlasts_the_patience_for_heads(live: Live):
    live.gate.shut()
    with listening(live, ConnectionLimits(head_s=0.2)) as port, connected(port) as connection:
        body = b'{"prompt": "a", "steps": 2}'
        head = f"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        time.sleep(0.5)
        live.gate.open()
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_more_connections_than_allowed_are_told(live: Live):
    with listening(live, ConnectionLimits(most=3)) as port:
        idle = [connected(port) for _ in range(3)]
        with connected(port) as more:
            assert more.recv(1 << 16).startswith(b"HTTP/1.1 503")
        idle.pop().close()

        def answered() -> bool:
            with connected(port) as again:
                again.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
                return again.recv(1 << 16).startswith(b"HTTP/1.1 200")

        until(answered, "a place")
        for connection in idle:
            connection.close()


def test_many_clients_get_their_own_pictures(serve: Serve, tmp_path: Path):
    live = serve(queue=32)
    (tmp_path / "alone").mkdir()
    with fake_pipeline(tmp_path / "alone") as alone:
        server = Server(live.url, alone=lambda request: alone.run(request).images, memory=lambda: 1)
        found = soak(server, requests=60, clients=24, seed=3)
    assert found["wrong"] == []
    assert sum(found["ended"].values()) == 60
    assert found["ended"]["made"] > 40
    assert {"vanished", "refused"} < found["ended"].keys()


def test_controls_have_the_names_of_clients(tmp_path: Path):
    with pytest.raises(RequestError, match="none has any"):
        Service({"fake": fake_pipeline(tmp_path)}, controls={"canny": "edges"})
    with pytest.raises(RequestError, match="latentrt control"):
        Service({"fake": fake_pipeline(tmp_path)}, controls={"canny": str(tmp_path)})
