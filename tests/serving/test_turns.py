"""Who is next, how large a batch is, and which models are in memory: without a thread, where it can be."""

import threading
from pathlib import Path

import numpy as np
import pytest

from latentrt import Request
from latentrt.backends.host_memory import free_bytes
from latentrt.serving.jobs import Job
from latentrt.serving.memory import HOLD_S, Memory, call_area, weights_room
from latentrt.serving.rows import Key
from latentrt.serving.ticket import Ticket, work
from latentrt.serving.turns import Limits
from latentrt.testing import fake_pipeline

KEY = Key(shape=(4, 8, 8), context=77, branches=2)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory):
    with fake_pipeline(tmp_path_factory.mktemp("fake")) as pipe:
        yield lambda steps, **others: pipe.plan([Request("a", steps=steps, **others)])


def ticket(plan, *, arrived: float) -> Ticket:
    job = Job("a", model="fake", request=plan.requests[0], seeds=plan.seeds, total=plan.calls)
    return Ticket(job, plan, arrived, (), whole=work(plan), due=0.0)


def test_the_short_job_is_slowed_down_sooner_and_the_long_one_in_time(plan):
    long, short = ticket(plan(50), arrived=0.0), ticket(plan(4), arrived=1.0)
    pace = 10.0 / long.whole  # ten seconds for the long one
    assert long.slowdown(0.0, pace) == short.slowdown(1.0, pace) == 1.0
    assert short.slowdown(2.0, pace) > long.slowdown(2.0, pace) > 1.1
    later = ticket(plan(4), arrived=19.9)
    assert long.slowdown(20.0, pace) > later.slowdown(20.0, pace)


def speeds(limits: Limits, **seconds: float) -> int:
    """What is allowed after calls of these sizes took so long, the first one of each ten times as long."""
    for size, each in seconds.items():
        for factor in (10, 1, 1, 1):
            limits.measured(KEY, int(size[1:]), factor * each)
    return limits.images(KEY)


def test_batches_grow_as_long_as_that_is_worth_it():
    assert Limits(8 * 64, gain=1.1).images(KEY) == 1
    assert speeds(Limits(8 * 64, gain=1.1), n1=1.0) == 2
    assert speeds(Limits(8 * 64, gain=1.1), n1=1.0, n2=1.9) == 1
    assert speeds(Limits(8 * 64, gain=1.1), n1=1.0, n2=1.2, n4=1.5, n8=2.0) == 8
    assert speeds(Limits(8 * 64, gain=1.1), n1=1.0, n2=1.2, n4=2.3) == 2
    assert speeds(Limits(8 * 64, gain=0), n1=1.0, n2=9.0) == 8
    assert speeds(Limits(4 * 64, gain=1.1), n1=1.0, n2=1.2, n4=1.5) == 4
    small = Limits(8 * 64, gain=0, sizes=(1,))
    assert small.images(KEY) == 1


class Tenant:
    """A model of so many bytes, with work or without."""

    def __init__(self, name: str, size: int, memory: Memory) -> None:
        self.name, self.bytes, self._memory = name, size, memory
        self.last_used, self.busy = 0.0, False

    def retire(self) -> bool:
        return not self.busy

    def enter(self) -> bool:
        return self._memory.enter(self, gone=lambda: False)


def test_idle_models_make_room_by_least_use():
    memory = Memory(100)
    one, two, three = (Tenant(name, 45, memory) for name in ("one", "two", "three"))
    assert one.enter()
    assert two.enter()
    one.last_used = 2.0
    assert three.enter()
    assert set(memory.inside) == {"one", "three"}
    huge = Tenant("huge", 1000, memory)
    assert huge.enter()
    assert memory.inside == ("huge",)


def test_a_model_that_works_is_asked_to_go_when_another_waits(monkeypatch: pytest.MonkeyPatch):
    memory = Memory(100)
    one, two = Tenant("one", 60, memory), Tenant("two", 60, memory)
    one.busy = True
    assert one.enter()
    assert not memory.wanted(one)
    assert not memory.enter(two, gone=lambda: True)
    waiting = threading.Thread(target=two.enter)
    waiting.start()
    clock = [0.0]
    monkeypatch.setattr("latentrt.serving.memory.time.monotonic", lambda: clock[0])
    while not memory._waiting:
        pass
    memory._inside[one] = 0.0
    assert not memory.wanted(one)
    clock[0] = HOLD_S + 1
    assert memory.wanted(one)
    memory.leave(one)
    waiting.join()
    assert memory.inside == ("two",)


def test_area_and_room_share_the_memory():
    area = call_area(10**9, 10**8, most=10**9)
    assert weights_room(10**9, area) >= 10**8
    assert call_area(10**9, 10**8, most=64) == 64
    assert call_area(10, 100, most=64) == 1
    free = free_bytes()
    assert free is None or 0 < free < 1 << 50


def test_two_models_take_turns_in_memory_that_holds_one(tmp_path: Path):
    from latentrt.serving.service import Service

    pipes = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pipes[name] = fake_pipeline(tmp_path / name)
    with Service(pipes, memory=1, batch_area=1) as service:
        for worker in service._workers.values():
            worker.model.__class__ = type("Heavy", (type(worker.model),), {"bytes": property(lambda self: 100)})
        requests = [Request("x", seed=seed, steps=5) for seed in range(6)]
        jobs = [service.submit("ab"[i % 2], request) for i, request in enumerate(requests)]
        assert all(job.wait(60) for job in jobs)
        assert len(service._memory.inside) == 1
        pictures = [job.result.images for job in jobs]
    alone = tmp_path / "alone"
    alone.mkdir()
    with fake_pipeline(alone) as pipe:
        for request, found in zip(requests, pictures, strict=True):
            assert np.array_equal(found, pipe.run(request).images)
