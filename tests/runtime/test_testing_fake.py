"""The public fake keeps the contract of the seam, and holds its callers to it."""

from __future__ import annotations

import numpy as np
import pytest

from latentrt.arrays import DeviceArray, to_host
from latentrt.engine import Engine, EngineOptions, Preparation
from latentrt.errors import BackendError, RequestError
from latentrt.graph import TensorSpec
from latentrt.testing import FakeEngine

SPEC = TensorSpec("float32", (None, 3))


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine(
        {"state": SPEC, "push": SPEC},
        {"next": SPEC},
        lambda feed: {"next": 0.5 * feed["state"] + feed["push"]},
    )


def _feed(rows: int = 2) -> dict[str, np.ndarray]:
    return {"state": np.ones((rows, 3), np.float32), "push": np.full((rows, 3), 2, np.float32)}


def test_it_is_an_engine_and_records_its_calls(fake: FakeEngine) -> None:
    engine: Engine = fake
    result = engine.run(_feed())["next"]
    assert np.array_equal(to_host(result), np.full((2, 3), 2.5, np.float32))
    assert len(fake.calls) == 1
    assert np.array_equal(fake.calls[0].feed["push"], _feed()["push"])
    assert fake.prepared == [{"state": (2, 3), "push": (2, 3)}]


def test_kept_outputs_feed_back(fake: FakeEngine) -> None:
    feed, expected = _feed(), np.float32(1)
    state = feed["state"]
    for _ in range(5):
        state = fake.run({"state": state, "push": feed["push"]}, keep=("next",))["next"]
        expected = np.float32(0.5) * expected + np.float32(2)
        assert isinstance(state, DeviceArray)
        assert not isinstance(state, np.ndarray)
        assert np.array_equal(to_host(state), np.full((2, 3), expected))
    assert [call.keep for call in fake.calls] == [("next",)] * 5


def test_a_kept_output_expires_after_the_next_run(fake: FakeEngine) -> None:
    kept = fake.run(_feed(), keep=("next",))["next"]
    held = to_host(kept).copy()
    fake.run({**_feed(), "state": kept})
    with pytest.raises(RequestError, match="memory was reused"):
        fake.run({**_feed(), "state": kept})
    assert np.array_equal(held, np.full((2, 3), 2.5, np.float32))


def test_it_checks_as_real_engines_do(fake: FakeEngine) -> None:
    with pytest.raises(RequestError, match="no value for input push"):
        fake.run({"state": _feed()["state"]})
    with pytest.raises(RequestError, match="is float64"):
        fake.run({**_feed(), "state": np.ones((2, 3))})
    with pytest.raises(RequestError, match=r"has shape \[2, 4\]"):
        fake.run({**_feed(), "state": np.ones((2, 4), np.float32)})
    assert fake.calls == []


def test_into_receives_the_output(fake: FakeEngine) -> None:
    target = np.empty((2, 3), np.float32)
    assert fake.run(_feed(), into={"next": target})["next"] is target
    assert np.array_equal(target, np.full((2, 3), 2.5, np.float32))


def test_a_function_that_breaks_its_promise_is_named() -> None:
    wrong_name = FakeEngine({"x": SPEC}, {"y": SPEC}, lambda feed: {"z": feed["x"]})
    wrong_dtype = FakeEngine({"x": SPEC}, {"y": SPEC}, lambda feed: {"y": feed["x"].astype(np.float64)})
    for fake, message in ((wrong_name, r"returned \['z'\]"), (wrong_dtype, "'y' as float64")):
        with pytest.raises(BackendError, match=message):
            fake.run({"x": np.ones((1, 3), np.float32)})


def test_lifetimes_and_preparation(fake: FakeEngine) -> None:
    heard: list[Preparation] = []
    fake.options = EngineOptions(notify=heard.append)
    fake.run(_feed())
    fake.run(_feed())
    fake.run(_feed(rows=4))
    fake.unload()
    fake.run(_feed())
    assert [sizes["state"] for sizes in fake.prepared] == [(2, 3), (4, 3), (2, 3)]
    assert len(heard) == 6
    fake.close()
    fake.close()
    with pytest.raises(RequestError, match="closed"):
        fake.run(_feed())
