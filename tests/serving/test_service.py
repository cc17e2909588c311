"""Jobs from many threads, on fakes and on the shapes bundle."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from latentrt import Request, RequestError
from latentrt.pipeline import Pipeline
from latentrt.serving.errors import UnknownJob, UnknownModel
from latentrt.serving.jobs import JobState
from latentrt.serving.service import Service
from latentrt.testing import FakeEngine, fake_pipeline

WAIT_S = 120.0


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    return fake_pipeline(tmp_path)


@pytest.fixture
def service(pipe: Pipeline) -> Iterator[Service]:
    with Service({"fake": pipe}) as made:
        yield made


def test_a_job_makes_what_a_pipeline_makes(service: Service, tmp_path: Path):
    (tmp_path / "alone").mkdir()
    alone = fake_pipeline(tmp_path / "alone")
    request = Request(["a fox", "an owl"], seed=7, steps=5)
    job = service.submit(None, request, id="mine")
    assert job.id == "mine"
    assert job.seeds == (7, 8)
    assert job.wait(WAIT_S)
    assert job.state is JobState.DONE
    assert (job.done, job.total, job.position) == (5, 5, 0)
    assert job.created <= job.started <= job.finished
    assert np.abs(job.result.images.astype(int) - alone.run(request).images).max() <= 1
    assert job.preview().shape == (2, 8, 8, 3)
    assert service.job("mine") is job


def test_events_end_with_the_final_one(service: Service):
    job = service.submit("fake", Request("a fox", seed=1, steps=20))
    events = list(job.subscribe())
    assert events[-1].state is JobState.DONE
    assert (events[-1].done, events[-1].total) == (20, 20)
    assert all(a.done <= b.done for a, b in pairwise(events))
    late = job.subscribe()
    assert late.get(0) == events[-1]
    assert late.get(0) is None
    assert late.over


def test_what_there_is_not_is_refused_by_name(service: Service):
    with pytest.raises(UnknownModel, match=r"'nothing'.*fake"):
        service.submit("nothing", Request("a fox"))
    with pytest.raises(UnknownModel, match="LoRA 'none'"):
        service.submit("fake", Request("a fox"), loras=[("none", 1.0)])
    with pytest.raises(UnknownJob, match="'nobody'"):
        service.job("nobody")
    with pytest.raises(RequestError, match="multiple of 8"):
        service.submit("fake", Request("a fox", size=(65, 64)))
    service.submit("fake", Request("a fox"), id="once")
    with pytest.raises(RequestError, match="once"):
        service.submit("fake", Request("a fox"), id="once")


def test_a_request_with_a_step_cache_is_refused(service: Service):
    with pytest.raises(RequestError, match="step caching on a server"):
        service.submit(None, Request("a fox", cache=3))


def test_a_size_without_an_engine_is_refused_before_it_waits(pipe: Pipeline):
    engine = pipe.engines["step"]
    assert isinstance(engine, FakeEngine)
    built = replace(engine.inputs["state"], min=(1, 4, 4, 1, 1), max=(2, 4, 4, 8, 8))
    engine.graph = replace(engine.graph, inputs={**engine.inputs, "state": built})
    with Service({"fake": pipe}) as service:
        with pytest.raises(RequestError, match="state"):
            service.submit(None, Request("a fox", size=(128, 64)))
        assert service.jobs() == []
        assert service.submit(None, Request("a fox", size=(64, 64), images=4)).wait(WAIT_S)
    assert not [call for call in engine.calls if call.feed["state"].shape[-1] > 8]
