"""Arrivals at random, and the ways to serve them."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import latentrt
from benchmarks.serving.figures import SHORT_STEPS, Round, Served, figures
from latentrt import Pipeline, Request
from latentrt.names import BackendName, SamplerName
from latentrt.serving.jobs import JobState
from latentrt.serving.service import Service

STEPS = (SHORT_STEPS, 20, 50)
SAMPLERS: tuple[SamplerName, ...] = ("euler", "euler-a", "dpmpp-2m", "unipc")
GUIDANCE = (1.0, 5.0, 7.5)
GUIDED = (1.0, 5.0)  # none, and any
PROMPTS = ("a red circle on a white background", "a blue square", "a green triangle on a black background")
SIZES = ((64, 64), (96, 64))
MOST_TOGETHER = 8
WAIT_S = 3600.0

Kind = tuple[int | None, tuple[int, int] | None, bool]
"""What the time of a request alone depends on: steps, size, whether it is guided."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, and when it comes after the beginning."""

    at_s: float
    request: Request


class Way(Protocol):
    """Serves arrivals."""

    def __call__(self, arrivals: Sequence[Arrival], alone_s: Mapping[Kind, float]) -> Round: ...


def kind(request: Request) -> Kind:
    """Its kind."""
    return (request.steps, request.size, request.guidance == 1.0)


def drawn(draw: random.Random, sizes: Sequence[tuple[int, int]], steps: Sequence[int]) -> Request:
    """A request of the mix."""
    return Request(
        draw.choice(PROMPTS),
        seed=draw.randrange(1 << 31),
        steps=draw.choice(steps),
        size=draw.choice(sizes),
        sampler=draw.choice(SAMPLERS),
        guidance=draw.choice(GUIDANCE),
    )


def arrivals_of(draw: random.Random, requests: Sequence[Request], rate: float) -> list[Arrival]:
    """They come at random, `rate` a second."""
    now, found = 0.0, []
    for request in requests:
        now += draw.expovariate(rate)
        found.append(Arrival(now, request))
    return found


def in_the_pipeline(pipe: Pipeline, *, together: int) -> Way:
    """Requests as a whole: that of the earliest arrival, and those that wait and agree with it in size and steps."""

    def serve(arrivals: Sequence[Arrival], alone_s: Mapping[Kind, float]) -> Round:
        found, left, began = Round(), deque(arrivals), time.perf_counter()
        while left:
            now = time.perf_counter() - began
            if left[0].at_s > now:
                time.sleep(left[0].at_s - now)
                now = left[0].at_s
            first = left[0].request
            batch = [
                each
                for each in left
                if each.at_s <= now and (each.request.size, each.request.steps) == (first.size, first.steps)
            ][:together]
            for each in batch:
                left.remove(each)
            result = pipe.run(*(each.request for each in batch))
            done = time.perf_counter() - began
            found.count(len(batch), len(result.timings.steps_ms))
            found.served += [
                Served(each.request.steps or 0, each.at_s, now, done, alone_s[kind(each.request)]) for each in batch
            ]
        return found

    return serve


def by_steps(service: Service) -> Way:
    """The service, which shares the calls of steps."""

    def serve(arrivals: Sequence[Arrival], alone_s: Mapping[Kind, float]) -> Round:
        before, began, clock = service.stats(), time.perf_counter(), time.time()
        jobs = []
        for each in arrivals:
            time.sleep(max(0.0, each.at_s - (time.perf_counter() - began)))
            jobs.append(service.submit(None, each.request))
        found = Round()
        for each, job in zip(arrivals, jobs, strict=True):
            job.wait(WAIT_S)
            if job.state is not JobState.DONE or job.stepped is None or job.finished is None:
                sys.exit(f"a job ended as {job.state}: {job.error}")
            times = (each.at_s, job.stepped - clock, job.finished - clock)
            found.served.append(Served(each.request.steps or 0, *times, alone_s[kind(each.request)]))
        after = service.stats()
        for size, calls in after.batches.items():
            found.count(size, calls - before.batches.get(size, 0))
        found.padded = after.padded - before.padded
        return found

    return serve


def times_alone(pipe: Pipeline, requests: Sequence[Request]) -> dict[Kind, float]:
    """Seconds of each kind of request alone: the faster of two runs."""
    found: dict[Kind, float] = {}
    for request in {kind(request): request for request in requests}.values():
        took = []
        for _ in range(2):
            began = time.perf_counter()
            pipe.run(request)
            took.append(time.perf_counter() - began)
        found[kind(request)] = min(took)
    return found


@contextmanager
def all_ways(bundle: Path, *, backend: BackendName, threads: int | None) -> Iterator[tuple[Pipeline, dict[str, Way]]]:
    """A pipeline, and the ways by name, each of them warm."""
    with (
        latentrt.load(bundle, backend=backend, threads=threads) as pipe,
        Service({"bundle": bundle}, queue=1 << 16, backend=backend, threads=threads) as service,
    ):
        ways = {
            "serial": in_the_pipeline(pipe, together=1),
            "request": in_the_pipeline(pipe, together=MOST_TOGETHER),
            "step": by_steps(service),
        }
        warm = [Request(PROMPTS[0], steps=4, size=size, guidance=scale) for size in SIZES for scale in GUIDED] * 3
        for way in ways.values():
            way([Arrival(0.0, request) for request in warm], {kind(request): 1.0 for request in warm})
        yield pipe, ways


def measure(
    bundle: Path,
    *,
    backend: BackendName,
    threads: int | None,
    loads: Sequence[float],
    jobs: int,
    rounds: int,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """All loads, each way serving the same arrivals in turn."""
    draw = random.Random(seed)
    with all_ways(bundle, backend=backend, threads=threads) as (pipe, ways):
        mix = [
            Request("a", steps=n, size=size, guidance=scale) for n in STEPS for size in SIZES for scale in (1.0, 5.0)
        ]
        alone_s = times_alone(pipe, mix)
        rows = []
        for load in loads:
            made: dict[str, list[Round]] = {name: [] for name in ways}
            for number in range(rounds):
                requests = [drawn(draw, SIZES, STEPS) for _ in range(jobs)]
                rate = load / statistics.fmean(alone_s[kind(request)] for request in requests)
                arrivals = arrivals_of(draw, requests, rate)
                for name in draw.sample(sorted(ways), len(ways)):
                    say(f"load {load:g}, round {number + 1} of {rounds}: {name}")
                    made[name].append(ways[name](arrivals, alone_s))
            rows.append({"load": load, "ways": {name: figures(each) for name, each in made.items()}})
    return {"sizes": SIZES, "alone_s": [[*key, value] for key, value in alone_s.items()], "loads": rows}
