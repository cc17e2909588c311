"""Runs with step caching on the stand-in of a GPU: state and features stay there, the picture is the reference's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from standin.cudart import Cudart, Device
from standin.engines import SIZES, build
from standin.tensorrt import make_module

import latentrt
from latentrt import Control, EnvironmentLacks, Guidance, Pipeline, Request
from latentrt.backends.cuda.api import Cuda
from latentrt.backends.tensorrt.device import TensorRtDevice
from latentrt.backends.tensorrt.engine import open_on
from latentrt.bundle import Bundle
from latentrt.engine import EngineOptions, Preparation

PLAIN = ("text_encoder", "step", "decoder", "step-shallow")
CONTROLLED = (*PLAIN, "step-control", "step-control-shallow", "controlnet-random")
HALVES = {f"{axis}{n}": (8 // n, 16 // n) for axis in "hw" for n in (2, 4)}
ALL_SIZES = {**SIZES, "H": (64, 128), "W": (64, 128), **HALVES}
REQUEST = Request("a red circle", seed=7, size=(64, 64), steps=7, sampler="euler-a", cache=3)
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "guidance in the middle": {"guidance": Guidance(4.0, interval=(0.3, 0.8))},
    "a list, two images": {"cache": (0, 3, 4), "images": 2},
    "control in a part": {"control": [Control("random", PICTURE, end=0.6)]},
}


@pytest.mark.parametrize("variant", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize("case", CASES)
def test_a_cached_image_equals_that_of_the_reference_backend(
    variant: str, case: str, cached_bundle: Path, tmp_path: Path
):
    bundle, request = Bundle.open(cached_bundle), replace(REQUEST, **CASES[case])
    components = CONTROLLED if "control" in CASES[case] else PLAIN
    build(bundle, tmp_path, variant=variant, components=components, sizes=ALL_SIZES)
    device = TensorRtDevice(make_module(cudart := Cudart(Device()), variant=variant), Cuda(cudart))
    heard: list[Preparation] = []
    options = EngineOptions(cache_dir=tmp_path, notify=heard.append)
    graphs = [bundle.component(name).graph for name in components]
    with Pipeline(bundle, open_on(device, graphs, options, variant)) as pipe:
        controls = [control.name for control in request.control]
        pipe.prepare(size=(64, 64), images=request.images, controls=controls, cached=True)
        expected = {"step-control-shallow"} if controls else {"step-shallow"}
        assert expected <= {event.component for event in heard}
        marks = [len(cudart.trace) for _ in pipe.steps(request)]
        assert "download" not in cudart.trace[marks[0] : marks[-1]], "state and features stay where they are"
        found = pipe.run(request).images
    with latentrt.load(cached_bundle, backend="onnxruntime", threads=1) as pipe:
        assert np.array_equal(found, pipe.run(request).images)
    assert cudart.misuses == []


def test_an_engine_that_is_not_built_is_missed_before_the_work(cached_bundle: Path, tmp_path: Path):
    bundle = Bundle.open(cached_bundle)
    build(bundle, tmp_path, variant="tensorrt-rtx", sizes=ALL_SIZES)
    device = TensorRtDevice(make_module(cudart := Cudart(Device()), variant="tensorrt-rtx"), Cuda(cudart))
    with pytest.raises(EnvironmentLacks, match="step-shallow"):
        open_on(device, [bundle.component("step-shallow").graph], EngineOptions(cache_dir=tmp_path), "tensorrt-rtx")
