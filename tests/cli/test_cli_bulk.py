"""`latentrt generate --prompts`: a folder of images from a file, and what is refused."""

import io
import json
import sys

import pytest

from latentrt.environment import requirement

QUICK = ("--steps", "1", "--guidance", "1", "--size", "64x64", "--backend", "onnxruntime", "--json")


def test_a_file_of_prompts_becomes_a_folder_and_a_second_run_makes_nothing(cli, tiny_bundle, tmp_path):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text('\ufeffa red circle\r\n{"prompt": "a blue\u2028star", "images": 2, "seed": 3}\r\n')
    first = cli("generate", tiny_bundle, "--prompts", prompts, "-o", output, *QUICK)
    assert first.code == 0, first.err
    assert (first.document["images"], first.document["made"]) == (3, 3)
    rows = [json.loads(row) for row in (output / "metadata.jsonl").read_text().split("\n")[:-1]]
    assert [row["file_name"] for row in rows] == ["000001.png", "000002-0.png", "000002-1.png"]
    assert [row["seed"] for row in rows][1:] == [3, 4]
    second = cli("generate", tiny_bundle, "--prompts", prompts, "-o", output, *QUICK)
    assert (second.document["images"], second.document["made"]) == (3, 0)
    assert "3 of 3 images are there" in second.err


def test_bad_lines_stop_or_are_left_out(cli, tiny_bundle, tmp_path, monkeypatch):
    output = tmp_path / "out"
    texts = b'a fox\n{"prompt": 1}\n{"prompt": "a", "size": "64x65"}\n'
    for options, code in (((), 2), (("--on-error", "skip"), 0)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(texts)))
        outcome = cli("generate", tiny_bundle, "--prompts", "-", "-o", output, *options, *QUICK)
        assert outcome.code == code, outcome.err
        assert "line 2: prompt is 1" in outcome.err
        assert output.exists() == (not code)
    assert "line 3: height is 65 px" in outcome.err
    assert outcome.document["images"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("a fox", "--on-error", "skip"), "--on-error without --prompts"),
        (("a fox", "--prompts", "x", "-o", "out"), "--prompts with PROMPT"),
        (("--prompts", "x"), "--prompts without --output"),
        (("--prompts", "nowhere.txt", "-o", "out"), "nowhere.txt cannot be read"),
        (("--prompts", "/dev/null", "-o", "out"), "/dev/null holds no request"),
        (("a fox", "--format", "parquet"), "--format without --prompts"),
        (("a fox", "--shard-images", "5"), "--shard-images without --prompts"),
        (("--prompts", "x", "-o", "out", "--shard-images", "5"), "--shard-images without shards"),
        (("--prompts", "x", "-o", "out", "--format", "folder", "--shard-images", "5"), "--shard-images without shards"),
        (("--prompts", "/dev/null", "-o", "nonsense://out"), "/dev/null holds no request"),
        (("a fox", "--ray"), "--ray without --prompts"),
        (("a fox", "--ray-actors", "2"), "--ray-actors without --ray"),
        (("--prompts", "x", "-o", "out", "--ray-cpus", "0.5"), "--ray-cpus without --ray"),
        (("--prompts", "x", "-o", "out", "--ray", "ray://host:10001"), "--ray ray://host:10001; expected HOST:PORT"),
        (("--prompts", "x", "-o", "out", "--ray", "--ray-gpus", "0"), "'0'; expected a number above 0"),
        ((), "no prompt; expected one or more texts, or --prompts FILE"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, cli, tiny_bundle):
    outcome = cli("generate", tiny_bundle, *options)
    assert outcome.code == 2
    assert message in outcome.err


def test_shards_take_the_place_of_files(cli, tiny_bundle, tmp_path):
    prompts, output = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a fox\na hen\na cat\n")
    for form, there in (("parquet", ["images-000000.parquet", "images-000001.parquet"]), ("folder", [])):
        shards = ("--shard-images", "2") if there else ()
        outcome = cli("generate", tiny_bundle, "--prompts", prompts, "-o", output, "--format", form, *shards, *QUICK)
        assert outcome.code == 0, outcome.err
        assert (outcome.document["format"], outcome.document["images"]) == (form, 3)
        assert (outcome.document["metadata"] is None) == bool(there)
        assert sorted(path.name for path in output.glob("images-*")) == there
    assert outcome.document["made"] == 0
    assert len(list(output.glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("package", "options", "extra"),
    [("ray", ("--ray",), "ray"), ("pyarrow", ("--format", "parquet"), "shards"), ("fsspec", (), "remote")],
)
def test_what_is_not_installed_is_named_before_any_work(
    package, options, extra, cli, tiny_bundle, tmp_path, monkeypatch
):
    there = requirement.importable
    monkeypatch.setattr(requirement, "importable", lambda name: name != package and there(name))
    prompts, output = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a fox\n")
    place = output if options else "memory://out"
    outcome = cli("generate", tiny_bundle, "--prompts", prompts, "-o", place, *options, *QUICK)
    assert outcome.code == 3
    assert f"{package}, not installed here; expected the extra '{extra}'" in outcome.err
    assert not output.exists()
