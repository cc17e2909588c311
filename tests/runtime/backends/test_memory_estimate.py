"""The estimate of GPU memory is a sum that can be done by hand."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from latentrt import Bundle
from latentrt.backends.tensorrt.memory_estimate import ALLOWANCE_BYTES, BY_TURNS, RESIDENT, STREAMED, Estimate, estimate
from latentrt.backends.tensorrt.records import PLAN, RECORD, EngineRecord, Profile
from latentrt.bundle import STEP_CONTROL
from latentrt.cli import main

MB = 1_000_000
WEIGHTS = {"text_encoder": 300 * MB, "step": 1700 * MB, "decoder": 200 * MB, "encoder": 100 * MB}
ACTIVATION = {"text_encoder": 20 * MB, "step": 90 * MB, "decoder": 400 * MB, "encoder": 900 * MB}


def record(bundle: Bundle, name: str, **changes) -> EngineRecord:
    """An engine that serves everything."""
    component = bundle.component(name)
    axes = {tensor: component.dims[tensor] for tensor in component.graph.inputs}
    low = {tensor: tuple(d if isinstance(d, int) else 1 for d in dims) for tensor, dims in axes.items()}
    high = {tensor: tuple(d if isinstance(d, int) else 2048 for d in dims) for tensor, dims in axes.items()}
    fields = {
        "component": name,
        "graph": component.graph.digest,
        "variant": "tensorrt-rtx",
        "version": "1.7",
        "gpus": ("sm80+",),
        "precision": "fp16",
        "options": {},
        "profile": Profile(min=low, opt=low, max=high),
        "plan_bytes": 3,
        "plan_sha256": "0" * 64,
        "weights_bytes": WEIGHTS.get(name),
        "activation_bytes": ACTIVATION.get(name, 20 * MB),
        "layers": 1,
        "types": {"float16": 1},
        "seconds": 1.0,
    }
    return EngineRecord(**{**fields, **changes})


@pytest.fixture(scope="module")
def bundle(shapes_bundle: Path) -> Bundle:
    return Bundle.open(shapes_bundle)


@pytest.fixture
def records(bundle: Bundle) -> list[EngineRecord]:
    return [record(bundle, name) for name in WEIGHTS]


def buffers(*, batch: int, w: int, h: int, steps: int) -> int:
    """Bytes of every input and output, from docs/bundle.md: C = 4, D = 128, K = 2, one chunk of 77 tokens."""
    b, plane = batch, h * w
    text = 8 * (2 * b * 77 + 1) + 4 * (128 + 2 * b * 77 * 128 + 2 * b * 128)
    inputs = b * (16 * plane + 4 * plane + 4 * plane + plane + 1 + 3 + 24 + 2 * 77 * 128 + 2 + 1)
    outputs = b * (16 * plane + 4 * plane)
    decoder = 4 * b * 4 * plane + b * 64 * plane * 3
    return text + 4 * (inputs + outputs) + decoder + (steps - 1) * 4 * b * 4 * plane


@pytest.mark.parametrize(("batch", "w", "h"), [(1, 64, 64), (4, 64, 64), (2, 128, 96)])
def test_the_estimate_is_the_documented_sum(batch: int, w: int, h: int, bundle: Bundle, records):
    found = estimate(bundle, records, size=(8 * w, 8 * h), batch=batch)
    assert isinstance(found, Estimate)
    assert found.buffers == buffers(batch=batch, w=w, h=h, steps=bundle.family.defaults.steps)
    assert found.activation == 400 * MB  # not the encoder's: text to image does not load it
    rest = ALLOWANCE_BYTES + found.buffers + 400 * MB
    assert {plan.name: plan.bytes - rest for plan in found.plans} == {RESIDENT: 2200 * MB, BY_TURNS: 2000 * MB}


def test_weights_stream_only_where_the_step_was_built_for_it(bundle: Bundle, records):
    found = estimate(bundle, records, size=(512, 512), batch=1)
    streaming = [*records, record(bundle, "step", options={"weight_streaming": "on"}, activation_bytes=80 * MB)]
    other = estimate(bundle, streaming, size=(512, 512), batch=1)
    assert isinstance(found, Estimate)
    assert isinstance(other, Estimate)
    assert STREAMED not in {plan.name for plan in found.plans}
    assert other.plans[-1].name == STREAMED
    assert other.plans[-1].bytes == other.plans[0].bytes - 1900 * MB
    assert [plan.bytes for plan in other.plans] == sorted((plan.bytes for plan in other.plans), reverse=True)


def test_of_several_text_encoders_only_the_largest_has_to_fit_beside_the_step(bundle: Bundle):
    """As Stable Diffusion XL at 1024x1024: its second text encoder is the larger one."""
    first, text_encoder = bundle.component("text_encoder"), bundle.family.text_encoders[0]
    second = replace(first, name="text_encoder_2", graph=replace(first.graph, component="text_encoder_2"))
    family = replace(bundle.family, text_encoders=(text_encoder, replace(text_encoder, component="text_encoder_2")))
    both = replace(bundle, family=family, components={**bundle.components, "text_encoder_2": second})
    weights = {"text_encoder": 246 * MB, "text_encoder_2": 1390 * MB, "step": 5140 * MB, "decoder": 99 * MB}
    rows = [
        record(both, name, weights_bytes=size, options={"weight_streaming": "on"} if name == "step" else {})
        for name, size in weights.items()
    ]
    found = estimate(both, rows, size=(1024, 1024), batch=1)
    assert isinstance(found, Estimate)
    assert found.weights == weights
    rest = ALLOWANCE_BYTES + found.buffers + found.activation
    assert [(plan.name, plan.bytes - rest) for plan in found.plans] == [
        (RESIDENT, 6875 * MB),
        (BY_TURNS, 6530 * MB),
        (STREAMED, 1390 * MB),
    ]
    assert found.plan_for(rest + 6600 * MB) == found.plans[1]


def controlled_records(bundle: Bundle, **step) -> list[EngineRecord]:
    """Engines of a bundle with ControlNets; `step` changes the record of `step-control`."""
    weights = {**WEIGHTS, STEP_CONTROL: 1710 * MB, "controlnet-random": 700 * MB, "controlnet-other": 800 * MB}
    changes = {"step": {"options": {}}, STEP_CONTROL: step}
    return [
        record(bundle, name, weights_bytes=weights[name], **changes.get(name, {}))
        for name in weights
        if name in bundle.components
    ]


@pytest.fixture(scope="module")
def two_controls(controlled_bundle: Path) -> Bundle:
    """With a second ControlNet that is the first but in name."""
    bundle = Bundle.open(controlled_bundle)
    net = bundle.component("controlnet-random")
    other = replace(net, name="controlnet-other", graph=replace(net.graph, component="controlnet-other"))
    return replace(bundle, components={**bundle.components, "controlnet-other": other})


def controlled_buffers(*, h: int, w: int, nets: int) -> int:
    """What controls add to the bytes of `buffers` for a batch of 1, with guidance: residuals of the step, and all that
    a ControlNet takes and gives, docs/controlnet.md. The noise of the steps to come is not there in advance."""

    def half(n: int, times: int) -> int:
        return n if times == 0 else half(-(-n // 2), times - 1)

    levels, channels = (0, 0, 1, 1, 2, 2, 2), (64, 64, 64, 128, 128, 192, 192)
    residuals = sum(2 * c * half(h, n) * half(w, n) for c, n in zip(channels, levels, strict=True))
    taken = 16 * h * w + 1 + 3 + 2 * 77 * 128 + 2 * len(channels)
    return 4 * residuals + nets * (4 * (taken + 2 * residuals) + 64 * h * w * 3)


@pytest.mark.parametrize(("controls", "nets"), [(("random",), 700 * MB), (("random", "other"), 1500 * MB)])
def test_a_run_with_controls_holds_them_beside_the_step_with_residuals(controls, nets: int, two_controls: Bundle):
    rows = controlled_records(two_controls)
    plain = estimate(two_controls, rows, size=(512, 384), batch=1)
    found = estimate(two_controls, rows, size=(512, 384), batch=1, controls=controls)
    assert isinstance(plain, Estimate)
    assert isinstance(found, Estimate)
    assert {plan.name: plan.bytes for plan in plain.plans} == {
        plan.name: plan.bytes for plan in estimate(two_controls, rows[:3], size=(512, 384), batch=1).plans
    }
    noise = (two_controls.family.defaults.steps - 1) * 4 * 4 * 64 * 48
    assert found.buffers == plain.buffers - noise + controlled_buffers(h=48, w=64, nets=len(controls))
    rest = ALLOWANCE_BYTES + found.buffers + 400 * MB
    assert {plan.name: plan.bytes - rest for plan in found.plans} == {
        RESIDENT: 500 * MB + 1710 * MB + nets,
        BY_TURNS: 300 * MB + 1710 * MB + nets,
    }
    streaming = controlled_records(two_controls, options={"weight_streaming": "on"})
    *_, streamed = estimate(two_controls, streaming, size=(512, 384), batch=1, controls=controls).plans
    assert streamed.name == STREAMED
    assert streamed.bytes - rest == nets  # more than the largest of the others


@pytest.mark.parametrize("index", [0, 1])
def test_the_fastest_plan_that_fits_is_named(index: int, bundle: Bundle, records):
    found = estimate(bundle, records, size=(512, 512), batch=1)
    assert isinstance(found, Estimate)
    plan = found.plans[index]
    assert found.plan_for(plan.bytes) == plan
    assert found.plan_for(plan.bytes - 1) == (found.plans[1] if index == 0 else None)


def test_of_several_engines_the_one_that_needs_least_counts(bundle: Bundle, records):
    small = record(bundle, "decoder", activation_bytes=100 * MB)
    narrow = record(bundle, "decoder", activation_bytes=10 * MB, profile=profile_of_64_px(bundle))
    found = estimate(bundle, [*records, small, narrow], size=(512, 512), batch=1)
    assert isinstance(found, Estimate)
    assert found.activation == 100 * MB


def profile_of_64_px(bundle: Bundle) -> Profile:
    shapes = {"latent": (1, 4, 8, 8)}
    return Profile(min=shapes, opt=shapes, max=shapes)


@pytest.mark.parametrize(
    ("drop", "changes", "missing"),
    [
        ("step", None, "no engine of step"),
        ("step", {"graph": "of another bundle"}, "no engine of step"),
        ("decoder", {"activation_bytes": None}, "the builder did not report the memory of decoder"),
    ],
)
def test_without_an_engine_or_its_figures_there_is_no_estimate(drop, changes, missing, bundle: Bundle, records):
    kept = [row for row in records if row.component != drop]
    kept += [] if changes is None else [record(bundle, drop, **changes)]
    assert estimate(bundle, kept, size=(512, 512), batch=1) == missing


def test_a_size_beyond_the_profiles_has_no_estimate(bundle: Bundle, records):
    kept = [row for row in records if row.component != "decoder"]
    kept.append(record(bundle, "decoder", profile=profile_of_64_px(bundle)))
    found = estimate(bundle, kept, size=(512, 512), batch=1)
    assert "decoder" in found and "size" in found


@pytest.fixture
def engines(bundle: Bundle, tmp_path: Path) -> Path:
    """A folder of engines that serve everything, for sm80+, and a step for sm75."""
    rows = [*(record(bundle, name) for name in WEIGHTS), record(bundle, "step", gpus=("sm75",))]
    for i, row in enumerate(rows):
        folder = tmp_path / "tensorrt-rtx" / str(i)
        folder.mkdir(parents=True)
        (folder / RECORD).write_text(row.to_json())
        (folder / PLAN).write_bytes(b"abc")
    return tmp_path


@pytest.mark.parametrize(("vram", "verdict"), [("8", RESIDENT), ("3.2", RESIDENT), ("3", BY_TURNS), ("2", None)])
def test_inspect_says_whether_it_fits_and_how(vram, verdict, bundle: Bundle, engines: Path, capsys):
    arguments = ["inspect", str(bundle.root), "--cache-dir", str(engines), "--size", "512x512", "--vram", vram]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    later, turing = document["engines"]
    assert (later["gpus"], turing["gpus"]) == (["sm80+"], ["sm75"])
    assert [row["component"] for row in later["engines"]] == list(WEIGHTS)
    assert later["memory"]["fits_with"] == verdict
    assert turing["memory"]["missing"] == "no engine of text_encoder"
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert f"512x512, batch 1: {f'fits {vram} GB: {verdict}' if verdict else f'does not fit {vram} GB'}" in text
    assert re.search("512x512, batch 1: .*no engine of text_encoder", text)


def test_inspect_adds_up_runs_with_controls_too(controlled_bundle: Path, tmp_path: Path, capsys):
    bundle = Bundle.open(controlled_bundle)
    for i, row in enumerate(controlled_records(bundle)):
        folder = tmp_path / "tensorrt-rtx" / str(i)
        folder.mkdir(parents=True)
        (folder / RECORD).write_text(row.to_json())
        (folder / PLAN).write_bytes(b"abc")
    arguments = ["inspect", str(bundle.root), "--cache-dir", str(tmp_path), "--size", "512x512", "--vram", "3.2"]
    assert main([*arguments, "--json"]) == 0
    (engines,) = json.loads(capsys.readouterr().out)["engines"]
    (controlled,) = engines["memory"]["controlled"]
    assert (controlled["controls"], controlled["fits_with"]) == (["random"], None)
    assert controlled["weights_bytes"].keys() == {"text_encoder", STEP_CONTROL, "controlnet-random", "decoder"}
    assert engines["memory"]["weights_bytes"].keys() == {"text_encoder", "step", "decoder"}
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert re.search(r"512x512, batch 1: fits 3\.2 GB: all resident", text)
    assert re.search(r"with control random: does not fit 3\.2 GB", text)


@pytest.mark.parametrize("vram", ["0", "-1", "nan", "inf", "much"])
def test_memory_that_no_gpu_has_is_refused(vram: str, bundle: Bundle, capsys):
    assert main(["inspect", str(bundle.root), "--vram", vram]) == 2
    assert "expected gigabytes" in capsys.readouterr().err


def test_a_run_with_step_caching_holds_the_shallow_graph_beside_the_step(cached_bundle: Path):
    bundle = Bundle.open(cached_bundle)
    weights = {**WEIGHTS, "step-shallow": 150 * MB, STEP_CONTROL: 1710 * MB, "controlnet-random": 700 * MB}
    weights["step-control-shallow"] = 160 * MB
    rows = [record(bundle, name, weights_bytes=size) for name, size in weights.items()]
    for controls, beside in (((), 150 * MB), (("random",), 10 * MB + 700 * MB + 160 * MB)):
        plain = estimate(bundle, rows, size=(512, 512), batch=1, controls=controls)
        found = estimate(bundle, rows, size=(512, 512), batch=1, controls=controls, cached=True)
        assert isinstance(plain, Estimate)
        assert isinstance(found, Estimate)
        rest = ALLOWANCE_BYTES + found.buffers + 400 * MB
        assert found.buffers > plain.buffers
        assert {plan.name: plan.bytes - rest for plan in found.plans} == {
            RESIDENT: 2200 * MB + beside,
            BY_TURNS: 2000 * MB + beside,
        }
    assert estimate(bundle, rows[:3], size=(512, 512), batch=1, cached=True) == "no engine of step-shallow"
