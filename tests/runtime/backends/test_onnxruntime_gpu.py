"""ONNX Runtime on CUDA, on a stand-in of the GPU (tests/standin): whole pipelines, what each step costs, what becomes
of captures and memory that fail. It shows how the device is driven; kernels it cannot."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from standin.cudart import Cudart
from standin.cudart import Device as FakeDevice
from standin.onnxruntime import FakeProvider

import latentrt
from latentrt import BackendError, Control, Guidance, Pipeline, Request
from latentrt.arrays import DeviceArray, to_host
from latentrt.backends import open_engine, open_engines
from latentrt.bundle import STEP_CONTROL, Bundle
from latentrt.engine import EngineSet, Preparation
from latentrt.errors import EnvironmentLacks, RequestError
from latentrt.export.engines.rewrite import rewrite_graphs

SIZE = (64, 64)
STEPS = 5
NAMES = ("text_encoder", "step", "decoder")
REQUEST = Request("a red circle", seed=7, size=SIZE, steps=STEPS, sampler="dpmpp-2m")
BATCH = Request("a red circle", seed=7, size=(96, 64), steps=STEPS, images=3, sampler="euler-a")


class Rig:
    """A bundle on a pretended GPU."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, **device) -> None:
        self.bundle = Bundle.open(root)
        self.cudart = Cudart(FakeDevice(**device))
        self.provider = FakeProvider(self.cudart)
        self.provider.install(patch)

    def open(self, names: tuple[str, ...] = NAMES, notify: Callable[[Preparation], None] | None = None) -> Pipeline:
        graphs = [self.bundle.component(name).graph for name in names]
        return Pipeline(
            self.bundle, EngineSet(open_engines(graphs, backend="onnxruntime", device="cuda", notify=notify))
        )


@pytest.fixture
def make_rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    """Rigs that must have used the device rightly and hold nothing in the end."""
    rigs: list[Rig] = []
    gc.freeze()

    def make(root: Path, **device) -> Rig:
        rigs.append(Rig(root, monkeypatch, **device))
        return rigs[-1]

    yield make
    gc.collect()
    gc.unfreeze()
    for rig in rigs:
        rig.cudart.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig], shapes_bundle: Path) -> Rig:
    return make_rig(shapes_bundle)


@pytest.fixture(scope="module")
def reference(shapes_bundle: Path) -> Iterator[Pipeline]:
    with latentrt.load(shapes_bundle, backend="onnxruntime", threads=1) as pipe:
        yield pipe


@pytest.mark.parametrize("request_", [REQUEST, BATCH, replace(REQUEST, guidance=Guidance(interval=(0.2, 0.8)))])
def test_images_equal_those_of_the_cpu(request_: Request, rig: Rig, reference: Pipeline):
    with rig.open() as pipe:
        found = pipe.run(request_).images
    assert np.array_equal(found, reference.run(request_).images)


@pytest.mark.parametrize("request_", [REQUEST, BATCH])
def test_a_step_is_one_copy_and_one_graph_and_nothing_else(request_: Request, rig: Rig):
    """No allocation, no upload, no wait: a row of the table goes to its place, and the call is launched."""
    with rig.open() as pipe:
        pipe.run(request_)
        assert rig.cudart.trace.count("capture") == 2, "one for each direction of the state's pair"
        marks = [len(rig.cudart.trace) for _ in pipe.steps(request_)]
    for before, after in pairwise(marks):
        assert rig.cudart.trace[before:after] == ["copy", "launch graph"]


def test_prepare_executes_every_graph_so_that_the_first_image_searches_nothing(rig: Rig):
    heard: list[Preparation] = []
    with rig.open(notify=heard.append) as pipe:
        pipe.prepare(size=SIZE)
        assert rig.cudart.count("execute") >= len(NAMES)
        heard.clear()
        rig.cudart.trace.clear()
        pipe.run(REQUEST)
    assert heard == []
    assert not {"allocate", "capture"} & set(rig.cudart.trace)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_needs_the_most_memory_is_prepared_first(device: str, rig: Rig, shapes_bundle: Path):
    """On a device the step last, which a run needs first; elsewhere the largest, loaded beside nothing."""
    begun: list[str] = []

    def notice(event: Preparation) -> None:
        if event.seconds is None:
            begun.append(event.component)

    graphs = [rig.bundle.component(name).graph for name in NAMES]
    engines = open_engines(graphs, backend="onnxruntime", device=device, notify=notice)
    with Pipeline(rig.bundle, EngineSet(engines)) as pipe:
        pipe.prepare(size=SIZE)
    largest_first = sorted(NAMES, key=lambda name: -rig.bundle.component(name).parameters)
    assert list(dict.fromkeys(begun)) == (largest_first if device == "cpu" else ["decoder", "text_encoder", "step"])


