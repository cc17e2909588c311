"""The benchmark of full size: its table and its file, of runs that have been measured."""

import sys
from pathlib import Path

import pytest

from benchmarks import full
from benchmarks.result_file import read_result
from latentrt.bench.figures import ratios


@pytest.mark.parametrize("pooled", [False, pytest.param(True, marks=pytest.mark.families)])
def test_every_row_is_compared_with_torch_and_the_result_is_kept(
    pooled: bool,
    tmp_path: Path,
    tiny_bundle: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def compete(candidates: list, points: object, **_: object) -> list[dict]:
        rows = {}
        for place, candidate in enumerate(candidates):
            spread = {"median": 12.0 / (place + 1)}
            rows[candidate.name] = {"name": candidate.name, **dict.fromkeys(full.COLUMNS, spread), "peak_memory_mb": 1}
        return [
            row | ratios(row, rows[candidate.base]) for candidate, row in zip(candidates, rows.values(), strict=True)
        ]

    monkeypatch.setattr(full, "compete", compete)
    build = tmp_path / "build"
    places = [("checkpoints", "tiny-sd15", tiny_bundle), ("bundles", "tiny-sd15", tiny_bundle)]
    if pooled:
        places.append(("bundles", "tiny-sd15-pooled", request.getfixturevalue("pooled_bundle")))
    for folder, name, source in places:
        (build / folder).mkdir(parents=True, exist_ok=True)
        (build / folder / name).symlink_to(source)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(full, "python", lambda *_: "")
    options = ["--architecture", "tiny-sd15", "--build", str(build), "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", ["full.py", *options, *(["--pooled"] if pooled else [])])
    full.main()
    table = capsys.readouterr().out
    assert "| torch fp32 | 12 | 12 | 12 | 12 | 1 | 1.00 |" in table
    assert "| openvino fp32 | 3 | 3 | 3 | 3 | 1 | 4.00 |" in table
    assert ("| openvino fp32, pooled attention | 2 |" in table) == pooled
    (written,) = (tmp_path / "results").iterdir()
    assert str(written) in table
    assert [row["against"] for row in read_result(written)["results"]] == ["torch fp32"] * (8 if pooled else 5)
