"""Batches of steps: what is made equals what a pipeline makes alone, faults stay with their job, turns are fair."""

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from controls import picture
from diffusers import StableDiffusionPipeline
from lora_files import random_layers, write_lora

import latentrt
from latentrt import BackendError, Control, Guidance, Image, Inpaint, Pipeline, Request, RequestError, Upscale
from latentrt.serving.calls import Calls
from latentrt.serving.errors import JobCancelled, NotAccepting, QueueFull, UnknownJob
from latentrt.serving.jobs import Job, JobState
from latentrt.serving.service import Service
from latentrt.serving.turns import Batch, batch_size
from latentrt.testing import FakeEngine, fake_pipeline

WAIT_S = 20.0
MARK = 13.0
"""A guidance that tells the jobs whose calls a test lets fail."""


class Gate:
    """Lets the calls of a fake step through, and may change what they give."""

    def __init__(self, engine: FakeEngine) -> None:
        self._open, self.arrived = threading.Semaphore(0), threading.Semaphore(0)
        self._inner = engine.function
        self.batches: list[int] = []
        self.spoil: Callable[[Mapping, dict], None] = lambda feed, out: None
        self._shut = True
        engine.function = self

    def __call__(self, feed: Mapping) -> Mapping:
        if self._shut:
            self.arrived.release()
            assert self._open.acquire(timeout=WAIT_S)
        self.batches.append(len(feed["state"]))
        out = dict(self._inner(feed))
        self.spoil(feed, out)
        return out

    def step(self, calls: int = 1) -> None:
        """Lets so many calls through, and waits until the next one has arrived."""
        for _ in range(calls):
            self._open.release()
            assert self.arrived.acquire(timeout=WAIT_S)

    def open(self) -> None:
        self._shut = False
        self._open.release(1000)


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path)


@pytest.fixture
def gate(pipe: Pipeline) -> Gate:
    engine = pipe.engines["step"]
    assert isinstance(engine, FakeEngine)
    return Gate(engine)


@pytest.fixture
def service(pipe: Pipeline, gate: Gate) -> Iterator[Service]:
    with Service({"fake": pipe}, batch_gain=0, padding=0.25) as made:
        yield made
        gate.open()


def submitted(service: Service, gate: Gate, *requests: Request) -> list[Job]:
    """Jobs that are all there and encoded, as far as their turn is near, when the call after the first is made: the
    first waits at the gate with the first job alone."""
    first = service.submit(None, requests[0])
    assert gate.arrived.acquire(timeout=WAIT_S)
    jobs = [first, *(service.submit(None, request) for request in requests[1:])]
    line = service._workers["fake"].line
    with line.changed:
        line.send_ahead()
        begun = [ticket for ticket in line.tickets if ticket.begun]
        assert line.changed.wait_for(lambda: all(ticket.rows for ticket in begun), WAIT_S)
    return jobs


def marked(feed: Mapping) -> np.ndarray:
    """Which images of a call are guided by MARK."""
    return (feed["guidance"] == MARK).any(axis=0)


def offline(requests: list[Request], folder: Path) -> list[np.ndarray]:
    folder.mkdir(exist_ok=True)
    with fake_pipeline(folder) as alone:
        return [alone.run(request).images for request in requests]


def levels_apart(found: np.ndarray, expected: np.ndarray) -> int:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return int(np.abs(found.astype(int) - expected).max(initial=0))