def test_all_engines_work_on_one_stream_and_only_loops_are_captured(rig: Rig):
    with rig.open() as pipe:
        pipe.run(REQUEST)
        assert len(rig.cudart.streams) == 1
        (stream,) = rig.cudart.streams
    assert {made.stream for made in rig.provider.made} == {stream}
    assert [made.graphs for made in rig.provider.made] == [False, True, False], "text encoder, step, decoder"


def test_a_batch_uploads_once_and_downloads_once(rig: Rig):
    with rig.open() as pipe:
        pipe.run(BATCH)
        rig.cudart.trace.clear()
        pipe.run(BATCH)
    trace = rig.cudart.trace
    assert trace.count("download") == 3, "hidden and pooled states of the text encoder, and the images"
    first, last = trace.index("copy"), len(trace) - 1 - trace[::-1].index("download")
    assert "upload" not in trace[first:last]
    assert trace[first:last].count("synchronize") == 1, "the wait at the end of the loop"


def test_results_stay_on_the_device_and_expire_with_the_next(rig: Rig):
    with rig.open() as pipe:
        seen = [step.state for step in pipe.steps(REQUEST)]
        assert isinstance(seen[-1], DeviceArray)
        assert np.isfinite(to_host(seen[-1])).all()
        with pytest.raises(RequestError, match="memory was reused"):
            to_host(seen[-2])


def test_controls_stay_on_the_device(controlled_bundle: Path, make_rig: Callable[..., Rig]):
    rig = make_rig(controlled_bundle)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    controls = [Control("random", pictures[0], 0.7), Control("random", pictures[1], start=0.5)]
    request = Request("a red circle", seed=7, size=SIZE, steps=12, sampler="euler", control=controls)
    with rig.open((*NAMES, STEP_CONTROL, "controlnet-random")) as pipe:
        pipe.prepare(size=SIZE, controls=("random",))
        marks = [len(rig.cudart.trace) for _ in pipe.steps(request)]
        steps = [rig.cudart.trace[before:after] for before, after in pairwise(marks)]
        assert steps[0] == steps[2] == ["copy", "launch graph", "launch graph"]
        found = pipe.run(request).images
    with latentrt.load(controlled_bundle, backend="onnxruntime", threads=1) as pipe:
        assert np.array_equal(found, pipe.run(request).images)


# Graphs for CUDA


def test_a_graph_for_cuda_is_loaded_for_each_size(rig: Rig, reference: Pipeline, tmp_path: Path):
    """The text encoder's, whose operators the CPU has as well."""
    rewrite_graphs(rig.bundle, folder=tmp_path, components=["text_encoder"])
    graph = rig.bundle.component("text_encoder").graph
    with open_engine(graph, backend="onnxruntime", device="cuda", cache_dir=tmp_path) as engine:
        for batch in (1, 3, 3, 1):
            ids = np.random.default_rng(batch).integers(1, 40, (batch, 77))
            feed = {"ids": ids, "skip": np.zeros(1, np.int64), "extra_embeddings": np.zeros((1, 128), np.float32)}
            found, expected = engine.run(feed), reference.engines["text_encoder"].run(feed)
            for name, value in expected.items():
                assert np.abs(to_host(found[name]) - to_host(value)).max() <= 1e-5 * np.abs(to_host(value)).max()
    assert len(rig.provider.made) == 3


# What fails


def test_a_session_that_cannot_capture_launches_directly(
    rig: Rig, reference: Pipeline, caplog: pytest.LogCaptureFixture
):
    rig.provider.refuses_graphs = True
    with rig.open() as pipe:
        for _ in range(2):
            assert np.array_equal(pipe.run(REQUEST).images, reference.run(REQUEST).images)
        marks = [len(rig.cudart.trace) for _ in pipe.steps(REQUEST)]
    assert rig.cudart.trace[marks[0] : marks[1]] == ["copy", "execute"]
    assert caplog.text.count("calls of step are launched one kernel at a time") == 1
    assert len(rig.provider.made) == len(NAMES), "a session that captures nothing is not made again and again"


def test_a_capture_that_fails_is_followed_by_direct_launches(
    rig: Rig, reference: Pipeline, caplog: pytest.LogCaptureFixture
):
    rig.provider.capture_fails = True
    with rig.open() as pipe:
        assert np.array_equal(pipe.run(REQUEST).images, reference.run(REQUEST).images)
    assert (
        caplog.text.count("launches of step are not captured as a CUDA graph: running step failed: CUDA failure 901")
        == 1
    )
    assert "launch graph" not in rig.cudart.trace


