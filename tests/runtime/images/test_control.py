"""Controls without a network: what is asked for, what the ControlNets are shown, when and how much they count."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prepared import assert_ready_for

import latentrt
from latentrt import Control, Guidance, Inpaint, Outpaint, Request
from latentrt.bundle import STEP_CONTROL, Bundle
from latentrt.datasets.request_file import read_lines
from latentrt.denoise.batch import make_plan
from latentrt.denoise.guidance import Segment
from latentrt.errors import RequestError
from latentrt.images.control import ControlImage, check_controls, control_passes
from latentrt.images.framing import Canvas

GREY = np.full((64, 64, 3), 128, np.uint8)


def gradient(width: int, height: int) -> np.ndarray:
    """Red grows from left to right, green from top to bottom. uint8 [height, width, 3]"""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), 0 * x], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"scale": float("nan")}, "scale of control edges is nan"),
        ({"scale": float("inf")}, "scale of control edges is inf; expected a number"),
        ({"start": -0.1}, "start of control edges is -0.1"),
        ({"end": 1.1}, "end of control edges is 1.1"),
        ({"start": 0.5, "end": 0.5}, "the smaller first"),
        ({"start": float("nan")}, "start of control edges is nan"),
    ],
)
def test_values_out_of_range_are_refused(values: dict, says: str):
    with pytest.raises(RequestError, match=says):
        Control("edges", GREY, **values)


@given(calls=st.integers(1, 60), bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda b: b[0] < b[1]))
def test_a_control_acts_in_the_calls_of_diffusers(calls: int, bounds: tuple[float, float]):
    """`controlnet_keep` of StableDiffusionControlNetPipeline."""
    start, end = bounds
    found = Control("edges", GREY, 0.5, start, end).weights(calls, 3, negative=[True, False])
    keep = [1.0 - float(i / calls < start or (i + 1) / calls > end) for i in range(calls)]
    assert found.shape == (calls, 2, 3)
    assert (found == 0.5 * np.array(keep)[:, None, None]).all()


def test_guessing_passes_over_the_negative_branch_and_favours_the_deep_layers():
    found = Control("edges", GREY, 2.0, guess=True).weights(1, 5, negative=[True, False, False])[0]
    assert (found[0] == 0).all()
    assert np.allclose(found[1], 2 * np.array([0.1, 10**-0.75, 10**-0.5, 10**-0.25, 1]))
    assert (found[2] == found[1]).all()


def test_a_controlnet_runs_once_for_all_images_and_again_for_a_second_picture():
    def seen(name: str, level: int) -> ControlImage:
        return ControlImage(Control(name, GREY, scale=level), np.full((8, 8, 3), level, np.uint8))

    images = [[seen("depth", 1), seen("edges", 2)], [], [seen("edges", 3), seen("depth", 4), seen("edges", 5)]]
    passes = control_passes(images, [2, 1, 3], negative=[False], residuals=2)
    assert [each.component for each in passes] == ["controlnet-depth", "controlnet-edges", "controlnet-edges"]
    assert [each.image[:, 0, 0, 0].tolist() for each in passes] == [[1, 0, 4], [2, 0, 3], [0, 0, 5]]
    assert passes[0].scale.shape == (3, 1, 3, 2)
    assert passes[0].scale[:, 0, :, 0].tolist() == [[1, 0, 4], [1, 0, 4], [0, 0, 4]]  # the first one's run is over


def test_a_picture_of_another_size_is_resized_to_cover_and_cropped_evenly():
    found = Control("edges", gradient(256, 64)).seen(Canvas(size=(32, 32)))
    assert found.shape == (32, 32, 3)
    assert 90 < found[:, 0, 0].mean() < 100 and 155 < found[:, -1, 0].mean() < 165  # the middle quarter


def test_a_run_on_a_part_sees_that_part_of_the_picture(tiny_bundle: Path):
    family = Bundle.open(tiny_bundle).family
    photo, mask = gradient(256, 256), np.zeros((256, 256), np.bool_)
    mask[160:224, 160:224] = True
    control = Control("edges", photo)
    canvas = Inpaint(photo, mask, margin=16).canvas((128, 128), family)
    assert (control.seen(canvas) == canvas.image).all()
    canvas = Outpaint(gradient(128, 128), right=128).canvas(None, family)
    assert abs(int(control.seen(canvas)[10, 100, 0]) - 100) < 5  # of the whole of 256 px, not of the photo's 128


@pytest.mark.parametrize(
    ("known", "says"), [(("canny", "depth"), "expected one of canny, depth"), ((), "latentrt control BUNDLE")]
)
def test_an_unknown_control_is_refused(known: tuple[str, ...], says: str):
    with pytest.raises(RequestError, match=says):
        check_controls([Control("edges", GREY)], known, guesses=True)


def test_guessing_with_a_denoiser_that_has_no_finer_layers_is_refused():
    with pytest.raises(RequestError, match="control edges with guess; expected a U-Net"):
        check_controls([Control("edges", GREY, guess=True)], ["edges"], guesses=False)


def test_what_is_no_image_is_refused_before_the_run(tiny_bundle: Path, tmp_path: Path):
    request = Request("a circle", control=[Control("edges", tmp_path / "none.png")])
    with pytest.raises(RequestError, match="no photo at"):
        make_plan([request], Bundle.open(tiny_bundle).family)


def test_a_bundle_without_controlnets_says_so(tiny_bundle: Path):
    with latentrt.load(tiny_bundle, backend="onnxruntime") as pipe, pytest.raises(RequestError, match="has none"):
        pipe.steps(Request("a circle", control=[Control("edges", GREY)]))


def test_a_line_of_a_file_of_prompts_may_have_controls(tmp_path: Path):
    line = '{"prompt": "a circle", "control": ["edges=lines.png:0.5", "depth=depth.png"]}'
    ((found,), bad) = read_lines(
        [line, '{"prompt": "a star", "control": ["edges"]}'], defaults=Request(""), root=tmp_path
    )
    assert [(c.name, c.image, c.scale) for c in found.request.control] == [
        ("edges", str(tmp_path / "lines.png"), 0.5),
        ("depth", str(tmp_path / "depth.png"), 1.0),
    ]
    assert "control 'edges'; expected NAME=IMAGE" in str(bad[0])


def test_a_control_acts_in_its_calls_where_guidance_has_an_interval(
    controlled_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    """Calls without the negative branch are a sweep of their own: it takes the control's scales of those calls."""
    control = Control("random", gradient(64, 64), start=0.5)
    request = Request(
        "a circle",
        seed=1,
        steps=6,
        size=(64, 64),
        sampler="euler",
        guidance=Guidance(interval=(0.3, 0.7)),
        control=[control],
    )
    with latentrt.load(controlled_bundle, backend="onnxruntime") as pipe:
        parts, plain = pipe.run(request), pipe.run(replace(request, control=[]))
        monkeypatch.setattr(
            "latentrt.pipeline.segments",
            lambda feed, rows, **_: [Segment(dict(feed), dict(rows), slice(None), np.ones(len(feed["context"]), bool))],
        )
        whole = pipe.run(request)
    assert np.abs(parts.images.astype(int) - whole.images).max() <= 1
    assert np.abs(parts.images.astype(int) - plain.images).max() > 1


