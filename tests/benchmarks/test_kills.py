"""The tool that kills: it sees what is wrong, and a short form of it."""

import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.kills import DONE, PROMPTS, WORKS, Trial, content, differences, leftovers, timeless

BULK = next(work for work in WORKS if work.name == "bulk")


def test_an_image_job_that_is_killed_completes(shapes_bundle: Path, tmp_path: Path):
    (tmp_path / "bundle").symlink_to(shapes_bundle)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:2]))
    trial = Trial(BULK, tmp_path, tmp_path / "bundle", random.Random(3))
    assert len([name for name in trial.reference.files if name.endswith(".png")]) == 2
    outcome = trial.kill()
    assert outcome.wrong == ()
    assert outcome.codes[-1] == DONE


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """Of a command that makes the files `a` and `bundle.json`, and whose code is in `codes` if it is wrong."""

    def run(self: Trial, out: Path, **_: object) -> tuple[int, str]:
        out.mkdir(exist_ok=True)
        for name in ("a", "bundle.json"):
            if not (out / name).exists():
                (out / name).write_text("{}")
        return (70, "internal error") if (out / "broken").exists() else (DONE, "")

    monkeypatch.setattr(Trial, "_run", run)
    work = replace(BULK, finished="bundle.json", alone=False)
    return Trial(work, tmp_path, tmp_path, random.Random(0))


@pytest.mark.parametrize(
    ("left", "words"),
    [
        ({}, None),
        ({"out/a": "{}"}, None),
        ({"out/bundle.json": "{}"}, "looks finished: a is missing"),
        ({"out/a": "half"}, "a differs"),
        ({"out/b": "more"}, "b is too many"),
        ({"out/broken": ""}, "exit code 70"),
        ({"out.part": ""}, "out.part is left"),
        ({".out.old": ""}, ".out.old is left"),
    ],
)
def test_what_a_kill_breaks_is_seen(left: dict[str, str], words: str | None, trial: Trial, tmp_path: Path):
    for name, text in left.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    out = tmp_path / "out"
    wrong = trial._completed("kill", "", out, [-9], trial._false_ends(out), 0.0).wrong
    assert any(words in line for line in wrong) if words is not None else wrong == ()


def test_times_are_no_difference_and_all_else_is():
    first, second = ({"created": str(n), "files": [{"seconds": n, "bytes": 1}]} for n in (1, 2))
    assert timeless(json.dumps(first).encode()) == timeless(json.dumps(second).encode())
    second["files"][0]["bytes"] = 2
    assert timeless(json.dumps(first).encode()) != timeless(json.dumps(second).encode())
    assert differences({"a": b"1", "b": b"2"}, {"b": b"3", "c": b"4"}) == ["a is too many", "b differs", "c is missing"]


def test_reports_and_what_is_derived_are_not_compared(tmp_path: Path):
    for name in ("report.html", "step.onnx", "engines/x/y"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(name)
    assert content(tmp_path / "out").keys() == {"step.onnx"}
    (tmp_path / ".out.old").mkdir()
    (tmp_path / "out.part").mkdir()
    (tmp_path / "another.part").mkdir()
    assert {path.name for path in leftovers(tmp_path / "out")} == {".out.old", "out.part"}