def test_places_beyond_what_a_session_captures_are_launched_directly(
    rig: Rig, reference: Pipeline, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("latentrt.backends.onnxruntime.device.MAX_GRAPHS", 3)
    with rig.open() as pipe:
        for request in (REQUEST, BATCH, REQUEST):
            assert np.array_equal(pipe.run(request).images, reference.run(request).images)
    assert rig.cudart.trace.count("capture") == 3
    assert "3 places of its inputs and outputs" in caplog.text


def test_a_provider_that_fell_back_to_the_cpu_is_refused(rig: Rig):
    with rig.open() as pipe:
        rig.provider.providers = ("CPUExecutionProvider",)
        with pytest.raises(EnvironmentLacks, match=r"could not start its CUDAExecutionProvider and took CPU"):
            pipe.run(REQUEST)


def test_engines_take_turns_where_they_do_not_fit_together(
    make_rig: Callable[..., Rig], shapes_bundle: Path, reference: Pipeline
):
    rig = make_rig(shapes_bundle, capacity=6_000_000)
    rig.provider.weights = 2_500_000
    with rig.open() as pipe:
        for request in (REQUEST, BATCH, REQUEST):
            assert np.array_equal(pipe.run(request).images, reference.run(request).images)


def test_out_of_memory_says_what_to_try_and_leaves_the_pipeline_usable(
    make_rig: Callable[..., Rig], shapes_bundle: Path, reference: Pipeline
):
    rig = make_rig(shapes_bundle, capacity=6_000_000)
    with rig.open() as pipe:
        rig.provider.weights = 7_000_000
        with pytest.raises(BackendError, match=r"does not fit: out of GPU memory.*free with the other.*smaller size"):
            pipe.run(REQUEST)
        rig.provider.weights = 100_000
        assert np.array_equal(pipe.run(REQUEST).images, reference.run(REQUEST).images)


@pytest.mark.parametrize("request_", [REQUEST, BATCH])
def test_a_run_that_finds_no_memory_gets_the_room_of_engines_that_wait(
    request_: Request, make_rig: Callable[..., Rig], shapes_bundle: Path, reference: Pipeline
):
    """Also a loop's first call, which nothing prepared: it is begun again."""
    rig = make_rig(shapes_bundle, capacity=7_000_000)
    rig.provider.arenas = {"text_encoder": 2_500_000, "step": 1_500_000, "decoder": 2_500_000}
    with rig.open() as pipe:
        for _ in range(2):
            assert np.array_equal(pipe.run(request_).images, reference.run(request_).images)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prepared", [False, True])
def test_a_run_without_memory_says_what_to_try_and_the_next_one_works(
    name: str, prepared: bool, make_rig: Callable[..., Rig], shapes_bundle: Path, reference: Pipeline
):
    rig = make_rig(shapes_bundle, capacity=7_000_000)
    rig.provider.arenas = {name: 8_000_000}
    with rig.open() as pipe:
        with pytest.raises(
            BackendError, match=rf"'{name}' for .* does not fit: out of GPU memory while running {name}"
        ) as caught:
            pipe.prepare(size=SIZE) if prepared else pipe.run(REQUEST)
        assert rig.cudart.memory.used == 0, f"a session lives on in {caught.value!r}"
        rig.provider.arenas = {}
        assert np.array_equal(pipe.run(REQUEST).images, reference.run(REQUEST).images)


def test_memory_that_ends_within_a_loop_ends_it_with_what_to_try(rig: Rig, reference: Pipeline):
    with rig.open() as pipe:
        steps = pipe.steps(REQUEST)
        next(steps)
        rig.provider.arenas = {"step": rig.cudart.memory.capacity}
        with pytest.raises(
            BackendError, match=r"'step' for .* does not fit: .* while running step.*smaller size"
        ) as caught:
            next(steps)
        assert "new process" not in str(caught.value)
        assert rig.cudart.memory.used == 0, f"a session lives on in {caught.value!r}"
        rig.provider.arenas = {}
        assert np.array_equal(pipe.run(REQUEST).images, reference.run(REQUEST).images)


def test_after_a_failed_kernel_the_first_error_stays(rig: Rig):
    with pytest.raises(BackendError, match="cudaStreamSynchronize failed: cudaErrorIllegalAddress") as caught:  # noqa: SIM117
        with rig.open() as pipe:
            pipe.run(REQUEST)
            rig.cudart.break_down()
            pipe.run(REQUEST)
    assert "new process" in str(caught.value)


def test_unload_gives_memory_back_and_the_next_run_loads_again(rig: Rig, reference: Pipeline):
    with rig.open() as pipe:
        assert rig.cudart.memory.used == 0
        pipe.run(REQUEST)
        for one in pipe.engines.values():
            one.unload()
        assert rig.cudart.memory.used == 0
        assert np.array_equal(pipe.run(REQUEST).images, reference.run(REQUEST).images)
