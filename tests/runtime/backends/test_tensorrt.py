"""The TensorRT backends on a stand-in of the GPU (tests/standin): whole pipelines, what each step costs, lifetimes, and
what is refused. It proves how the device is driven; NVIDIA's kernels it cannot."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from standin.cudart import Cudart
from standin.cudart import Device as FakeDevice
from standin.engines import SIZES, build
from standin.tensorrt import make_module

import latentrt
from latentrt import BackendError, Guidance, Pipeline, Request
from latentrt.arrays import DeviceArray, to_host
from latentrt.backends import choose
from latentrt.backends.cuda.api import Cuda
from latentrt.backends.tensorrt.device import TensorRtDevice
from latentrt.backends.tensorrt.engine import TensorRtEngine, open_engines, open_on
from latentrt.backends.tensorrt.records import PLAN
from latentrt.bundle import Bundle
from latentrt.engine import Engine, EngineOptions, EngineSet, Preparation
from latentrt.errors import EnvironmentLacks, IntegrityError, LatentRTError, RequestError
from latentrt.export.convert.merged import write_merged
from latentrt.graph import GraphFile
from latentrt.lora import merge

VARIANTS = ("tensorrt-rtx", "tensorrt")
SIZE = (64, 64)
STEPS = 5


@dataclass
class Rig:
    """A bundle with engines on a pretended GPU."""

    bundle: Bundle
    folder: Path
    variant: str
    device: FakeDevice = field(default_factory=FakeDevice)

    def __post_init__(self) -> None:
        self.cudart = Cudart(self.device)
        self.trt = make_module(self.cudart, variant=self.variant)

    def build(self, **arguments) -> dict[str, Path]:
        return build(self.bundle, self.folder, variant=self.variant, **arguments)

    def open(self, notify: Callable[[Preparation], None] | None = None) -> Pipeline:
        graphs = [self.bundle.component(name).graph for name in ("text_encoder", "step", "decoder")]
        options = EngineOptions(cache_dir=self.folder, notify=notify)
        engines = open_on(TensorRtDevice(self.trt, Cuda(self.cudart)), graphs, options, self.variant)
        return Pipeline(self.bundle, engines)


@pytest.fixture(scope="module")
def bundle(shapes_bundle: Path) -> Bundle:
    return Bundle.open(shapes_bundle)


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """Leaves what is there already, torch above all, out of the collections that end each test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def make_rig(bundle: Bundle, tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Rigs that must have used the device rightly and hold nothing in the end."""
    rigs: list[Rig] = []

    def make(variant: str, **device) -> Rig:
        rigs.append(Rig(bundle, tmp_path / f"engines-{len(rigs)}", variant, FakeDevice(**device)))
        return rigs[-1]

    yield make
    gc.collect()
    for rig in rigs:
        rig.cudart.close()


@pytest.fixture(params=VARIANTS)
def rig(request: pytest.FixtureRequest, make_rig: Callable[..., Rig]) -> Rig:
    made = make_rig(request.param)
    made.build()
    return made


@pytest.fixture(scope="module")
def reference(shapes_bundle: Path) -> Iterator[Pipeline]:
    with latentrt.load(shapes_bundle, backend="onnxruntime", threads=1) as pipe:
        yield pipe


def engine(pipe: Pipeline, name: str) -> TensorRtEngine:
    found = pipe.engines[name]
    assert isinstance(found, TensorRtEngine)
    return found


# The same images as the reference

REQUESTS = {
    "deterministic": [Request("a red circle", seed=7, size=SIZE, steps=STEPS, sampler="dpmpp-2m")],
    "stochastic": [Request("a red circle", seed=7, size=SIZE, steps=STEPS, sampler="euler-a")],
    "stochastic with memory": [Request("a red circle", seed=7, size=SIZE, steps=STEPS, sampler="dpmpp-2m-sde")],
    "two calls a step": [Request("a red circle", seed=7, size=SIZE, steps=3, sampler="heun")],
    "one call": [Request("a red circle", seed=7, size=SIZE, steps=1, sampler="euler")],
    "no guidance": [Request("a red circle", seed=7, size=SIZE, steps=STEPS, guidance=1.0)],
    "guidance in a part": [
        Request(
            "a red circle", seed=7, size=SIZE, steps=STEPS, sampler="dpmpp-2m", guidance=Guidance(interval=(0.2, 0.8))
        )
    ],
    "batch of three": [Request("a red circle", seed=7, size=(96, 64), steps=STEPS, images=3)],
    "mixed batch": [
        Request("a blue star", seed=3, size=SIZE, steps=STEPS, sampler="euler-a", guidance=1.0),
        Request("a pink heart", seed=4, size=SIZE, steps=3, sampler="unipc", guidance=7.5),
    ],
    "chunked prompt": [Request("a red circle on a white background, " * 12, seed=7, size=SIZE, steps=2)],
}


@pytest.mark.parametrize("name", REQUESTS)
def test_images_equal_those_of_the_reference_backend(name: str, rig: Rig, reference: Pipeline):
    with rig.open() as pipe:
        found = pipe.run(*REQUESTS[name]).images
    assert np.array_equal(found, reference.run(*REQUESTS[name]).images)


def test_sizes_batches_and_samplers_can_follow_each_other(rig: Rig, reference: Pipeline):
    with rig.open() as pipe:
        for name in ("deterministic", "batch of three", "stochastic", "deterministic", "chunked prompt", "no guidance"):
            expected = reference.run(*REQUESTS[name]).images
            assert np.array_equal(pipe.run(*REQUESTS[name]).images, expected), name


def test_a_prepared_pipeline_gives_the_same_images(rig: Rig, reference: Pipeline):
    heard: list[Preparation] = []
    with rig.open(heard.append) as pipe:
        pipe.prepare(size=SIZE)
        heard.clear()
        found = pipe.run(*REQUESTS["deterministic"]).images
    assert np.array_equal(found, reference.run(*REQUESTS["deterministic"]).images)
    assert heard == [], "a prepared pipeline had to load or warm up something"


def test_previews_and_latents_are_those_of_the_reference(rig: Rig, reference: Pipeline):
    (request,) = REQUESTS["stochastic"]
    with rig.open() as pipe:
        found = [(step.preview(), step.latent()) for step in pipe.steps(request)]
    expected = [(step.preview(), step.latent()) for step in reference.steps(request)]
    assert len(found) == len(expected) == STEPS
    for (preview, latent), (right_preview, right_latent) in zip(found, expected, strict=True):
        assert np.array_equal(preview, right_preview)
        assert np.array_equal(latent, right_latent)


def test_an_image_can_be_decoded_in_the_middle_of_the_loop(rig: Rig, reference: Pipeline):
    (request,) = REQUESTS["deterministic"]
    with rig.open() as pipe:
        for step, right in zip(pipe.steps(request), reference.steps(request), strict=True):
            assert np.array_equal(pipe.decode(step.latent()), reference.decode(right.latent()))


def test_leaving_the_loop_leaves_the_pipeline_usable(rig: Rig, reference: Pipeline):
    (request,) = REQUESTS["deterministic"]
    with rig.open() as pipe:
        for step in pipe.steps(request):
            if step.index == 1:
                break
        assert np.array_equal(pipe.run(request).images, reference.run(request).images)


# What a step costs


@pytest.mark.parametrize("name", ["deterministic", "stochastic", "batch of three"])
def test_a_step_is_one_copy_and_one_launch_and_nothing_else(name: str, rig: Rig):
    trace = rig.cudart.trace
    with rig.open() as pipe:
        pipe.run(*REQUESTS[name])
        marks = []
        for _ in pipe.steps(*REQUESTS[name]):
            marks.append(len(trace))
        launch = "execute" if rig.variant == "tensorrt-rtx" else "launch graph"
        for before, after in pairwise(marks):
            assert trace[before:after] == ["copy", launch]


def test_a_change_of_guidance_branches_leaves_the_state_on_the_device(rig: Rig):
    trace = rig.cudart.trace
    with rig.open() as pipe:
        marks = [len(trace) for _ in pipe.steps(*REQUESTS["guidance in a part"])]
        assert "download" not in trace[marks[0] : marks[-1]]


def test_a_batch_uploads_once_and_downloads_once(rig: Rig):
    """The text encoder fetches its context; from then on nothing but the image comes back."""
    with rig.open() as pipe:
        pipe.run(*REQUESTS["batch of three"])
        rig.cudart.trace.clear()
        pipe.run(*REQUESTS["batch of three"])
    trace = rig.cudart.trace
    assert trace.count("download") == 3, "hidden and pooled states of the text encoder, and the images"
    first, last = trace.index("copy"), len(trace) - 1 - trace[::-1].index("download")
    assert "upload" not in trace[first:last]
    assert trace[first:last].count("synchronize") == 1, "the wait at the end of the loop"
    assert not {"allocate", "allocate host"} & set(trace)


def test_the_decoder_reads_a_single_latent_where_it_lies(rig: Rig):
    with rig.open() as pipe:
        for name, copies in (("deterministic", 0), ("batch of three", 1)):
            pipe.run(*REQUESTS[name])
            for step in pipe.steps(*REQUESTS[name]):
                last = step
            rig.cudart.trace.clear()
            assert isinstance(last.state, DeviceArray)
            pipe.decode(last.state.slot(0))
            assert rig.cudart.trace.count("copy") == copies
            assert rig.cudart.trace.count("download") == 1


def test_rtx_captures_each_direction_once_and_compiles_each_size_once(make_rig: Callable[..., Rig]):
    rig = make_rig("tensorrt-rtx")
    folders = rig.build()
    with rig.open() as pipe:
        pipe.prepare(size=SIZE)
        pipe.run(*REQUESTS["deterministic"])
        pipe.run(*REQUESTS["deterministic"])
    assert rig.trt.captures == 2
    steps = [kernel for kernel in rig.trt.compiled if "step.onnx" in kernel]
    assert len(steps) == 1
    assert (folders["step"] / "runtime.cache").is_file()
    rig.trt.compiled.clear()
    with rig.open() as pipe:
        pipe.run(*REQUESTS["deterministic"])
    assert rig.trt.compiled == [], "kernels were compiled again in spite of the cache"


def test_a_cache_of_another_gpu_is_passed_over(make_rig: Callable[..., Rig], reference: Pipeline):
    rig = make_rig("tensorrt-rtx")
    folders = rig.build()
    for folder in folders.values():
        (folder / "runtime.cache").write_text(json.dumps(["another GPU", []]))
    with rig.open() as pipe:
        found = pipe.run(*REQUESTS["deterministic"]).images
    assert np.array_equal(found, reference.run(*REQUESTS["deterministic"]).images)
    assert "Stand-in" in (folders["step"] / "runtime.cache").read_text()


# The seam


def test_run_keeps_fetches_and_fills_as_any_engine_does(rig: Rig, reference: Pipeline):
    latent = np.random.default_rng(0).standard_normal((2, 4, 8, 8), dtype=np.float32)
    expected = to_host(reference.engines["decoder"].run({"latent": latent})["image"])
    with rig.open() as pipe:
        decoder = engine(pipe, "decoder")
        kept = decoder.run({"latent": latent}, keep=("image",))["image"]
        assert isinstance(kept, DeviceArray)
        assert np.array_equal(kept.numpy(), expected)
        into = np.zeros_like(expected)
        assert decoder.run({"latent": latent}, into={"image": into})["image"] is into
        assert np.array_equal(into, expected)
        with pytest.raises(RequestError, match="memory was reused"):
            kept.numpy()
        with pytest.raises(RequestError, match="`into` array"):
            decoder.run({"latent": latent}, into={"image": np.zeros((1, 64, 64, 3), np.uint8)})


def test_a_kept_state_can_be_fed_back(rig: Rig, reference: Pipeline):
    (request,) = REQUESTS["deterministic"]
    feeds = []
    original = reference.engines["step"].run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference.engines["step"], "run", lambda feed, **k: (feeds.append(feed), original(feed, **k))[1])
        states = [to_host(step.state).copy() for step in reference.steps(request)]
    with rig.open() as pipe:
        step, state = engine(pipe, "step"), feeds[0]["state"]
        for feed, expected in zip(feeds, states, strict=True):
            out = step.run({**feed, "state": state}, keep=("next_state", "denoised"))
            state = out["next_state"]
            assert np.array_equal(to_host(state), expected)


def test_results_of_a_sweep_expire_when_the_next_is_asked_for(rig: Rig):
    with rig.open() as pipe:
        seen = [step.state for step in pipe.steps(*REQUESTS["deterministic"])]
        assert np.isfinite(to_host(seen[-1])).all(), "the last one is valid after the loop"
        with pytest.raises(RequestError, match="memory was reused"):
            to_host(seen[-2])


def test_closing_in_the_middle_of_a_loop_ends_it(rig: Rig):
    pipe = rig.open()
    steps = pipe.steps(*REQUESTS["deterministic"])
    next(steps)
    engine(pipe, "step").close()
    with pytest.raises(RequestError, match="unloaded in the middle"):
        next(steps)
    steps = pipe.steps(*REQUESTS["deterministic"])
    pipe.close()
    with pytest.raises(RequestError, match="closed"):
        next(steps)


def step_inputs(state: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A feed for one image of 64x64 and three rows."""
    feed = {
        "state": state,
        "noise": np.zeros((1, 4, 8, 8), np.float32),
        "known": np.zeros((1, 4, 8, 8), np.float32),
        "mask": np.ones((1, 1, 8, 8), np.float32),
        "context": np.ones((1, 1, 77, 128), np.float32),
        "guidance": np.ones((1, 1), np.float32),
        "rescale": np.zeros(1, np.float32),
    }
    shapes = {"timestep": (3, 1), "scalings": (3, 1, 3), "transition": (3, 1, 4, 6)}
    return feed, {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def test_a_second_loop_on_the_same_engine_is_refused(rig: Rig):
    feed, rows = step_inputs(np.zeros((1, 4, 4, 8, 8), np.float32))
    with rig.open() as pipe:
        step = engine(pipe, "step")
        first = step.sweep(feed, rows=rows, carry={"state": "next_state"})
        next(first)
        with pytest.raises(RequestError, match="in the middle of a loop"):
            step.sweep(feed, rows=rows, carry={"state": "next_state"})
        first.close()
        assert len(list(step.sweep(feed, rows=rows, carry={"state": "next_state"}))) == 3


def test_a_latent_that_is_not_finite_is_an_error(rig: Rig):
    feed, rows = step_inputs(np.full((1, 4, 4, 8, 8), np.nan, np.float32))
    with rig.open() as pipe:
        for out in engine(pipe, "step").sweep(feed, rows=rows, carry={"state": "next_state"}):
            state = out["next_state"]
        assert isinstance(state, DeviceArray)
        with pytest.raises(BackendError, match="NaN or infinity"):
            pipe.decode(state.slot(0))


# Lifetimes


def test_unload_gives_memory_back_and_the_next_run_loads_again(rig: Rig, reference: Pipeline):
    (request,) = REQUESTS["deterministic"]
    with rig.open() as pipe:
        assert rig.cudart.memory.used == 0, "opening allocates nothing"
        pipe.run(request)
        loaded = rig.cudart.memory.used
        pipe.engines["step"].unload()
        assert rig.cudart.memory.used < loaded
        assert np.array_equal(pipe.run(request).images, reference.run(request).images)
        for one in pipe.engines.values():
            one.unload()
        assert rig.cudart.memory.used == 0
        pipe.run(request)
    assert rig.cudart.memory.used == 0
    with pytest.raises(RequestError, match="closed"):
        pipe.run(request)


def test_the_sizes_held_are_few(rig: Rig):
    with rig.open() as pipe:
        for width in (64, 72, 80, 88, 96, 104, 112):
            pipe.run(Request("a", seed=1, size=(width, 64), steps=1))
        assert len(engine(pipe, "step")._bindings) == 4


def test_activation_memory_is_one_block_for_all(rig: Rig):
    with rig.open() as pipe:
        pipe.run(*REQUESTS["deterministic"])
        (device,) = {engine(pipe, name).device for name in pipe.engines}
        bindings = [b for name in pipe.engines for b in engine(pipe, name)._bindings.values()]
        assert len(bindings) == 3
        assert device._activation.nbytes == max(bound.activation_bytes for b in bindings for bound in b._contexts)


# A GPU that fails


def test_after_a_failed_kernel_the_first_error_stays_and_closing_is_no_other(rig: Rig):
    (request,) = REQUESTS["deterministic"]
    with pytest.raises(BackendError, match="cudaStreamSynchronize failed: cudaErrorIllegalAddress") as caught:  # noqa: SIM117
        with rig.open() as pipe:
            pipe.run(request)
            rig.cudart.break_down()
            pipe.run(request)
    assert "new process" in str(caught.value)
    assert not engine(pipe, "step").device._residents


def test_a_failed_gpu_says_so_again(rig: Rig):
    (request,) = REQUESTS["deterministic"]
    pipe = rig.open()
    pipe.run(request)
    rig.cudart.break_down()
    for _ in range(2):
        with pytest.raises(BackendError, match="cudaStreamSynchronize failed: cudaErrorIllegalAddress"):
            pipe.run(request)
    pipe.close()


@pytest.mark.parametrize("fault", ["cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_without_a_capture_launches_are_direct_and_images_the_same(
    fault: str, make_rig: Callable[..., Rig], reference: Pipeline, caplog: pytest.LogCaptureFixture
):
    rig = make_rig("tensorrt")
    rig.build()
    rig.cudart.capture_fault = fault
    (request,) = REQUESTS["deterministic"]
    with rig.open() as pipe:
        assert np.array_equal(pipe.run(request).images, reference.run(request).images)
    assert "not captured as a CUDA graph" in caplog.text
    assert "launch graph" not in rig.cudart.trace


def test_launches_that_rtx_cannot_capture_are_told_and_images_the_same(
    make_rig: Callable[..., Rig], reference: Pipeline, caplog: pytest.LogCaptureFixture
):
    rig = make_rig("tensorrt-rtx")
    rig.build()
    rig.trt.capturable = False
    (request,) = REQUESTS["deterministic"]
    with rig.open() as pipe:
        assert np.array_equal(pipe.run(request).images, reference.run(request).images)
    assert "TensorRT cannot capture them" in caplog.text


@pytest.mark.parametrize("lacking", [{"profile": -1}, {"says_size": False}])
def test_a_context_without_a_profile_or_a_size_is_given_both(lacking: dict, rig: Rig, reference: Pipeline):
    vars(rig.trt).update(lacking)
    (request,) = REQUESTS["deterministic"]
    with rig.open() as pipe:
        assert np.array_equal(pipe.run(request).images, reference.run(request).images)


def test_rtx_captures_again_when_the_activation_block_moves(make_rig: Callable[..., Rig], reference: Pipeline):
    rig = make_rig("tensorrt-rtx")
    rig.build()
    (small,), large = REQUESTS["deterministic"], REQUESTS["batch of three"]
    with rig.open() as pipe:
        pipe.run(small)
        captured = rig.trt.captures
        pipe.run(*large)
        grown = rig.trt.captures
        assert np.array_equal(pipe.run(small).images, reference.run(small).images)
        assert captured < grown < rig.trt.captures


# Too little memory

WEIGHTS = 3_000_000


@pytest.mark.parametrize("variant", VARIANTS)
def test_engines_take_turns_where_they_do_not_fit_together(
    variant: str, make_rig: Callable[..., Rig], reference: Pipeline
):
    rig = make_rig(variant, capacity=8_000_000)
    rig.build(weights=WEIGHTS)
    with rig.open() as pipe:
        for name in ("deterministic", "stochastic", "deterministic"):
            assert np.array_equal(pipe.run(*REQUESTS[name]).images, reference.run(*REQUESTS[name]).images)


@pytest.mark.parametrize("variant", VARIANTS)
def test_out_of_memory_says_what_would_fit_and_leaves_the_pipeline_usable(
    variant: str, make_rig: Callable[..., Rig], reference: Pipeline
):
    rig = make_rig(variant, capacity=6_000_000)
    rig.build(weights=WEIGHTS)
    (request,) = REQUESTS["deterministic"]
    with rig.open() as pipe:
        with pytest.raises(BackendError) as caught:
            pipe.run(Request("a", seed=1, size=(128, 128), images=4, steps=2))
        text = str(caught.value)
        assert re.search("state 4x4x4x16x16 .*out of GPU memory", text)
        assert "of 0.006 GB" in text
        assert "instead of 4 should fit" in text
        assert caught.value.exit_code == 3
        assert np.array_equal(pipe.run(request).images, reference.run(request).images)


def test_streamed_weights_need_not_fit(make_rig: Callable[..., Rig], reference: Pipeline):
    rig = make_rig("tensorrt-rtx", capacity=6_000_000)
    rig.build(weights=50_000_000, streamed=True)
    (request,) = REQUESTS["deterministic"]
    with rig.open() as pipe:
        assert np.array_equal(pipe.run(request).images, reference.run(request).images)


def test_weights_that_do_not_fit_are_named(make_rig: Callable[..., Rig]):
    rig = make_rig("tensorrt", capacity=2_000_000)
    rig.build(weights=WEIGHTS)
    with rig.open() as pipe, pytest.raises(BackendError, match="does not fit: out of GPU memory"):
        pipe.generate("a", seed=1, size=SIZE)


# What is refused before anything is loaded


def test_no_gpu_says_where_to_go(make_rig: Callable[..., Rig]):
    rig = make_rig("tensorrt", count=0)
    with pytest.raises(EnvironmentLacks, match=r"no NVIDIA GPU is visible.*onnxruntime"):
        rig.open()


def test_a_driver_that_is_too_old_is_named_with_the_one_needed(make_rig: Callable[..., Rig]):
    rig = make_rig("tensorrt", driver=12040)
    with pytest.raises(EnvironmentLacks, match=r"CUDA 12\.4.*CUDA 13\.0"):
        rig.open()
    rig = make_rig("tensorrt", driver=0)
    with pytest.raises(EnvironmentLacks, match="no NVIDIA driver"):
        rig.open()


def test_nothing_built_names_the_command(make_rig: Callable[..., Rig], bundle: Bundle):
    rig = make_rig("tensorrt-rtx")
    with pytest.raises(EnvironmentLacks) as caught:
        rig.open()
    command = f"latentrt build {bundle.root} --backend tensorrt-rtx --components text_encoder"
    assert command in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "device", "found", "hint"),
    [
        ({"gpus": ("sm120",)}, {}, "was built for sm120 with tensorrt-rtx 9.9.9", "latentrt build"),
        ({"gpus": ("sm80+",)}, {"capability": (7, 5)}, "was built for sm80+", "--gpus sm75"),
        ({"version": "9.9.8"}, {}, "was built for sm80+ with tensorrt-rtx 9.9.8", "latentrt build"),
    ],
)
def test_an_engine_for_another_machine_is_refused_before_loading(
    make_rig: Callable[..., Rig], arguments: dict, device: dict, found: str, hint: str
):
    rig = make_rig("tensorrt-rtx", **device)
    rig.build(**arguments)
    with pytest.raises(EnvironmentLacks) as caught:
        rig.open()
    text = str(caught.value)
    major, minor = rig.device.capability
    assert found in text
    assert f"sm{major}{minor} (Stand-in GPU) with tensorrt-rtx 9.9.9, as here" in text
    assert hint in text
    assert "allocate" not in rig.cudart.trace


BUILT = "--size 64x64..128x128 --batch 1..4 --branches 1..2 --context 77..231"
LONG = "a red circle on a white background, " * 40  # five chunks


@pytest.mark.parametrize(
    ("request_", "component", "asked", "built"),
    [
        pytest.param(
            Request("a", seed=1, size=(256, 128)),
            "step",
            "--size 256x128 --batch 1 --branches 2 --context 77",
            BUILT,
            id="size",
        ),
        pytest.param(
            Request("a", seed=1, size=SIZE, images=5, guidance=1.0),
            "step",
            "--size 64x64 --batch 5 --branches 1 --context 77",
            BUILT,
            id="batch",
        ),
        pytest.param(
            Request(LONG, seed=1, size=SIZE),
            "text_encoder",
            "--size 64x64 --batch 1 --branches 2 --context 385",
            BUILT.removeprefix("--size 64x64..128x128 "),
            id="context",
        ),
    ],
)
def test_a_request_beyond_the_profile_says_what_is_built_and_the_command_for_it(
    request_: Request, component: str, asked: str, built: str, rig: Rig, reference: Pipeline
):
    (fitting,) = REQUESTS["deterministic"]
    with rig.open() as pipe:
        with pytest.raises(RequestError) as caught:
            pipe.run(request_)
        assert str(caught.value) == (
            f"no engine of '{component}' is built for {asked}; expected {built}; "
            f"build one: latentrt build {rig.bundle.root} --backend {rig.variant} {asked}"
        )
        assert np.array_equal(pipe.run(fitting).images, reference.run(fitting).images)


def test_what_is_built_is_said_of_latents_and_of_preparing_too(make_rig: Callable[..., Rig]):
    """Each of several engines is listed; the command repeats what the sizes do not say."""
    rig = make_rig("tensorrt-rtx", capability=(7, 5))
    for high, names in ((16, ("text_encoder", "step", "decoder")), (24, ("step", "decoder"))):
        sizes = {**SIZES, "h": (8, high), "w": (8, high), "B": (1, 1)}
        rig.build(sizes=sizes, gpus=("sm75",), streamed=True, components=names)
    with rig.open() as pipe:
        for act, asked in (
            (lambda: pipe.decode(np.zeros((2, 4, 8, 9), np.float32)), "--size 72x64 --batch 2"),
            (lambda: pipe.prepare(size=SIZE, images=2), "--size 64x64 --batch 2 --branches 2"),
        ):
            with pytest.raises(RequestError) as caught:
                act()
            found, expected, hint = str(caught.value).split("; ")
            assert found == f"no engine of 'decoder' is built for {asked}"
            assert set(expected.removeprefix("expected ").split(" or ")) == {
                "--size 64x64..128x128 --batch 1..1",
                "--size 64x64..192x192 --batch 1..1",
            }
            assert hint.endswith(f" --backend tensorrt-rtx --gpus sm75 --weight-streaming {asked}")


def test_engines_without_a_pipeline_name_the_tensor(make_rig: Callable[..., Rig]):
    rig = make_rig("tensorrt")
    rig.build()
    with rig.open() as pipe, pytest.raises(RequestError, match=r"latent 5x4x8x8.*1x4x8x8 to 4x4x16x16"):
        pipe.engines["decoder"].prepare({"latent": (5, 4, 8, 8)})


def test_of_several_engines_the_one_that_covers_the_request_is_taken(rig: Rig, reference: Pipeline):
    rig.build(sizes={**SIZES, "h": (16, 32), "w": (16, 32), "B": (1, 1)}, components=("step", "decoder"))
    with rig.open() as pipe:
        for size in ((64, 64), (256, 128), (64, 64)):
            request = Request("a red circle", seed=7, size=size, steps=2)
            assert np.array_equal(pipe.run(request).images, reference.run(request).images)


@pytest.mark.parametrize("damage", ["shorter", "other bytes"])
def test_a_damaged_plan_is_an_integrity_error(rig: Rig, damage: str):
    folder = next(path.parent for path in rig.folder.rglob("engine.json") if '"component": "step"' in path.read_text())
    data = bytearray((folder / PLAN).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / PLAN).write_bytes(data[:-1] if damage == "shorter" else data)
    with rig.open() as pipe, pytest.raises(IntegrityError) as caught:
        pipe.run(*REQUESTS["deterministic"])
    assert str(folder / PLAN) in str(caught.value)
    assert "build the engine again" in str(caught.value)


def test_a_plan_that_was_damaged_after_it_was_checked_is_checked_again(rig: Rig):
    with rig.open() as pipe:
        pipe.run(*REQUESTS["deterministic"])
    for plan in rig.folder.rglob(PLAN):
        plan.write_bytes(plan.read_bytes()[:-1] + b"x")
    with rig.open() as pipe, pytest.raises(IntegrityError):
        pipe.run(*REQUESTS["deterministic"])


def test_a_plan_that_tensorrt_refuses_is_a_backend_error(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("standin.tensorrt.MAGIC", b"another magic tag")
    with rig.open() as pipe, pytest.raises(BackendError, match="magicTag failed"):
        pipe.run(*REQUESTS["deterministic"])


def test_an_engine_of_another_graph_is_not_taken(make_rig: Callable[..., Rig]):
    rig = make_rig("tensorrt")
    rig.build()
    step = rig.bundle.components["step"]
    other = replace(step, graph=replace(step.graph, digest="another"))
    rig.bundle = replace(rig.bundle, components={**rig.bundle.components, "step": other})
    with pytest.raises(EnvironmentLacks, match="no engine of 'step' is built"):
        rig.open()


# Choosing


def test_auto_passes_over_tensorrt_where_nothing_is_built_or_there_is_no_gpu(
    make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("latentrt.backends.Backend.installed", lambda self: True)
    rig = make_rig("tensorrt-rtx")
    graphs = [rig.bundle.component(name).graph for name in ("step", "decoder")]
    with caplog.at_level("INFO", logger="latentrt"):
        assert choose("auto", graphs=graphs, cache_dir=rig.folder).name == "openvino"
        assert re.search("tensorrt-rtx: no engine of 'step'", caplog.text)
        rig.build()
        monkeypatch.setattr("latentrt.backends.tensorrt.engine.driver_present", lambda: False)
        assert choose("auto", graphs=graphs, cache_dir=rig.folder).name == "openvino"
    assert "passes over tensorrt-rtx: no NVIDIA driver" in caplog.text


@pytest.mark.parametrize("variant", VARIANTS)
def test_auto_takes_tensorrt_where_engines_and_a_gpu_are_there(
    variant: str, make_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch, reference: Pipeline
):
    rig = make_rig(variant)
    rig.build()
    monkeypatch.setattr("latentrt.backends.Backend.installed", lambda self: True)
    monkeypatch.setattr("latentrt.backends.tensorrt.engine.driver_present", lambda: True)
    monkeypatch.setattr("latentrt.backends.tensorrt.engine.open_cuda", lambda: Cuda(rig.cudart))
    monkeypatch.setattr("latentrt.backends.tensorrt.engine.import_module", lambda name: rig.trt)
    (request,) = REQUESTS["deterministic"]
    with latentrt.load(rig.bundle.root, cache_dir=rig.folder) as pipe:
        assert pipe.backend == variant
        assert np.array_equal(pipe.run(request).images, reference.run(request).images)


def test_errors_of_the_backends_are_errors_of_the_library():
    assert issubclass(BackendError, LatentRTError)


# LoRA

STYLE = Path(__file__).parents[3] / "examples" / "shapes" / "lora" / "outlined.safetensors"


def test_engines_built_with_a_lora_are_taken_for_it_alone(rig: Rig, reference: Pipeline, tmp_path: Path):
    request = Request("a red circle", seed=7, size=SIZE, steps=2)
    merged = merge(rig.bundle, [(STYLE, 0.5)]).graphs
    written = {name: replace(graph, path=tmp_path / f"{name}.onnx") for name, graph in merged.items()}
    for graph in written.values():
        write_merged(replace(graph, path=rig.bundle.component(graph.component).graph.path), graph.path)
    rig.build(graphs=written, components=tuple(written))
    device = TensorRtDevice(rig.trt, Cuda(rig.cudart))
    options = EngineOptions(cache_dir=rig.folder)

    graphs = [rig.bundle.component(name).graph for name in ("text_encoder", "step", "decoder")]
    engines = open_on(device, graphs, options, rig.variant)

    def reopen(graphs: Sequence[GraphFile]) -> dict[str, Engine]:
        return open_engines(graphs, options, rig.variant, beside=engines["step"])

    every = {name: part.graph for name, part in rig.bundle.components.items()}
    with Pipeline(rig.bundle, EngineSet(engines, graphs=every, opens=reopen)) as pipe:
        plain = pipe.run(request).images
        pipe.set_lora([(STYLE, 0.5)])
        styled = pipe.run(request).images
        assert engine(pipe, "step").device is device
        with pytest.raises(EnvironmentLacks, match=f"no engine of 'step' with {STYLE}:0.75 is built") as caught:
            pipe.set_lora([(STYLE, 0.75)])
        assert f"--backend {rig.variant} --lora {STYLE}:0.75" in str(caught.value)
        assert np.array_equal(pipe.run(request).images, styled)
        pipe.set_lora([])
        assert np.array_equal(pipe.run(request).images, plain)
    reference.set_lora([(STYLE, 0.5)])
    try:
        assert np.array_equal(styled, reference.run(request).images)
    finally:
        reference.set_lora([])
    assert not np.array_equal(styled, plain)
