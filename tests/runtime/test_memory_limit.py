"""A pipeline with a limit of memory: what is loaded at a time, and what is refused before any work."""

import json
from pathlib import Path

import numpy as np
import pytest

import latentrt
from latentrt import Control, Image, RequestError, StepCache, Upscale
from latentrt.backends.host_memory import BY_TURNS, RESIDENT, Call, estimate, loop_components
from latentrt.bundle import Bundle
from latentrt.concurrency.residency import Residency
from latentrt.engine import Preparation

BACKENDS = (("onnxruntime", "fp32"), ("openvino", "fp32"))
SHORT = {"seed": 1, "steps": 2, "size": (64, 64), "guidance": 2.0}
LITTLE = 1_000_000


class Engine:
    """What was unloaded, by name."""

    def __init__(self, name: str, gone: list[str]) -> None:
        self._name, self._gone = name, gone

    def unload(self) -> None:
        self._gone.append(self._name)


def test_by_turns_everything_makes_room_but_what_runs_together():
    gone: list[str] = []
    residency = Residency(together=("step", "controlnet-x"))
    engines = {name: Engine(name, gone) for name in ("text_encoder", "step", "controlnet-x", "decoder")}
    for name, engine in engines.items():
        residency.enter(name, engine)
    assert gone == []
    residency.by_turns = True
    residency.enter("step", engines["step"])
    assert gone == ["text_encoder", "decoder"]
    gone.clear()
    residency.enter("decoder", engines["decoder"])
    assert gone == ["text_encoder", "step", "controlnet-x"]


def plans(bundle: Path, backend: str, call: Call, compute: str = "fp32") -> dict[str, int]:
    found = estimate(Bundle.open(bundle), call, backend=backend, compute=compute)
    return {plan.name: plan.bytes for plan in found.plans}


@pytest.mark.parametrize(("backend", "compute"), BACKENDS)
def test_engines_are_loaded_by_turns_where_memory_is_short_and_the_picture_is_the_same(
    backend: str, compute: str, tiny_bundle: Path, tmp_path: Path
):
    needs = plans(tiny_bundle, backend, Call(size=SHORT["size"]))
    assert needs[BY_TURNS] < needs[RESIDENT]
    pictures, loads = {}, {}
    for name in (RESIDENT, BY_TURNS):
        heard: list[Preparation] = []
        with latentrt.load(
            tiny_bundle, backend=backend, memory=needs[name], notify=heard.append, cache_dir=tmp_path
        ) as pipe:
            pictures[name] = [pipe.generate("a red circle", **SHORT).images for _ in range(2)]
        loads[name] = [event.component for event in heard if event.seconds is None]
    assert loads[RESIDENT] == ["text_encoder", "step", "decoder"]
    assert loads[BY_TURNS] == 2 * loads[RESIDENT]
    assert all(np.array_equal(images, pictures[RESIDENT][0]) for made in pictures.values() for images in made)


def test_without_a_limit_nothing_makes_room(tiny_bundle: Path):
    heard: list[Preparation] = []
    with latentrt.load(tiny_bundle, backend="onnxruntime", notify=heard.append) as pipe:
        for _ in range(2):
            pipe.generate("a red circle", **SHORT)
    assert [event.component for event in heard if event.seconds is None] == ["text_encoder", "step", "decoder"]


def test_a_photo_a_control_shallow_calls_and_a_second_pass_are_loaded_by_turns(cached_bundle: Path):
    photo = np.full((64, 64, 3), 128, np.uint8)
    request = {
        **SHORT,
        "steps": 4,
        "start": Image(photo, strength=1.0),
        "control": [Control("random", photo)],
        "cache": StepCache(interval=2),
        "upscale": Upscale(2.0, space="pixel"),
    }
    with latentrt.load(cached_bundle, backend="onnxruntime") as pipe:
        expected = pipe.generate("a red circle", **request).images
    heard: list[Preparation] = []
    needs = plans(cached_bundle, "onnxruntime", Call(size=(128, 128), encodes=True, controls=("random",), cached=True))
    with latentrt.load(cached_bundle, backend="onnxruntime", memory=needs[BY_TURNS], notify=heard.append) as pipe:
        found = pipe.generate("a red circle", **request).images
        with pytest.raises(RequestError, match=r"64x64|128x128"):
            pipe.generate("a red circle", **request, images=9)
    assert np.array_equal(found, expected)
    loop = ["step-control", "controlnet-random", "step-control-shallow"]
    once = ["text_encoder", "encoder", *loop, "decoder"]
    assert sorted(event.component for event in heard if event.seconds is None) == sorted(2 * once)


def test_what_runs_in_a_loop_is_loaded_together(cached_bundle: Path):
    names = {"step", "step-shallow", "step-control", "step-control-shallow", "controlnet-random"}
    assert set(loop_components(Bundle.open(cached_bundle))) == names


def test_too_little_for_any_plan_is_said_before_anything_loads(tiny_bundle: Path):
    size = (128, 64)  # of which a run takes more than loading does
    heard: list[Preparation] = []
    call = Call(size=size, images=4)
    needs = plans(tiny_bundle, "onnxruntime", call)[BY_TURNS]
    with latentrt.load(tiny_bundle, backend="onnxruntime", memory=needs - LITTLE, notify=heard.append) as pipe:
        for attempt in (pipe.generate, lambda *given, **more: pipe.steps(latentrt.Request(*given, **more))):
            with pytest.raises(RequestError) as refused:
                attempt("a red circle", **{**SHORT, "size": size, "images": 4})
            said = str(refused.value)
            assert f"4 pictures of {size[0]}x{size[1]}" in said
            assert f"{(needs - LITTLE) / 1e9:.3g} GB" in said
            assert f"{needs / 1e9:.1f} GB at least" in said
        assert 1 <= pipe.images_at_a_time(latentrt.Request("a", **{**SHORT, "size": size}), most=4) < 4
    assert heard == []


def test_memory_for_no_picture_at_all_is_refused_when_a_bundle_is_opened(tiny_bundle: Path):
    with pytest.raises(RequestError, match=r"0\.01 GB of memory.*GB at least.*by turns"):
        latentrt.load(tiny_bundle, backend="onnxruntime", memory=10_000_000)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(RequestError, match="memory is"):
            latentrt.load(tiny_bundle, memory=wrong)


def test_a_limit_is_of_the_machine_and_not_of_a_gpu(tiny_bundle: Path):
    with pytest.raises(RequestError, match="memory with onnxruntime on cuda"):
        latentrt.load(tiny_bundle, backend="onnxruntime", device="cuda", memory=8 * 10**9)


def test_a_folder_of_images_is_made_in_batches_that_fit(tiny_bundle: Path, tmp_path: Path):
    from latentrt.datasets.dataset import Dataset
    from latentrt.datasets.request_file import read_lines

    rows = [json.dumps({"prompt": "a red circle", "images": 5})]
    defaults = latentrt.Request("", **{**SHORT, "seed": None})
    lines, _ = read_lines(rows, defaults=defaults, root=tmp_path)
    needs = plans(tiny_bundle, "onnxruntime", Call(size=(64, 64), images=2))
    with latentrt.load(tiny_bundle, backend="onnxruntime", memory=needs[RESIDENT]) as pipe:
        made = [batch.names for batch in Dataset(pipe, lines, tmp_path / "out", seed=1).make(batch=4)]
    assert [len(names) for names in made] == [2, 2, 1]
