"""`latentrt check`: the table, the exit code and the user's own measure, around measurements that are made up; and one
real check against a bundle, without torch."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from latentrt.bundle import MANIFEST
from latentrt.export.parity import check as parity_check
from latentrt.export.parity.measurement import Measurement, Measurements

ROWS = [
    Measurement(subject="component step", case="64x64", backend="onnxruntime", value=2e-6, limit=1e-4, unit="relative"),
    Measurement(
        subject="images", case="euler", backend="openvino", value=61.5, limit=45.0, unit="dB", higher_is_better=True
    ),
    Measurement(subject="images", case="euler", backend="openvino bf16", value=38.0, limit=None, unit="dB"),
]


@pytest.fixture
def measured(monkeypatch):
    """Takes the place of the real check, and keeps what it was asked for."""
    asked = {}

    def run_check(bundle, reference, **options):
        asked.update(options, bundle=bundle.root, against=reference.name, components=reference.components)
        return Measurements(tuple(asked.get("rows", ROWS)), None)

    monkeypatch.setattr(parity_check, "run_check", run_check)
    return asked


def test_check_prints_rows_by_subject(cli, measured, tiny_bundle, tiny_checkpoint):
    outcome = cli("check", tiny_bundle, "--against", tiny_checkpoint, "--backend", "onnxruntime,openvino", "--quick")
    assert outcome.code == 0, outcome.err
    assert (measured["bundle"], measured["against"]) == (tiny_bundle, "torch")
    assert (measured["backends"], measured["quick"], measured["metric"]) == (("onnxruntime", "openvino"), True, None)
    step, images, verdict = outcome.out.strip().split("\n\n")
    assert step.splitlines()[0] == "component step"
    assert step.splitlines()[2].split() == ["64x64", "onnxruntime", "2e-06", "<=", "0.0001", "relative", "ok"]
    assert images.splitlines()[2].split() == ["euler", "openvino", "61.5", ">=", "45", "dB", "ok"]
    assert images.splitlines()[3].split() == ["euler", "openvino", "bf16", "38", "-", "dB"]
    assert verdict == "all 2 gates passed"


def test_a_failed_gate_is_exit_code_1(cli, measured, tiny_bundle, tiny_checkpoint):
    measured["rows"] = [replace(ROWS[0], value=float("inf")), *ROWS[1:]]
    text = cli("check", tiny_bundle, "--against", tiny_checkpoint)
    assert text.code == 1
    assert "FAILED" in text.out
    assert text.out.endswith("1 of 2 gates failed\n")
    document = cli("check", tiny_bundle, "--against", tiny_checkpoint, "--json").document
    assert document["passed"] is False
    assert [row["passed"] for row in document["rows"]] == [False, True, True]


def test_check_takes_a_measure_and_prompts_from_files(cli, measured, tiny_bundle, tmp_path):
    (tmp_path / "mine.py").write_text("def brightness(images, prompts):\n    return images.mean(axis=(1, 2, 3))\n")
    (tmp_path / "prompts.txt").write_text("a red circle\n\n  a blue star\n")
    metric = f"{tmp_path / 'mine.py'}:brightness"
    outcome = cli(
        *("check", tiny_bundle, "--against", tiny_bundle, "--metric", metric, "--metric-drop", 0.5),
        *("--prompts", tmp_path / "prompts.txt", "--seeds", 2),
    )
    assert outcome.code == 0, outcome.err
    assert measured["against"] == "onnxruntime"
    assert (measured["metric"], measured["metric_drop"]) == (metric, 0.5)
    assert measured["prompts"] == ["a red circle", "a red circle", "a blue star", "a blue star"]
    assert "was not made from" in outcome.err


def test_prompts_that_diffusers_cuts_are_refused(cli, shapes_bundle, shapes_checkpoint, tmp_path):
    (tmp_path / "prompts.txt").write_text("a circle\n" + "a circle, " * 60)
    outcome = cli("check", shapes_bundle, "--against", shapes_checkpoint, "--prompts", tmp_path / "prompts.txt")
    assert outcome.code == 2
    assert "leaves out the end; expected at most 75 tokens" in outcome.err


def test_controlnets_are_compared_with_the_folders_that_they_came_from(
    cli, measured, controlled_bundle, shapes_checkpoint, random_controlnet
):
    asked = ("check", controlled_bundle, "--against", shapes_checkpoint, "--json")
    for options in ((), ("--controlnet", f"random={random_controlnet}")):
        outcome = cli(*asked, *options)
        assert outcome.code == 0, outcome.err
        assert {"step-control", "controlnet-random"} <= set(measured["components"])
        assert outcome.document["not_compared"] == []


def test_a_controlnet_that_is_not_at_hand_is_named(
    cli, measured, controlled_bundle, shapes_checkpoint, random_controlnet, tmp_path
):
    bundle = tmp_path / "bundle"
    shutil.copytree(controlled_bundle, bundle, copy_function=os.link, ignore=shutil.ignore_patterns(MANIFEST))
    manifest = json.loads((controlled_bundle / MANIFEST).read_text())
    for source, says in ((str(tmp_path / "gone"), "no folder"), (str(random_controlnet), "has changed since")):
        manifest["controlnets"]["random"] |= {"source": source, "sha256": {}}
        (bundle / MANIFEST).write_text(json.dumps(manifest))
        outcome = cli("check", bundle, "--against", shapes_checkpoint)
        assert outcome.code == 0
        assert says in outcome.err and "give it with --controlnet random=FOLDER" in outcome.err
        assert outcome.out.endswith("all 2 gates passed; not compared: controlnet-random\n")
    against = cli("check", bundle, "--against", shapes_checkpoint, "--controlnet", f"random={random_controlnet}")
    assert against.out.endswith("all 2 gates passed\n")
    manifest["components"]["step-control"]["precision"] = "int8"  # which is judged along a run with a control
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    outcome = cli("check", bundle, "--against", shapes_checkpoint, "--json")
    assert set(outcome.document["not_compared"]) == {"step-control", "controlnet-random"}


def test_controlnets_beside_no_checkpoint_and_of_no_bundle_are_refused(
    cli, measured, tiny_bundle, shapes_checkpoint, random_controlnet
):
    given = ("--controlnet", f"random={random_controlnet}")
    assert "it with a checkpoint" in cli("check", tiny_bundle, "--against", tiny_bundle, *given).err
    outcome = cli("check", tiny_bundle, "--against", shapes_checkpoint, *given)
    assert outcome.code == 2
    assert "ControlNet 'random'; expected none" in outcome.err


def test_a_measure_that_is_none_is_found_before_the_work(cli, measured, tiny_bundle):
    outcome = cli("check", tiny_bundle, "--against", tiny_bundle, "--metric", "math:brightness")
    assert outcome.code == 2
    assert "math has no function brightness" in outcome.err
    assert "bundle" not in measured


@pytest.mark.families
def test_against_a_bundle_no_torch_is_imported(shapes_fp16, shapes_bundle, tmp_path):
    """Real components and images, in a process of their own; the page is written as well."""
    command = ["check", str(shapes_fp16), "--against", str(shapes_bundle), "--backend", "onnxruntime"]
    command += ["--report", str(tmp_path / "r.html"), "--json"]
    code = (
        "import json, sys\n"
        "from latentrt.cli import main\n"
        "from latentrt.export.parity.cases import CaseTable\n"
        "from dataclasses import replace\n"
        "seeds = CaseTable.seeds\n"
        "CaseTable.seeds = lambda *given: [replace(case, size=(64, 64), steps=4) for case in seeds(*given)]\n"
        f"code = main({command!r})\n"
        "loaded = [name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules]\n"
        "print(json.dumps([code, loaded]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr.splitlines()[-1]) == [0, []], done.stderr
    rows = json.loads(done.stdout)["rows"]
    components = [row for row in rows if row["subject"].startswith("component")]
    assert {row["subject"].split()[1] for row in components} == {"text_encoder", "step", "decoder", "encoder"}
    assert {row["limit"] for row in components} == {45.0, None}
    (median,) = [row for row in rows if "median of 16 seeds" in row["case"]]
    assert median["limit"] == 35.0
    assert 35 < median["value"] < 100
    assert (tmp_path / "r.html").read_text().count("<img") > 6
