"""Many clients of a server at a time: every picture against the one made alone, and what becomes of the others."""

from __future__ import annotations

import base64
import io
import itertools
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import latentrt
from latentrt import Request
from latentrt.names import BackendName

VANISHING, RUBBISH = 0.10, 0.05
MOST_APART = 1  # levels of 255
DISTINCT = 100  # requests that differ, at most
MEMORY_GROWTH = 0.10  # from a quarter of the run to its end
_SAMPLERS = ("euler", "euler-a", "dpmpp-2m", "unipc", "heun", "ddim")
_PROMPTS = ("a red circle", "a blue square on a black background", "a green triangle", "two yellow circles")
_WAIT_S = 600.0
_RETRY_S = 0.2

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Server:
    """What clients ask, and what they compare with.

    Args:
        url: of the server.
        alone: makes the pictures of a request, one request after the other.
        memory: of the server's process, in bytes.
    """

    url: str
    alone: Callable[[Request], Picture]
    memory: Callable[[], int]


@contextmanager
def served(bundle: Path, *, backend: BackendName, threads: int | None) -> Iterator[Server]:
    """`latentrt serve` in a process of its own."""
    options = ["--backend", backend, "--keep", "20", *([] if threads is None else ["--threads", str(threads)])]
    command = [sys.executable, "-m", "latentrt.cli", "serve", f"soaked={bundle}", "--port", "0", "--json", *options]
    with (
        latentrt.load(bundle, backend=backend, threads=threads) as pipe,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            lines = list(itertools.takewhile(lambda line: line != "}\n", process.stdout))
            yield Server(
                json.loads("".join([*lines, "}"]))["url"],
                alone=lambda request: pipe.run(request).images,
                memory=lambda: _resident(process.pid),
            )
        finally:
            process.terminate()


def soak(
    server: Server, *, requests: int, clients: int, seed: int, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """So many requests, so many at a time; `wrong` says what should not be."""
    draw = random.Random(seed)
    mix = [_drawn(draw) for _ in range(min(DISTINCT, requests))]
    expected = {request: server.alone(request) for request in mix}
    say(f"{len(mix)} requests made alone")
    run = _Run(server, expected, say, quarter=requests // 4)
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for _ in range(requests):
            pool.submit(run.one, draw.random(), draw.choice(mix), draw.randrange(1 << 30))
    took_s = time.perf_counter() - began
    health = run.settled()
    return run.outcome(requests, health) | {"requests": requests, "clients": clients, "seconds": round(took_s, 1)}


def soak_text(found: dict[str, Any]) -> str:
    """A few lines for people."""
    wrong = "; ".join(found["wrong"]) if found["wrong"] else "nothing"
    mb = ", ".join(f"{size / 1e6:.0f} MB" for size in found["memory_bytes"])
    return (
        f"{found['requests']} requests of {found['clients']} clients at a time in {found['seconds']:.0f} s: "
        f"{json.dumps(found['ended'])}\nlevels apart from those made alone: {json.dumps(found['levels_apart'])}; "
        f"memory after a quarter and at the end: {mb}\nwrong: {wrong}"
    )


class _Run:
    """What clients do, and what they find."""

    def __init__(
        self, server: Server, expected: dict[Request, Picture], say: Callable[[str], None], *, quarter: int
    ) -> None:
        self._server, self._expected, self._say, self._quarter = server, expected, say, quarter
        self._lock = threading.Lock()
        self._http = httpx.Client(base_url=server.url, timeout=_WAIT_S, trust_env=False, limits=httpx.Limits())
        self.ended: Counter[str] = Counter()
        self.levels: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.memory: list[int] = []

    def one(self, chance: float, request: Request, number: int) -> None:
        """One client's request, of the kind that chance says."""
        try:
            if chance < VANISHING:
                self._vanish(request)
                end = "vanished"
            elif chance < VANISHING + RUBBISH:
                self._rubbish(number)
                end = "refused"
            else:
                self._compare(request, _WAYS[number % len(_WAYS)](self._http, request, number))
                end = "made"
        except Exception as error:  # a client reports whatever went wrong, and the others go on
            self._note(f"{type(error).__name__}: {error}"[:300])
            end = "wrong"
        with self._lock:
            self.ended[end] += 1
            total = self.ended.total()
            if total == self._quarter:
                self.memory.append(self._server.memory())
            if total % 100 == 0:
                self._say(f"{total} requests over")

    def settled(self) -> dict[str, Any]:
        """The server's health once nothing runs any more."""
        until = time.monotonic() + 60
        while True:
            health: dict[str, Any] = self._http.get("/health").json()
            if not health["running"] and not health["queued"]:
                break
            if time.monotonic() > until:
                self._note(f"jobs are left: {health}")
                break
            time.sleep(0.05)
        self.memory.append(self._server.memory())
        return health

    def outcome(self, requests: int, health: dict[str, Any]) -> dict[str, Any]:
        """All of it, and what is wrong with it."""
        if self.ended.total() != requests:
            self._note(f"{self.ended.total()} answers for {requests} requests")
        if health["faults"] or health["restarts"]:
            self._note(f"faults: {health}")
        if self.memory[-1] > (1 + MEMORY_GROWTH) * self.memory[0]:
            self._note(f"memory grew from {self.memory[0]} to {self.memory[-1]} bytes")
        return {
            "ended": dict(self.ended),
            "levels_apart": {str(apart): count for apart, count in sorted(self.levels.items())},
            "memory_bytes": self.memory,
            "wrong": self.wrong[:20],
        }

    def _compare(self, request: Request, found: Picture) -> None:
        expected = self._expected[request][0]
        if found.shape != expected.shape:
            raise ValueError(f"a picture of {found.shape} for {expected.shape}")
        apart = int(np.abs(found.astype(int) - expected).max())
        with self._lock:
            self.levels[apart] += 1
        if apart > MOST_APART:
            raise ValueError(f"{apart} levels apart: {request}")

    def _vanish(self, request: Request) -> None:
        """Asks, and goes before the answer."""
        url = httpx.URL(self._server.url)
        body = json.dumps(_openai_body(request)).encode()
        lines = ("POST /v1/images/generations HTTP/1.1", f"Host: {url.host}:{url.port}", f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "", ""])
        with socket.create_connection((url.host, url.port or 80)) as connection:
            connection.sendall(head.encode() + body[: len(body) - (request.seed is not None and request.seed % 2)])
            time.sleep(0.05)

    def _rubbish(self, number: int) -> None:
        path, body = _RUBBISH[number % len(_RUBBISH)]
        status = self._http.post(path, content=body).status_code
        if not 400 <= status < 500:
            raise ValueError(f"{status} for rubbish at {path}")

    def _note(self, text: str) -> None:
        with self._lock:
            self.wrong.append(text)


def _drawn(draw: random.Random) -> Request:
    return Request(
        draw.choice(_PROMPTS),
        negative=draw.choice(("", "a square")),
        seed=draw.randrange(1 << 31),
        steps=draw.randint(2, 8),
        size=draw.choice(((64, 64), (64, 64), (96, 64))),
        sampler=draw.choice(_SAMPLERS),  # type: ignore[arg-type]
        guidance=draw.choice((1.0, 4.0, 7.5)),
    )


def _openai_body(request: Request) -> dict[str, Any]:
    width, height = request.size or (64, 64)
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative,
        "seed": request.seed,
        "steps": request.steps,
        "size": f"{width}x{height}",
        "guidance_scale": request.guidance,
        "response_format": "b64_json",
    }


def _by_job(http: httpx.Client, request: Request, number: int) -> Picture:
    """A job, looked at until it is done."""
    width, height = request.size or (64, 64)
    names = ("prompt", "negative", "seed", "steps", "sampler", "guidance")
    body = {name: getattr(request, name) for name in names} | {"size": f"{width}x{height}"}
    job = _patient(http, "/v1/jobs", body)
    while job["state"] in ("queued", "running"):
        time.sleep(0.05)
        job = http.get(f"/v1/jobs/{job['id']}").raise_for_status().json()
    if job["state"] != "done" or job["seeds"] != [request.seed]:
        raise ValueError(f"a job ended as {job['state']}, of seeds {job['seeds']}: {job['error']}")
    return _picture(http.get(job["images"][0]).raise_for_status().content)


def _by_sdapi(http: httpx.Client, request: Request, number: int) -> Picture:
    """As clients of AUTOMATIC1111 ask."""
    width, height = request.size or (64, 64)
    body = {
        "prompt": request.prompt,
        "negative_prompt": request.negative,
        "seed": request.seed,
        "steps": request.steps,
        "sampler_name": request.sampler,
        "cfg_scale": request.guidance,
        "width": width,
        "height": height,
    }
    found = _patient(http, "/sdapi/v1/txt2img", body)
    if json.loads(found["info"])["all_seeds"] != [request.seed]:
        raise ValueError("another's seeds")
    return _picture(base64.b64decode(found["images"][0]))


def _patient(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Asks again while the queue is full."""
    while True:
        answer = http.post(path, json=body)
        if answer.status_code != 429:
            found: dict[str, Any] = answer.raise_for_status().json()
            return found
        time.sleep(_RETRY_S)


def _picture(data: bytes) -> Picture:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _resident(process: int) -> int:
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(rows["VmRSS"].split()[0]) * 1024


_WAYS = (_by_job, _by_sdapi)
_RUBBISH: tuple[tuple[str, bytes], ...] = (
    ("/v1/images/generations", b"\xff\xfe{{{{"),
    ("/v1/images/generations", b'{"prompt": "a", "size": "7x7x7"}'),
    ("/v1/images/edits", b'{"prompt": "a", "images": [{"image_url": "file:///etc/passwd"}]}'),
    ("/sdapi/v1/txt2img", b'{"prompt": "a", "steps": -4}'),
    ("/sdapi/v1/img2img", b'{"init_images": ["%%%%"]}'),
    ("/v1/jobs", b'{"prompt": ["a", {"b": NaN}]}'),
    ("/v1/jobs", b'{"prompt": "a", "steps": 1e400}'),
    ("/models/nobody", b'{"inputs": "a"}'),
)
