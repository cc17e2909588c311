"""`latentrt calibrate`: its arguments, its answer and its exit codes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latentrt.bundle import Bundle
from latentrt.calibration import package
from latentrt.calibration.cli import components, configure, judges, plan, smoothing_strength
from latentrt.cli import main
from latentrt.cli.arguments import Parser
from latentrt.denoise.batch import make_plan
from latentrt.errors import GateError, RequestError
from latentrt.samplers.registry import SAMPLERS


def parsed(bundle: Path, *arguments: str):
    parser = Parser()
    configure(parser)
    return plan(parser.parse_args([str(bundle), "-o", "out", *arguments]), Bundle.open(bundle))


def test_silence_means_the_bundles_defaults_and_the_own_prompts(shapes_bundle):
    policy, settings, evaluation = parsed(shapes_bundle)
    assert (policy.components, policy.ranges, policy.alpha, policy.min_sqnr) == ({"step": "int8"}, "mse", 0.8, None)
    assert len(settings.prompts) == 32
    assert (settings.sizes, settings.steps, settings.guidance, settings.sampler) == (((128, 128),), 20, 7.5, "ddim")
    assert evaluation is not None
    assert evaluation.backends == judges() == ("openvino", "onnxruntime")
    assert (len(evaluation.prompts), evaluation.min_sqnr, evaluation.min_psnr) == (16, 25.0, None)
    assert not set(evaluation.prompts) & set(settings.prompts)
    assert evaluation.seed > settings.seed + len(settings.prompts)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if not name.startswith("flow-")])
def test_every_checkpoints_own_sampler_takes_the_timesteps_of_the_trajectories(sampler, shapes_bundle, monkeypatch):
    bundle = Bundle.open(shapes_bundle)
    family = replace(bundle.family, defaults=replace(bundle.family.defaults, sampler=sampler))
    monkeypatch.setattr(Bundle, "open", lambda _: replace(bundle, family=family))
    _, settings, evaluation = parsed(shapes_bundle, "--steps", "4", "--count", "2", "--images", "1")
    for request in settings.requests(family.noise.num_train_timesteps):
        assert make_plan([request], family).calls >= 4
    assert evaluation.sampler == sampler


def test_arguments_reach_where_they_belong(shapes_bundle, tmp_path):
    (file := tmp_path / "p.txt").write_text("\n".join(f"prompt {i}" for i in range(9)))
    arguments = f"--prompts {file} --count 5 --steps 3 --guidance 1.0 --size 64x96 --size 96x64 --seed 0 --batch 2"
    policy, settings, evaluation = parsed(
        shapes_bundle, *arguments.split(), "--alpha", "none", "--images", "4", "--backend", "onnxruntime"
    )
    assert policy.alpha is None
    assert settings.prompts == tuple(f"prompt {i}" for i in range(5))
    assert (settings.sizes, settings.steps, settings.guidance, settings.seed, settings.batch) == (
        ((64, 96), (96, 64)),
        3,
        1,
        0,
        2,
    )
    assert evaluation is not None
    assert evaluation.prompts == ("prompt 6", "prompt 7", "prompt 8", "prompt 6")
    assert (evaluation.size, evaluation.guidance, evaluation.backends) == ((64, 96), 1.0, ("onnxruntime",))
    assert parsed(shapes_bundle, "--images", "0")[2] is None


def test_prompts_that_are_not_the_users_are_said(shapes_bundle, tmp_path, capsys, monkeypatch):
    """Before the work."""

    def begin(*_, **__):
        raise GateError("the work begins", expected="nothing")

    monkeypatch.setattr(package, "calibrate_bundle", begin)
    (file := tmp_path / "p.txt").write_text("a red circle\n")
    for arguments, said in (([], True), (["--prompts", str(file)], False)):
        assert main(["calibrate", str(shapes_bundle), "-o", str(tmp_path / "out"), *arguments]) == 1
        said_is = capsys.readouterr().err
        assert "the work begins" in said_is
        assert ("no --prompts" in said_is) is said


def test_images_are_gated_where_it_is_asked(shapes_bundle):
    from latentrt.export.parity.gates import image_rows

    evaluation = parsed(shapes_bundle, "--min-psnr", "35")[2]
    assert evaluation.min_psnr == 35.0
    reference = np.full((3, 8, 8, 3), 100, np.uint8)
    for change, passed in ((9, False), (2, True)):
        median, *rest = image_rows(
            reference + np.uint8(change), reference, case="c", backend="openvino", limit=evaluation.min_psnr
        )
        assert (median.limit, median.passed) == (35.0, passed)
        assert all(row.limit is None for row in rest)


def test_components_by_name():
    assert components("fp8") == {"step": "fp8"}
    assert components("step=int8, decoder=fp16") == {"step": "int8", "decoder": "fp16"}


@pytest.mark.parametrize("text", ["int4", "step=int4", "step=int8,decoder", "step=", "step=int8,step=fp8"])
def test_a_precision_that_is_none_of_ours(text):
    with pytest.raises(RequestError, match="precision"):
        components(text)


@pytest.mark.parametrize("text", ["-0.1", "1.5", "nan", "much"])
def test_a_strength_out_of_range(text):
    with pytest.raises(RequestError, match=r"alpha .* expected 0 to 1, none or search"):
        smoothing_strength(text)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--precision", "fp4"], "precision 'fp4'"),
        (["--ranges", "entropy"], "ranges 'entropy'"),
        (["--precision", "fp16"], "no component is to be quantised"),
        (["--precision", "step=int8,decoder=bf16"], "runs none on a CPU"),
        (["--alpha", "2"], "alpha '2'"),
        (["--alpha", "search", "--images", "0"], "a search with nothing to measure on"),
        (["--min-psnr", "35", "--images", "0"], "--min-psnr with --images 0"),
        (["--metric-drop", "0.1", "--images", "0"], "--metric-drop with --images 0"),
        (["--count", "0"], "'0'"),
        (["--size", "64"], "size '64'"),
        (["--size", "65x64"], "width is 65 px"),
        (["--backend", "openvyno"], "did you mean 'openvino'?"),
        (["--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_wrong_use_is_exit_code_2_and_leaves_nothing(shapes_bundle, tmp_path, capsys, arguments, found):
    code = main(["calibrate", str(shapes_bundle), "-o", str(tmp_path / "out"), *arguments])
    captured = capsys.readouterr()
    assert code == 2
    assert found in captured.err
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


BRIEF = ["--count", "1", "--steps", "1", "--size", "64x64", "--alpha", "none", "--threads", "1"]


def test_the_answer_is_one_document_and_a_failed_gate_exit_code_1(shapes_bundle, tmp_path, capsys):
    output, rejected, part = (tmp_path / name for name in ("q", "q.rejected", "q.part"))
    command = ["calibrate", str(shapes_bundle), *BRIEF, "--images", "1", "--backend", "onnxruntime", "--json"]
    command += ["-o", str(output), "--min-sqnr", "5"]
    assert main([*command, "--min-psnr", "95"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["expected"] == "at least 95"
    assert (rejected / "bundle.json").is_file() and not output.exists()
    assert {"ranges.npz", "float.npz"} <= {path.name for path in part.iterdir()}
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bundle"] == str(output)
    assert 0 < document["bytes_after"] < 0.35 * document["bytes_before"]
    assert document["calibration"]["judged"][0]["unit"] == "dB SQNR"
    assert any("int8 is no faster" in limit and "openvino" in limit for limit in document["limits"])
    assert not part.exists()