def mixed(size: tuple[int, int], other: tuple[int, int]) -> list[Request]:
    """Everything that may differ within a call, and much that may not."""
    photo = picture(0, size)
    mask = np.zeros(photo.shape[:2], bool)
    mask[: len(mask) // 2] = True
    return [
        Request("a red circle", steps=20, seed=1, size=size),
        Request("a blue square", steps=4, seed=2, size=size, sampler="euler-a"),
        Request("a green triangle", steps=50, seed=3, size=size, sampler="dpmpp-2m", schedule="karras"),
        Request("a red square", steps=4, seed=4, size=size, sampler="heun", guidance=1.0),
        Request(["a circle", "a square"], negative="a triangle", steps=8, seed=5, images=2, size=size, sampler="pndm"),
        Request("a red circle AND a blue square", steps=6, seed=6, size=size, sampler="unipc"),
        Request("a circle", steps=10, seed=7, size=size, guidance=Guidance(9.0, interval=(0.2, 0.7), rescale=0.5)),
        Request("a circle", steps=7, seed=8, size=other, sampler="lms"),
        Request("a circle " * 90, steps=4, seed=9, size=size),
        Request("a circle", steps=10, seed=10, start=Image(photo, strength=0.5), size=size),
        Request("a circle", steps=6, seed=11, start=Inpaint(photo, mask), size=size, sampler="dpmpp-2m-sde"),
        Request("a circle", steps=4, seed=12, size=size, output="latent", clip_skip=1),
        Request("a circle", steps=4, seed=13, size=size, upscale=Upscale(1.5)),
        Request("a circle", steps=4, seed=14, size=size, sampler="lcm", guidance=0.0),
    ]


def check_equal(service: Service, requests: list[Request], alone: list[latentrt.Result]) -> None:
    jobs = [service.submit(None, request) for request in requests]
    for job, expected in zip(jobs, alone, strict=True):
        assert job.wait(WAIT_S)
        result = job.result
        assert levels_apart(result.images, expected.images) <= 1, job.request
        assert result.seeds == expected.seeds
        assert result.requests == expected.requests
        assert job.done == job.total
        if expected.latents is not None:
            assert result.latents is not None
            assert np.abs(result.latents - expected.latents).max() < 1e-3


def test_every_image_equals_the_one_made_alone(shapes_bundle: Path):
    requests = mixed((64, 64), (96, 64))
    with latentrt.load(shapes_bundle, backend="onnxruntime", threads=1) as alone:
        expected = [alone.run(request) for request in requests]
    with Service({"shapes": shapes_bundle}, backend="onnxruntime", threads=1, batch_gain=0, padding=0.25) as service:
        check_equal(service, requests, expected)
        stats = service.stats()
    assert stats.done == len(requests)
    assert stats.rows == sum(len(result.seeds) * len(result.timings.steps_ms) for result in expected)
    assert max(stats.batches) >= 3
    assert stats.calls < stats.rows


def test_controls_join_calls_with_controls(controlled_bundle: Path):
    lines = [picture(seed, (64, 64)) for seed in range(3)]
    requests = [
        Request("a circle", seed=1, steps=6, size=(64, 64)),
        Request("a circle", seed=1, steps=6, size=(64, 64), control=[Control("random", lines[0])]),
        Request("a square", seed=2, steps=4, size=(64, 64), control=[Control("random", lines[1], scale=0.5)]),
        Request("a square", seed=3, steps=8, size=(64, 64), control=[Control("random", lines[2], end=0.5, guess=True)]),
    ]
    with latentrt.load(controlled_bundle, backend="onnxruntime", threads=1) as alone:
        expected = [alone.run(request) for request in requests]
    assert levels_apart(expected[0].images, expected[1].images) > 8
    with Service({"shapes": controlled_bundle}, backend="onnxruntime", threads=1) as service:
        check_equal(service, requests, expected)


def test_jobs_of_other_loras_take_turns_with_the_weights(shapes_bundle: Path, shapes_checkpoint: Path, tmp_path: Path):
    layers = random_layers(StableDiffusionPipeline.from_pretrained(shapes_checkpoint), text_encoder=("q_proj",))
    path = write_lora(tmp_path / "change.safetensors", layers)
    sets: list[tuple[tuple[str, float], ...]] = [(), (("change", 1.0),), (("change", 0.5),)]
    request = Request("a red circle", seed=1, steps=4, size=(64, 64))
    expected = []
    with latentrt.load(shapes_bundle, backend="onnxruntime", threads=1) as alone:
        for loras in sets:
            alone.set_lora([(path, scale) for _, scale in loras])
            expected.append(alone.run(request))
    assert levels_apart(expected[0].images, expected[1].images) > 8
    with Service({"shapes": shapes_bundle}, backend="onnxruntime", threads=1, loras={"change": path}) as service:
        jobs = [
            (service.submit(None, request, loras=loras), found)
            for loras, found in zip(sets * 2, expected * 2, strict=True)
        ]
        for job, found in jobs:
            assert job.wait(WAIT_S)
            assert levels_apart(job.result.images, found.images) <= 1
            assert [lora.scale for lora in job.result.lora] == [scale for _, scale in job.loras]


def test_images_share_calls_at_different_steps(service: Service, gate: Gate, tmp_path: Path):
    requests = [
        Request("a", seed=1, steps=50),
        Request("b", seed=2, steps=4, sampler="euler-a"),
        Request("c", seed=3, steps=20, guidance=3.0, sampler="dpmpp-2m"),
        Request("d", seed=4, steps=6, size=(96, 64)),
    ]
    jobs = submitted(service, gate, *requests)
    gate.open()
    for job, expected in zip(jobs, offline(requests, tmp_path / "alone"), strict=True):
        assert job.wait(WAIT_S)
        assert levels_apart(job.result.images, expected) <= 1
    stats = service.stats()
    assert stats.rows == 50 + 4 + 20 + 6
    assert stats.batches[3] >= 3
    assert stats.padded == stats.batches[3]
    assert set(gate.batches) <= {1, 2, 4, 8}


def test_a_cancelled_job_leaves_before_the_next_call_and_no_other_does(service: Service, gate: Gate, tmp_path: Path):
    requests = [Request(name, seed=seed, steps=30) for seed, name in enumerate("abcd")]
    jobs = submitted(service, gate, *requests)
    gate.step(5)
    assert gate.batches[-1] == 4
    jobs[2].cancel()
    assert jobs[2].state is JobState.CANCELLED
    assert jobs[2].wait(0)
    gate.step(2)  # the call that it was in, and the next
    assert service.stats().batches[3] >= 1
    gate.open()
    expected = offline(requests, tmp_path / "alone")
    for index in (0, 1, 3):
        assert jobs[index].wait(WAIT_S)
        assert levels_apart(jobs[index].result.images, expected[index]) <= 1
    with pytest.raises(JobCancelled):
        _ = jobs[2].result
    assert jobs[2].done < 30
    jobs[0].cancel()
    assert jobs[0].state is JobState.DONE
    stats = service.stats()
    assert (stats.done, stats.cancelled, stats.failed, stats.running, stats.queued) == (3, 1, 0, 0, 0)


def test_a_waiting_job_can_be_cancelled(service: Service, gate: Gate):
    running = submitted(service, gate, Request("a", images=16, steps=4))[0]
    waiting = [service.submit(None, Request("b", steps=50)) for _ in range(3)]
    assert [job.position for job in (running, *waiting)] == [0, 1, 2, 3]
    waiting[0].cancel()
    assert [job.position for job in waiting] == [0, 1, 2]
    gate.open()
    assert all(job.wait(WAIT_S) for job in waiting)
    assert [job.state for job in waiting] == [JobState.CANCELLED, JobState.DONE, JobState.DONE]


def test_the_queue_is_bounded(pipe: Pipeline, gate: Gate):
    with Service({"fake": pipe}, batch_gain=0, queue=2) as service:
        submitted(service, gate, Request("a", images=16, steps=4))
        waiting = [service.submit(None, Request("b", steps=50)) for _ in range(2)]
        with pytest.raises(QueueFull, match="2 jobs wait") as caught:
            service.submit(None, Request("c"))
        assert caught.value.retry_after >= 1
        waiting[0].cancel()
        service.submit(None, Request("c"))
        gate.open()


@pytest.mark.parametrize("error", [BackendError("out of memory"), RuntimeError("a fault"), RequestError("too large")])
def test_a_job_that_fails_in_the_engine_fails_alone(service: Service, gate: Gate, tmp_path: Path, error: Exception):
    def spoil(feed: Mapping, out: dict) -> None:
        if marked(feed).any():
            raise error

    gate.spoil = spoil
    requests = [Request(name, seed=seed, steps=8, guidance=5.0) for seed, name in enumerate("abcde")]
    requests[2] = Request("c", seed=2, steps=8, guidance=MARK)
    jobs = submitted(service, gate, *requests)
    gate.open()
    expected = offline(requests, tmp_path / "alone")
    for index, job in enumerate(jobs):
        assert job.wait(WAIT_S)
        if index == 2:
            assert job.state is JobState.FAILED
            assert error.__traceback__ is None, "a job that failed holds no frame, and no engine with it"
            with pytest.raises(latentrt.LatentRTError, match=str(error)):
                _ = job.result
        else:
            assert levels_apart(job.result.images, expected[index]) <= 1
    stats = service.stats()
    assert (stats.failed, stats.done) == (1, 4)
    assert stats.faults >= 1
    assert (stats.restarts > 0) is not isinstance(error, RequestError)
    after = service.submit(None, requests[0])
    assert after.wait(WAIT_S)
    assert after.state is JobState.DONE


def test_a_loop_that_fails_begins_anew_without_what_was_on_its_way(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch):
    make, failed = Calls.make, []

    def broken(self: Calls, batch: Batch) -> None:
        if not failed:
            failed.append(batch)
            raise RuntimeError("a fault of the loop")
        make(self, batch)

    monkeypatch.setattr(Calls, "make", broken)
    with Service({"fake": pipe}) as service:
        first = service.submit(None, Request("a", steps=4))
        assert first.wait(WAIT_S)
        assert first.state is JobState.FAILED
        assert "a fault of the loop" in str(first.error)
        second = service.submit(None, Request("b", steps=4))
        assert second.wait(WAIT_S)
        assert second.state is JobState.DONE
        assert service.stats().restarts == 1


def test_closing_ends_a_preparation(pipe: Pipeline, gate: Gate):
    with Service({"fake": pipe}) as service:
        preparing = threading.Thread(target=service.prepare, daemon=True)
        preparing.start()
        assert gate.arrived.acquire(timeout=WAIT_S)
        closing = threading.Thread(target=service.close)
        closing.start()
        while not service._workers["fake"].line.closed:
            pass
        gate.open()
        closing.join(WAIT_S)
    preparing.join(WAIT_S)
    assert not preparing.is_alive()


def test_what_is_no_longer_finite_fails_alone(service: Service, gate: Gate):
    def spoil(feed: Mapping, out: dict) -> None:
        out["next_state"][marked(feed)] = np.nan

    gate.spoil = spoil
    requests = [Request("a", steps=4), Request("b", steps=4, guidance=MARK), Request("c", steps=4)]
    jobs = submitted(service, gate, *requests)
    gate.open()
    assert all(job.wait(WAIT_S) for job in jobs)
    assert [job.state for job in jobs] == [JobState.DONE, JobState.FAILED, JobState.DONE]
    assert isinstance(jobs[1].error, BackendError)


def test_batches_that_are_too_large_become_smaller(service: Service, gate: Gate, tmp_path: Path):
    def spoil(feed: Mapping, out: dict) -> None:
        if len(feed["state"]) > 2:
            raise BackendError("out of memory")

    gate.spoil = spoil
    requests = [Request(name, seed=seed, steps=6) for seed, name in enumerate("abcdefgh")]
    jobs = submitted(service, gate, *requests)
    gate.open()
    for job, expected in zip(jobs, offline(requests, tmp_path / "alone"), strict=True):
        assert job.wait(WAIT_S)
        assert levels_apart(job.result.images, expected) <= 1
    assert service.stats().faults <= 3


def test_short_jobs_overtake_long_ones_and_long_ones_end(pipe: Pipeline, gate: Gate):
    over: list[str] = []
    with Service({"fake": pipe}, batch_gain=0) as service:
        long = submitted(service, gate, *[Request("long", images=4, steps=500, seed=i) for i in range(2)])
        short = [service.submit(None, Request("short", steps=4, size=(96, 64), seed=i)) for i in range(3)]
        threads = [
            threading.Thread(target=lambda job=job, name=name: job.wait(WAIT_S) and over.append(name))
            for name, jobs in (("long", long), ("short", short))
            for job in jobs
        ]
        for thread in threads:
            thread.start()
        gate.open()
        for thread in threads:
            thread.join()
    assert over == ["short"] * 3 + ["long"] * 2


def test_nothing_is_lost_or_doubled_under_many_threads(pipe: Pipeline, gate: Gate, tmp_path: Path):
    gate.open()
    requests = [
        Request(
            f"prompt {i % 5}",
            seed=i,
            steps=(4, 7, 12)[i % 3],
            sampler=("euler", "euler-a", "dpmpp-2m", "heun")[i % 4],
            guidance=(1.0, 5.0, 7.5)[i % 3],
            size=((64, 64), (96, 64))[i % 2],
        )
        for i in range(192)
    ]
    expected = offline(requests, tmp_path / "alone")
    found: dict[int, np.ndarray] = {}
    wrong: list[BaseException] = []
    with Service({"fake": pipe}, batch_gain=0, queue=256) as service:

        def client(first: int) -> None:
            try:
                for i in range(first, len(requests), 64):
                    job = service.submit("fake", requests[i], id=f"job-{i}")
                    if i % 10 == 3:
                        service.submit("fake", requests[i]).cancel()
                    events = list(job.subscribe())
                    assert events[-1].state is JobState.DONE
                    assert i not in found
                    found[i] = service.job(f"job-{i}").result.images
            except BaseException as error:
                wrong.append(error)
                raise

        threads = [threading.Thread(target=client, args=(first,)) for first in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = service.stats()
    assert not wrong
    assert sorted(found) == list(range(len(requests)))
    assert max(levels_apart(found[i], expected[i]) for i in found) <= 1
    assert stats.done + stats.cancelled == len(requests) + sum(i % 10 == 3 for i in range(len(requests)))
    assert stats.done >= len(requests)
    assert (stats.failed, stats.running, stats.queued) == (0, 0, 0)
    assert max(stats.batches) > 1


def test_a_drained_service_ends_what_it_has_and_takes_nothing(service: Service, gate: Gate):
    jobs = submitted(service, gate, Request("a", steps=4), Request("b", steps=4))
    assert not service.drain(timeout=0)
    with pytest.raises(NotAccepting):
        service.submit(None, Request("c"))
    gate.open()
    assert service.drain(WAIT_S)
    assert [job.state for job in jobs] == [JobState.DONE] * 2


def test_closing_cancels_what_is_under_way_and_gives_the_pipeline_back(pipe: Pipeline, gate: Gate):
    with Service({"fake": pipe}, batch_gain=0) as service:
        jobs = submitted(service, gate, Request("a", steps=40), Request("b", steps=4))
        with pytest.raises(RequestError, match="busy"):
            pipe.generate("c")
        gate.open()
    assert all(job.state.final for job in jobs)
    service.close()
    with pytest.raises(NotAccepting):
        service.submit(None, Request("c"))
    assert pipe.generate("c", steps=2).images.shape == (1, 64, 64, 3)


def test_jobs_are_forgotten_in_time(pipe: Pipeline, gate: Gate):
    gate.open()
    with Service({"fake": pipe}, batch_gain=0, keep_s=0) as service:
        job = service.submit(None, Request("a", steps=2), id="brief")
        assert job.wait(WAIT_S)
        with pytest.raises(UnknownJob, match="brief"):
            while True:
                service.job("brief")
    assert job.result.images.shape == (1, 64, 64, 3)


def test_pictures_are_kept_while_there_is_room(pipe: Pipeline, gate: Gate):
    gate.open()
    with Service({"fake": pipe}, keep_bytes=2 * 64 * 64 * 3) as service:
        for name in "abc":
            assert service.submit(None, Request(name, steps=2), id=name).wait(WAIT_S)
        assert [job.id for job in service.jobs()] == ["b", "c"]
        with pytest.raises(UnknownJob, match="'a'"):
            service.job("a")


@pytest.mark.parametrize(
    ("images", "most", "padding", "size"),
    [(1, 8, 0, 1), (3, 8, 0.25, 4), (3, 8, 0, 2), (5, 8, 0.25, 4), (6, 8, 0.25, 8), (9, 8, 0.25, 8), (7, 1, 0.5, 1)],
)
def test_sizes_of_batches_are_few(images: int, most: int, padding: float, size: int):
    assert batch_size(images, most, padding=padding) == size


def test_the_area_of_a_call_is_bounded(pipe: Pipeline, gate: Gate):
    with Service({"fake": pipe}, batch_gain=0, batch_area=2 * 64 * 64) as service:
        jobs = submitted(service, gate, Request("a", images=4, steps=3), Request("b", images=2, steps=3, size=(96, 96)))
        gate.open()
        assert all(job.wait(WAIT_S) for job in jobs)
        assert set(gate.batches) == {1, 2}
        assert all(job.state is JobState.DONE for job in jobs)
