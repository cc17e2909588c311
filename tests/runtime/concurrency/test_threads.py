"""A pipeline and several threads: what is refused, what ends a run, and that each picture stays right."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from latentrt import BackendError, Pipeline, Request, RequestError
from latentrt.engine import EngineSet
from latentrt.testing import FakeEngine, fake_pipeline

FOX = Request("a fox", seed=7, steps=4)
LONG_S = 60  # a limit for what must not hang, and no measure
LATENT = np.zeros((1, 4, 8, 8), np.float32)


def replaceable(pipe: Pipeline) -> EngineSet:
    """Its engines, which other LoRAs leave as they are."""
    graphs = {name: part.graph for name, part in pipe.bundle.components.items()}
    return EngineSet(pipe.engines, graphs=graphs, opens=lambda graphs: {})


@pytest.fixture
def pipe(tmp_path: Path) -> Pipeline:
    made = fake_pipeline(tmp_path)
    return Pipeline(made.bundle, replaceable(made))


@pytest.fixture
def picture(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Of `FOX`, made with nobody about."""
    return fake_pipeline(tmp_path_factory.mktemp("alone")).run(FOX).images


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


class Gate:
    """Holds the step's engine within a call: `reached` when one is there, until `opened`."""

    def __init__(self, pipe: Pipeline) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.engine = pipe.engines["step"]
        assert isinstance(self.engine, FakeEngine)
        self._function = self.engine.function
        self.engine.function = self._held

    def _held(self, feed):
        self.reached.set()
        assert self.opened.wait(LONG_S)
        return self._function(feed)


@contextmanager
def within_a_call(pipe: Pipeline, pool: ThreadPoolExecutor) -> Iterator[tuple[Gate, Future]]:
    """A run of another thread, held within its first engine call."""
    gate = Gate(pipe)
    running = pool.submit(pipe.run, FOX)
    try:
        assert gate.reached.wait(LONG_S)
        yield gate, running
    finally:
        gate.opened.set()


def refusal(call: Callable[[], object]) -> str:
    """What a refused call is told."""
    with pytest.raises(RequestError) as caught:
        call()
    return str(caught.value)


