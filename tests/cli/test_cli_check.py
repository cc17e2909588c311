"""`latentrt check`: the table, the exit code and the user's own measure, around measurements that are made up."""

from dataclasses import replace

import numpy as np
import pytest

from latentrt.errors import RequestError
from latentrt.export import cli as export_cli
from latentrt.export.parity import check as parity_check
from latentrt.export.parity.check import Row

ROWS = [
    Row(subject="component step", case="64x64", backend="onnxruntime", value=2e-6, limit=1e-4, unit="relative"),
    Row(subject="images", case="euler", backend="openvino", value=61.5, limit=45.0, unit="dB", higher_is_better=True),
    Row(subject="images", case="euler", backend="openvino bf16", value=38.0, limit=None, unit="dB"),
]


@pytest.fixture
def measured(monkeypatch):
    """Takes the place of the real check, and keeps what it was asked for."""
    asked = {}

    def run_check(bundle, checkpoint, **options):
        asked.update(options, bundle=bundle.root, checkpoint=checkpoint.root)
        return asked.get("rows", ROWS)

    monkeypatch.setattr(parity_check, "run_check", run_check)
    return asked


def test_check_prints_rows_by_subject(cli, measured, tiny_bundle, tiny_checkpoint):
    outcome = cli("check", tiny_bundle, "--against", tiny_checkpoint, "--backend", "onnxruntime,openvino", "--quick")
    assert outcome.code == 0, outcome.err
    assert (measured["bundle"], measured["checkpoint"]) == (tiny_bundle, tiny_checkpoint)
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


def test_check_takes_a_measure_and_prompts_from_files(cli, measured, tiny_bundle, tiny_checkpoint, tmp_path):
    (tmp_path / "beside.py").write_text("SCALE = 2.0\n")
    (tmp_path / "mine.py").write_text(
        "from beside import SCALE\ndef brightness(images, prompts):\n    return SCALE * images.mean()\n"
    )
    (tmp_path / "prompts.txt").write_text("a red circle\n\n  a blue star\n")
    outcome = cli(
        *("check", tiny_bundle, "--against", tiny_checkpoint),
        *("--metric", f"{tmp_path / 'mine.py'}:brightness", "--prompts", tmp_path / "prompts.txt"),
    )
    assert outcome.code == 0, outcome.err
    assert measured["metric"](np.full((1, 2, 2, 3), 3, np.uint8), ["a"]) == 6.0
    assert measured["prompts"] == ["a red circle", "a blue star"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("brightness", "metric 'brightness'"),
        ("no_such_module:f", "ModuleNotFoundError"),
        ("nowhere.py:f", "FileNotFoundError"),
        ("math:brightness", "math has no function brightness"),
    ],
)
def test_a_measure_that_is_none(name, found):
    with pytest.raises(RequestError, match=found):
        export_cli.load_metric(name)