def test_only_a_controlled_run_loads_what_controls_need(controlled_bundle: Path):
    loaded: list[str] = []
    request = Request("a circle", seed=1, steps=1, size=(64, 64), sampler="euler")
    with latentrt.load(
        controlled_bundle,
        backend="onnxruntime",
        notify=lambda event: loaded.append(event.component) if event.seconds is None else None,
    ) as pipe:
        pipe.run(request)
        assert loaded == ["text_encoder", "step", "decoder"]
        assert STEP_CONTROL not in pipe.engines
        loaded.clear()
        pipe.run(replace(request, control=[Control("random", GREY)]))
        assert loaded == ["controlnet-random", "step-control"]
        loaded.clear()
        pipe.run(request)
        assert loaded == ["step"]  # it was unloaded: the two graphs never stand side by side in memory


def test_engines_are_made_ready_for_the_shapes_of_a_controlled_run(controlled_bundle: Path):
    request = Request("a circle", images=2, size=(64, 96), steps=1, control=[Control("random", GREY)])
    prepared = assert_ready_for(request, Bundle.open(controlled_bundle), controls=["random", "random"])
    assert "controlnet-random" in prepared and not {"encoder", "step"} & prepared.keys()


def test_a_prepared_pipeline_compiles_nothing_in_a_controlled_run(controlled_bundle: Path):
    """OpenVINO compiles for each size; another batch is another size."""
    compiled: list[str] = []
    request = Request("a circle", seed=1, steps=1, size=(64, 64), control=[Control("random", GREY)])
    with latentrt.load(
        controlled_bundle,
        backend="openvino",
        notify=lambda event: compiled.append(event.component) if event.seconds is None else None,
    ) as pipe:
        pipe.prepare(size=(64, 64), controls=["random"])
        assert sorted(compiled) == ["controlnet-random", "decoder", "step-control", "text_encoder"]
        compiled.clear()
        pipe.run(request)
        assert compiled == []
        pipe.run(replace(request, images=2))
        assert {"controlnet-random", "step-control"} <= set(compiled)
        with pytest.raises(RequestError, match="control 'depth'; expected one of random"):
            pipe.prepare(controls=["depth"])