CALLS: dict[str, Callable[[Pipeline], object]] = {
    "generate": lambda pipe: pipe.generate("an owl"),
    "run": lambda pipe: pipe.run(Request("an owl")),
    "a loop": lambda pipe: next(pipe.steps(Request("an owl"))),
    "prepare": lambda pipe: pipe.prepare(size=(64, 128)),
    "decode": lambda pipe: pipe.decode(LATENT),
    "set_lora": lambda pipe: pipe.set_lora([]),
    "add_embedding": lambda pipe: pipe.add_embedding("cat", "nowhere.safetensors"),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@every_call
def test_what_comes_within_an_engine_call_is_refused(call: Callable, pipe: Pipeline, pool, picture):
    with within_a_call(pipe, pool) as (gate, running):
        with pytest.raises(RequestError, match="busy"):
            call(pipe)
        assert len(gate.engine.calls) == 1
    assert np.array_equal(running.result(LONG_S).images, picture)


@every_call
def test_what_another_thread_asks_between_two_steps_is_refused(call: Callable, pipe: Pipeline, pool):
    steps = pipe.steps(FOX)
    next(steps)
    with pytest.raises(RequestError, match="busy"):
        pool.submit(call, pipe).result(LONG_S)
    assert [step.index for step in steps] == [1, 2, 3]


@pytest.mark.parametrize("call", [CALLS[name] for name in CALLS if name != "decode"])
def test_what_a_loop_itself_asks_is_refused_but_decoding(call: Callable, pipe: Pipeline, picture):
    for step in pipe.steps(FOX):
        with pytest.raises(RequestError, match="busy"):
            call(pipe)
        decoded = pipe.decode(step.latent())
    assert np.array_equal(decoded, picture)


def test_progress_may_decode_and_nothing_else(pipe: Pipeline, picture):
    decoded = []

    def progress(step) -> None:
        decoded.append(pipe.decode(step.latent()))
        with pytest.raises(RequestError, match="busy"):
            pipe.generate("an owl")

    made = pipe.run(FOX, progress=progress).images
    assert np.array_equal(made, picture) and np.array_equal(decoded[-1], picture)


def test_a_plan_is_made_while_another_thread_runs(pipe: Pipeline, pool):
    with within_a_call(pipe, pool):
        assert pipe.plan([Request("an owl", size=(64, 128))]).size == (64, 128)


def test_nothing_comes_between_the_steps_and_the_decoding_of_a_run(pipe: Pipeline, pool, picture):
    refused = []
    decoder = pipe.engines["decoder"]
    assert isinstance(decoder, FakeEngine)
    function = decoder.function

    def interrupted(feed):
        refused.append(pool.submit(pipe.prepare, size=(64, 128)).exception(LONG_S))
        return function(feed)

    decoder.function = interrupted
    assert np.array_equal(pipe.run(FOX).images, picture)
    assert [type(error) for error in refused] == [RequestError]


# What ends a run


def test_closing_within_an_engine_call_ends_the_run_after_it(pipe: Pipeline, pool):
    with within_a_call(pipe, pool) as (gate, running):
        closing = pool.submit(pipe.close)
        while "closed" not in refusal(lambda: pipe.decode(LATENT)):
            pass  # it has not begun
        assert not closing.done()
    closing.result(LONG_S)
    assert isinstance(running.exception(LONG_S), RequestError)
    assert "closed" in str(running.exception())
    assert len(gate.engine.calls) == 1
    for call in CALLS.values():
        with pytest.raises(RequestError, match="pipeline is closed"):
            call(pipe)


def test_closing_in_a_loop_ends_it(pipe: Pipeline):
    steps = pipe.steps(FOX)
    next(steps)
    pipe.close()
    with pytest.raises(RequestError, match="closed"):
        next(steps)
    steps.close()
    pipe.close()


def test_closing_from_within_a_call_is_refused_and_not_a_deadlock(pipe: Pipeline, picture):
    gate = Gate(pipe)
    gate.opened.set()
    held = gate.engine.function
    refused = []

    def closing(feed):
        with pytest.raises(RequestError, match="within"):
            pipe.close()
        refused.append(1)
        return held(feed)

    gate.engine.function = closing
    assert np.array_equal(pipe.run(FOX).images, picture)
    assert len(refused) == 4


def test_closing_a_loop_from_another_thread_ends_it_after_the_call(pipe: Pipeline, pool):
    gate = Gate(pipe)
    steps = pipe.steps(FOX)
    looping = pool.submit(lambda: [step.index for step in steps])
    assert gate.reached.wait(LONG_S)
    closing = pool.submit(steps.close)
    gate.opened.set()
    closing.result(LONG_S)
    assert looping.result(LONG_S) in ([0], [0, 1], [0, 1, 2], [0, 1, 2, 3])  # of those, as many as were made before
    assert pipe.generate("an owl").images.shape == (1, 64, 64, 3)


def test_closing_a_loop_early_frees_the_pipeline(pipe: Pipeline):
    steps = pipe.steps(FOX)
    next(steps)
    steps.close()
    assert list(steps) == []
    pipe.generate("an owl")
    steps.close()


def test_a_loop_that_is_dropped_frees_the_pipeline(pipe: Pipeline):
    steps = pipe.steps(FOX)
    next(steps)
    del steps
    pipe.generate("an owl")


def test_a_loop_that_was_not_begun_holds_nothing(pipe: Pipeline):
    first, second = pipe.steps(FOX), pipe.steps(FOX)
    assert [step.index for step in second] == [0, 1, 2, 3]
    assert [step.index for step in first] == [0, 1, 2, 3]


def test_a_loop_goes_on_in_other_threads(pipe: Pipeline, picture):
    steps = pipe.steps(FOX)
    for _ in range(4):
        with ThreadPoolExecutor(1) as one:
            step = one.submit(next, steps).result(LONG_S)
    latent = step.latent()
    steps.close()
    assert np.array_equal(pipe.decode(latent), picture)


def test_two_threads_in_one_loop_are_refused(pipe: Pipeline, pool):
    gate = Gate(pipe)
    steps = pipe.steps(FOX)
    first = pool.submit(next, steps)
    assert gate.reached.wait(LONG_S)
    with pytest.raises(RequestError, match="busy"):
        next(steps)
    gate.opened.set()
    assert first.result(LONG_S).index == 0
    assert [step.index for step in steps] == [1, 2, 3]


@pytest.mark.parametrize("where", ["progress", "step", "decoder"])
def test_a_failure_frees_the_pipeline(where: str, pipe: Pipeline, picture):
    def fail(_: object):
        raise BackendError("failed on purpose")

    if where == "progress":
        with pytest.raises(BackendError, match="on purpose"):
            pipe.run(FOX, progress=fail)
    else:
        engine = pipe.engines[where]
        assert isinstance(engine, FakeEngine)
        function, engine.function = engine.function, fail
        with pytest.raises(BackendError, match="on purpose"):
            pipe.run(FOX)
        if where == "step":
            steps = pipe.steps(FOX)
            with pytest.raises(BackendError, match="on purpose"):
                next(steps)
        engine.function = function
    assert np.array_equal(pipe.run(FOX).images, picture)


# What pipelines share


@every_call
def test_pipelines_that_share_engines_refuse_each_other(call: Callable, pipe: Pipeline, pool, picture):
    """What an engine keeps for a run is reused by the next call of it, whoever makes it."""
    other = Pipeline(pipe.bundle, replaceable(pipe))
    with within_a_call(pipe, pool) as (_, running), pytest.raises(RequestError, match="busy"):
        call(other)
    assert np.array_equal(running.result(LONG_S).images, picture)
    assert np.array_equal(other.run(FOX).images, picture)


def test_calls_of_one_engine_wait_for_each_other(pipe: Pipeline, pool):
    """Pipelines may share a decoder and not the step."""
    within = threading.Lock()
    decoder = pipe.engines["decoder"]
    assert isinstance(decoder, FakeEngine)
    function = decoder.function

    def alone(feed):
        assert within.acquire(blocking=False), "two threads are in one engine"
        try:
            return function(feed)
        finally:
            within.release()

    decoder.function = alone
    start = threading.Barrier(4)

    def use(_: int) -> None:
        start.wait(LONG_S)
        for _ in range(50):
            decoder.run({"latent": LATENT})

    list(pool.map(use, range(4)))
    assert len(decoder.calls) == 200


HAMMER = """
import sys, threading
import numpy as np
import latentrt
from latentrt import Request, RequestError

bundle, backend, cache = sys.argv[1:]
pipe = latentrt.load(bundle, backend=backend, cache_dir=cache, threads=1)
request = Request("a red circle", seed=7, steps=2, size=(64, 64))
right = pipe.run(request).images
latent = np.zeros((1, 4, 8, 8), np.float32)
calls = [
    lambda: pipe.decode(latent),
    lambda: pipe.prepare(size=(64, 72)),
    lambda: pipe.set_lora([]),
    lambda: pipe.run(request),
    lambda: pipe.plan([request]),
    lambda: next(pipe.steps(request)),
]
done, wrong, served = threading.Event(), [], [0] * len(calls)
barrier = threading.Barrier(len(calls) + 1)

def hammer(index):
    barrier.wait()
    while not done.is_set():
        try:
            calls[index]()
            served[index] += 1
        except RequestError as error:
            if "busy" not in str(error):
                wrong.append(repr(error))
        except BaseException as error:
            wrong.append(repr(error))

threads = [threading.Thread(target=hammer, args=(index,)) for index in range(len(calls))]
for thread in threads:
    thread.start()
barrier.wait()
made = 0
while made < 3:
    try:
        images = pipe.run(request).images
    except RequestError:
        continue
    made += 1
    if not np.array_equal(images, right):
        wrong.append("another picture")
done.set()
for thread in threads:
    thread.join()

# closed in the middle of a run, many times
for _ in range(2):
    pipe = latentrt.load(bundle, backend=backend, cache_dir=cache, threads=1)
    started, ends = threading.Event(), []
    def run():
        try:
            pipe.run(request, progress=lambda step: started.set())
            ends.append("done")
        except RequestError as error:
            ends.append("closed" if "closed" in str(error) else repr(error))
    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    pipe.close()
    thread.join()
    if not set(ends) <= {"done", "closed"}:
        wrong.append(repr(ends))
print(wrong)
sys.exit(1 if wrong else 0)
"""


@pytest.mark.families
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_real_engines_outlive_what_other_threads_ask(backend: str, tiny_bundle: Path, tmp_path: Path):
    command = [sys.executable, "-c", HAMMER, str(tiny_bundle), backend, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
