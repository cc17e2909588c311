"""Which calls of a run are deep, and what is refused before any work."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentrt import Control, Guidance, Request, RequestError, StepCache, Upscale
from latentrt.denoise.batch import make_plan
from latentrt.denoise.guidance import segments
from latentrt.testing import fake_family, fake_pipeline

GREY = np.full((64, 64, 3), 128, np.uint8)


def deep(**changes: Any) -> list[int]:
    asked = {"steps": 10, "guidance": 5.0, "negative": "grey", **changes}
    plan = make_plan([Request("a fox", **asked)], fake_family())
    return np.flatnonzero(plan.deep).tolist()


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        (None, range(10)),
        (1, range(10)),
        (StepCache(interval=3), [0, 3, 6, 9]),
        (np.int64(4), [0, 4, 8]),
        (1000, [0]),
        ([7, 0, 2, 2], [0, 2, 7]),
        (StepCache(deep=(0,)), [0]),
    ],
)
def test_deep_calls_come_by_an_interval_or_by_a_list(cache, expected):
    assert deep(cache=cache) == list(expected)


def test_a_call_with_other_branches_or_controls_is_deep_and_begins_the_count_anew():
    guidance = Guidance(5.0, interval=(0.2, 0.5))
    assert deep(cache=3, guidance=guidance) == [0, 2, 5, 8]
    assert deep(cache=(0, 4), guidance=guidance) == [0, 2, 4, 5]
    control = Control("edges", GREY, start=0.1, end=0.8)
    assert deep(cache=4, control=[control]) == [0, 1, 5, 8]
    assert deep(cache=4, control=[replace(control, scale=0.0)]) == [0, 4, 8]


def test_segments_are_deep_or_shallow_and_begin_deep():
    plan = make_plan([Request("a", steps=9, guidance=Guidance(4.0, interval=(0.4, 1.0)), cache=3)], fake_family())
    rows = {"guidance": plan.guidance, "timestep": plan.columns.timestep}
    parts = list(segments({"context": np.zeros((2, 1, 77, 8), np.float32)}, rows, deep=plan.deep))
    kinds = [(part.calls.start, part.calls.stop, int(part.branches.sum()), part.shallow) for part in parts]
    alone, guided = [(0, 1, 1, False), (1, 3, 1, True), (3, 4, 1, False)], [(4, 5, 2, False), (5, 7, 2, True)]
    assert kinds == [*alone, *guided, (7, 8, 2, False), (8, 9, 2, True)]


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        (0, "cache is 0; expected at least 1"),
        ((1, 3), "first deep call is 1; expected call 0 among the deep ones"),
        ((), "cache holds 0 whole numbers"),
        ("3", "cache is '3'; expected a whole number"),
        (2.5, "cache is 2.5"),
        ({"interval": 3}, "cache is .*; expected an interval, deep calls, or a StepCache"),
    ],
)
def test_what_is_no_cache_is_refused_when_it_is_asked_for(cache, message: str):
    with pytest.raises(RequestError, match=message):
        Request("a fox", cache=cache)


@pytest.mark.parametrize("arguments", [{}, {"interval": 2, "deep": (0,)}, {"interval": -1}, {"deep": (0, -1)}])
def test_a_cache_is_an_interval_or_a_list(arguments: dict[str, Any]):
    with pytest.raises(RequestError, match="step cache"):
        StepCache(**arguments)


def test_a_cache_that_does_not_fit_the_run_is_refused():
    with pytest.raises(RequestError, match=r"deep call 12.*0 to 9"):
        deep(cache=(0, 12))
    with pytest.raises(RequestError, match=r"several step caches.*run them apart"):
        make_plan([Request("a", cache=2), Request("b", cache=3)], fake_family())
    with pytest.raises(RequestError, match="upscaling with a list of deep calls"):
        Request("a", cache=(0, 2), upscale=Upscale(2))


def test_a_bundle_without_shallow_calls_says_what_adds_them(tmp_path: Path):
    with fake_pipeline(tmp_path) as pipe:
        for asked in (lambda: pipe.generate("a fox", cache=3), lambda: pipe.prepare(cached=True)):
            with pytest.raises(RequestError, match="latentrt convert BUNDLE -o OTHER --step-cache"):
                asked()
        assert pipe.generate("a fox", cache=1, seed=1).requests[0].cache is None
