"""Runs with ControlNets on the stand-in of a GPU: residuals and state stay there, the picture is the reference's."""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from standin.cudart import Cudart, Device
from standin.engines import SIZES, build
from standin.tensorrt import make_module

import latentrt
from latentrt import Control, Guidance, Pipeline, Request
from latentrt.backends.cuda.api import Cuda
from latentrt.backends.tensorrt.device import TensorRtDevice as DeviceOf
from latentrt.backends.tensorrt.engine import open_on
from latentrt.bundle import STEP_CONTROL, Bundle
from latentrt.engine import EngineOptions, Preparation

COMPONENTS = ("text_encoder", "step", "decoder", STEP_CONTROL, "controlnet-random")
PIXELS = {"H": (64, 128), "W": (64, 128)}
HALVES = {f"{axis}{n}": (8 // n, 16 // n) for axis in "hw" for n in (2, 4)}


@pytest.mark.parametrize("variant", ["tensorrt-rtx", "tensorrt"])
def test_a_controlled_image_equals_that_of_the_reference_backend(variant: str, controlled_bundle: Path, tmp_path: Path):
    bundle = Bundle.open(controlled_bundle)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    request = Request(
        "a red circle",
        seed=7,
        size=(64, 64),
        steps=4,
        sampler="euler-a",
        control=[Control("random", pictures[0], 0.7), Control("random", pictures[1], end=0.5)],
    )
    cudart = Cudart(Device())
    build(bundle, tmp_path, variant=variant, components=COMPONENTS, sizes={**SIZES, **PIXELS, **HALVES})
    gc.freeze()
    device = DeviceOf(make_module(cudart, variant=variant), Cuda(cudart))
    graphs = [bundle.component(name).graph for name in COMPONENTS]
    engines = open_on(device, graphs, EngineOptions(cache_dir=tmp_path), variant)
    with Pipeline(bundle, engines) as pipe:
        found = pipe.run(request).images
        plain = pipe.run(Request("a red circle", seed=7, size=(64, 64), steps=4, sampler="euler-a")).images
    with latentrt.load(controlled_bundle, backend="onnxruntime", threads=1) as pipe:
        assert np.array_equal(found, pipe.run(request).images)
    assert not np.array_equal(found, plain)
    del pipe, engines, device
    gc.collect()
    gc.unfreeze()
    cudart.close()  # nothing is held


def test_a_prepared_pipeline_neither_loads_nor_warms_up_for_a_controlled_run(controlled_bundle: Path, tmp_path: Path):
    bundle = Bundle.open(controlled_bundle)
    build(bundle, tmp_path, variant="tensorrt-rtx", components=COMPONENTS, sizes={**SIZES, **PIXELS, **HALVES})
    device = DeviceOf(make_module(cudart := Cudart(Device()), variant="tensorrt-rtx"), Cuda(cudart))
    heard: list[Preparation] = []
    options = EngineOptions(cache_dir=tmp_path, notify=heard.append)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    request = Request("a red circle", seed=7, size=(64, 64), steps=2, control=[Control("random", picture)])
    graphs = [bundle.component(name).graph for name in COMPONENTS]
    with Pipeline(bundle, open_on(device, graphs, options, "tensorrt-rtx")) as pipe:
        pipe.prepare(size=(64, 64), controls=("random",))
        assert {event.component for event in heard} == {*COMPONENTS} - {"step"}
        heard.clear()
        cudart.trace.clear()
        pipe.run(request)
    assert heard == []
    assert "allocate" not in cudart.trace


@pytest.mark.parametrize("variant", ["tensorrt-rtx", "tensorrt"])
def test_a_controlled_step_is_one_launch_a_graph_without_upload_or_wait(
    variant: str, controlled_bundle: Path, tmp_path: Path
):
    """Two pictures for one ControlNet, one of them in a part of the run, and guidance in a part."""
    bundle = Bundle.open(controlled_bundle)
    build(bundle, tmp_path, variant=variant, components=COMPONENTS, sizes={**SIZES, **PIXELS, **HALVES})
    device = DeviceOf(make_module(cudart := Cudart(Device()), variant=variant), Cuda(cudart))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    controls = [Control("random", pictures[0], 0.7), Control("random", pictures[1], start=0.5)]
    request = Request("a red circle", seed=7, size=(64, 64), steps=12, sampler="euler", control=controls)
    part = replace(request, guidance=Guidance(interval=(0.25, 1.0)))
    graphs = [bundle.component(name).graph for name in COMPONENTS]
    launch = "execute" if variant == "tensorrt-rtx" else "launch graph"
    with Pipeline(bundle, open_on(device, graphs, EngineOptions(cache_dir=tmp_path), variant)) as pipe:
        pipe.prepare(size=(64, 64), controls=("random",))
        marks = [len(cudart.trace) for _ in pipe.steps(request)]
        steps = [cudart.trace[before:after] for before, after in pairwise(marks)]
        assert steps[0] == steps[2] == ["copy", launch, launch], "one picture, calls 1 and 3"
        assert steps[10] == ["copy", launch, launch, launch], "two pictures, call 11, when all is captured"
        marks = [len(cudart.trace) for _ in pipe.steps(part)]
        loop = cudart.trace[marks[0] : marks[-1]]
        assert "download" not in loop, "the state stays where it is when branches or pictures change"
        found = pipe.run(part).images
    with latentrt.load(controlled_bundle, backend="onnxruntime", threads=1) as pipe:
        assert np.array_equal(found, pipe.run(part).images)
    assert cudart.misuses == []
