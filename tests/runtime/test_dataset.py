"""Many images from a file of prompts, on the fake pipeline: what is read, what is made, and what survives a kill."""

import json
import os
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_text import read_parameters
from PIL import Image

from latentrt.datasets import making, store
from latentrt.datasets.dataset import Dataset
from latentrt.datasets.request_file import read_lines
from latentrt.errors import BackendError, EnvironmentLacks, InUseError, RequestError
from latentrt.files.atomic import write_whole
from latentrt.output.png import write_png
from latentrt.request import Request
from latentrt.testing import fake_pipeline

LINES = [
    "a fox",
    '{"prompt": "a hen", "images": 3, "guidance": 1}',
    "",
    '{"prompt": "an owl", "size": "72x64", "steps": 2, "metadata": {"class": "owl"}}',
    '{"prompt": "a cat", "file_name": "cats/one.png", "seed": 5, "sampler": "heun", "steps": 2}',
    "a very long prompt " * 9,
    '{"prompt": "a dog", "image": "photo.png", "strength": 0.5}',
]
NAMES = ["000001.png", "000002-0.png", "000002-1.png", "000002-2.png"]
NAMES += ["000004.png", "cats/one.png", "000006.png", "000007.png"]


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bulk")
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(photo).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def pipe(root):
    (root / "bundle").mkdir()
    return fake_pipeline(root / "bundle")


def read(root, texts=LINES):
    lines, bad = read_lines(texts, defaults=Request("", steps=3), root=root)
    assert not bad
    return lines


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def made(pipe, lines, folder, **options):
    return [name for part in Dataset(pipe, lines, folder, seed=1).make(**options) for name in part.names]


@pytest.fixture(scope="module")
def whole(pipe, root):
    """What one run makes, image by image."""
    assert sorted(made(pipe, read(root), root / "whole", batch=1)) == sorted(NAMES)
    return contents(root / "whole")


def test_images_and_metadata_are_in_the_image_folder_convention(whole):
    assert whole.keys() == {*NAMES, "metadata.jsonl", "bulk.json"}
    rows = [json.loads(row) for row in whole["metadata.jsonl"].decode().splitlines()]
    assert [row["file_name"] for row in rows] == NAMES
    assert [row["seed"] for row in rows] == [1, 4097, 4098, 4099, 1 + 3 * 4096, 5, 1 + 5 * 4096, 1 + 6 * 4096]
    assert all({"prompt", "steps", "guidance", "sampler", "schedule"} <= row.keys() for row in rows)
    assert (rows[4]["class"], rows[4]["size"], rows[4]["steps"]) == ("owl", "72x64", 2)
    assert rows[7]["start"]["strength"] == 0.5


def test_a_row_of_the_metadata_makes_its_image_again(pipe, root, whole):
    row = json.loads(whole["metadata.jsonl"].splitlines()[2])
    again = {key: value for key, value in row.items() if key != "file_name"}
    lines, _ = read_lines([json.dumps(again)], defaults=Request(""), root=root)
    image = pipe.run(Request(row["prompt"], seed=row["seed"], steps=3, guidance=1.0)).images[0]
    assert np.array_equal(image, np.asarray(Image.open(root / "whole" / row["file_name"])))
    assert made(pipe, lines, root / "again") == ["000001.png"]
    assert (root / "again" / "000001.png").read_bytes() == whole[row["file_name"]]
    assert f"Seed: {row['seed']}," in read_parameters(root / "again" / "000001.png")


@pytest.mark.parametrize("batch", [2, 3, 50])
def test_a_batch_gives_what_each_image_gives_alone(batch, pipe, root, whole):
    folder = root / f"batch{batch}"
    parts = list(Dataset(pipe, read(root), folder, seed=1).make(batch=batch))
    assert max(len(part.names) for part in parts) == min(batch, 3)
    for name in NAMES:
        alone, together = (np.asarray(Image.open(root / one / name), int) for one in ("whole", folder.name))
        assert np.abs(alone - together).max() <= 1
    assert contents(folder)["metadata.jsonl"] == whole["metadata.jsonl"]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=3), batch=st.integers(1, 4))
def test_runs_that_are_killed_make_the_same_folder_as_one(
    kills, batch, pipe, root, whole, tmp_path_factory, monkeypatch
):
    """A kill before or after the n-th write of a run, whatever is written; no code of the run is left to tidy up."""
    folder = tmp_path_factory.mktemp("killed")
    redone: list[str] = []
    for at, late in [*kills, (None, False)]:
        writes = 0

        def dying(write, path, *arguments, at=at, late=late, **options):
            nonlocal writes
            writes += 1
            if writes - 1 == at and not late:
                (path.parent / ".latentrt-0.tmp").write_bytes(b"half")
            if at is None or writes - 1 < at or (writes - 1 == at and late):
                write(path, *arguments, **options)
                redone.extend([path.name] if path.suffix == ".png" else [])
            if at is not None and writes > at:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(store, "write_whole", partial(dying, write_whole))
            try:
                made(pipe, read(root), folder, batch=batch)
            except Killed:
                continue
    assert contents(folder) == whole
    assert len(redone) == len(set(redone))


def test_more_lines_go_on_and_other_settings_are_refused(pipe, root, tmp_path):
    assert made(pipe, read(root, LINES[:2]), tmp_path) == NAMES[:4]
    assert made(pipe, read(root, LINES[:4]), tmp_path) == NAMES[4:5]
    before = contents(tmp_path)
    for others in (["another fox", *LINES[1:4]], LINES[:2]):
        with pytest.raises(RequestError, match="of other settings or another bundle"):
            Dataset(pipe, read(root, others), tmp_path)
    with pytest.raises(RequestError, match="of other settings"):
        Dataset(pipe, read(root, LINES[:4]), tmp_path, seed=2)
    assert contents(tmp_path) == before
    again = Dataset(pipe, read(root, ["another fox", *LINES[1:2]]), tmp_path, overwrite=True)
    assert [name for part in again.make() for name in part.names] == ["000001.png"]
    assert contents(tmp_path).keys() == {*NAMES[:4], "bulk.json", "metadata.jsonl"}


def test_a_photo_with_other_pixels_is_noticed(pipe, root, tmp_path):
    lines = read(tmp_path, [LINES[-1]])
    (tmp_path / "photo.png").write_bytes((root / "photo.png").read_bytes())
    made(pipe, lines, tmp_path / "out")
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    with pytest.raises(RequestError, match="of other settings"):
        Dataset(pipe, lines, tmp_path / "out")


def test_a_seed_that_is_drawn_stays(pipe, root, tmp_path):
    lines = read(root, ["a fox", "a hen"])
    part = next(Dataset(pipe, lines, tmp_path).make(batch=1))
    again = Dataset(pipe, lines, tmp_path)
    assert [item.name for item in again.missing] == [item.name for item in again.items if item.name not in part.names]


def test_an_image_of_unknown_origin_is_never_touched(pipe, root, tmp_path):
    write_png(tmp_path / "000001.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(RequestError, match="of unknown origin"):
        Dataset(pipe, read(root), tmp_path, overwrite=True)


def test_a_damaged_state_is_refused(pipe, root, tmp_path):
    (tmp_path / "bulk.json").write_text('{"seed": 1')
    with pytest.raises(RequestError, match="cannot be read"):
        Dataset(pipe, read(root), tmp_path)


def test_a_full_disk_keeps_what_is_there(pipe, root, tmp_path, monkeypatch):
    def full(path, data):
        if path.name == "000002-1.png":
            raise EnvironmentLacks("cannot write it (No space left on device)")
        write_whole(path, data)

    monkeypatch.setattr(store, "write_whole", full)
    with pytest.raises(EnvironmentLacks, match="No space left"):
        made(pipe, read(root, LINES[:2]), tmp_path, batch=4)
    assert len((tmp_path / "metadata.jsonl").read_text().splitlines()) == len(list(tmp_path.glob("*.png"))) == 2
    monkeypatch.undo()
    assert made(pipe, read(root, LINES[:2]), tmp_path) == NAMES[2:4]


def test_an_image_that_fails_is_left_out_if_asked(pipe, root, tmp_path, monkeypatch):
    run = pipe.run

    def failing(*requests):
        if any(request.seed == 4098 for request in requests):
            raise BackendError("out of memory")
        return run(*requests)

    monkeypatch.setattr(pipe, "run", failing)
    parts = list(Dataset(pipe, read(root, LINES[:2]), tmp_path, seed=1).make(skip_failures=True))
    assert [str(error) for part in parts for error in part.failed.values()] == ["out of memory"]
    assert sorted(name for part in parts for name in part.names) == [NAMES[0], NAMES[1], NAMES[3]]
    with pytest.raises(BackendError):
        made(pipe, read(root, LINES[:2]), tmp_path)


BAD = [
    ('{"prompt": 1}', "prompt is 1; expected a text"),
    ("{}", "no prompt"),
    ('{"prompt": "a"', "not JSON"),
    ('{"prompt": "\\ud800"}', "not JSON"),
    ('{"a": ' + "[" * 100_000, "not JSON"),
    ('{"prompt": "a", "guidance": NaN}', "NaN is no JSON value"),
    ('{"prompt": "a", "guidance": 1e999}', "guidance is inf; expected a number"),
    ('{"prompt": "a", "steps": 2.0}', "steps is 2.0; expected a whole number"),
    ('{"prompt": "a", "seed": true}', "seed True; expected an integer"),
    ('{"prompt": "a", "seed": -1}', "seed -1"),
    ('{"prompt": "a", "negative": ["b"]}', "negative is ['b']; expected a text"),
    ('{"prompt": "a", "size": "64"}', "size is"),
    ('{"prompt": "a", "size": [64.5, 64]}', "size is [64.5, 64]; expected a list of 2 whole numbers"),
    ('{"prompt": "a", "images": 1000000000}', "images is 1000000000"),
    ('{"prompt": "a", "stepps": 2}', "unknown key 'stepps'"),
    ('{"prompt": "a", "start": "photo.png"}', "unknown key 'start'"),
    ('{"prompt": "a", "mask": "m.png"}', "mask without a photo; expected image FILE with it"),
    ('{"prompt": "a", "file_name": "../a.png"}', "file_name is '../a.png'"),
    ('{"prompt": "a", "file_name": "a.jpg"}', "file_name is 'a.jpg'"),
    ('{"prompt": "a", "file_name": "first.png"}', "file_name 'first.png' is that of line 1"),
    ('{"prompt": "a", "metadata": {"seed": 1}}', "metadata has the key 'seed'"),
    ('{"prompt": "a", "metadata": []}', "metadata is []; expected an object"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[text[:60] for text, _ in BAD])
def test_a_bad_line_is_reported_with_its_number(text, message, tmp_path):
    texts = ['{"prompt": "a", "file_name": "first.png"}', "", text]
    lines, (bad,) = read_lines(texts, defaults=Request(""), root=tmp_path)
    assert [line.number for line in lines] == [1]
    assert str(bad).startswith("line 3: ")
    assert message in str(bad)


@pytest.mark.parametrize("row", [{"size": "64x65"}, {"sampler": "none"}, {"clip_skip": 99}, {"image": "nowhere.png"}])
def test_what_the_bundle_cannot_serve_is_known_before_any_work(row, pipe, tmp_path):
    lines = read(tmp_path, ["a fox", json.dumps({"prompt": "a", **row})])
    dataset = Dataset(pipe, lines, tmp_path / "out")
    assert [bad.number for bad in dataset.bad] == [2]
    assert [item.name for item in dataset.items] == ["000001.png"]
    assert not (tmp_path / "out").exists()


# Two runs in one folder


def test_a_second_run_is_kept_out_while_the_first_is_at_it(pipe, root, tmp_path):
    making = Dataset(pipe, read(root), tmp_path, seed=1).make(batch=1)
    next(making)
    (one,) = list(tmp_path.glob("*.png"))
    before = one.read_bytes()
    others = [Dataset(pipe, read(root, texts), tmp_path, seed=1) for texts in (LINES, [*LINES, "more"])]
    for other in others:
        refused: list[BaseException] = []

        def run(other=other, refused=refused):
            try:
                list(other.make())
            except InUseError as error:
                refused.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert f"process {os.getpid()} on" in str(refused[0])
    assert one.read_bytes() == before
    list(making)
    assert {*NAMES} <= contents(tmp_path).keys()


def test_a_list_that_another_run_overtook_is_refused_by_what_is_there(pipe, root, tmp_path):
    """Both looked at an empty folder; whoever comes second must not take the images of the first for its own."""
    first = Dataset(pipe, read(root, ["a fox", "a hen"]), tmp_path, seed=1)
    second = Dataset(pipe, read(root, ["an owl", "a hen", "a cat"]), tmp_path, seed=1)
    same = Dataset(pipe, read(root, ["a fox", "a hen"]), tmp_path, seed=1)
    list(first.make())
    made = contents(tmp_path)
    with pytest.raises(RequestError, match=r"000001\.png is of other settings.*--overwrite"):
        list(second.make())
    assert list(same.make()) == []
    assert contents(tmp_path) == made


def test_a_folder_in_use_is_free_after_a_failure(pipe, root, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise BackendError("failed on purpose")

    monkeypatch.setattr(making, "encode_png", fail)
    with pytest.raises(BackendError):
        list(Dataset(pipe, read(root, ["a fox"]), tmp_path, seed=1).make())
    monkeypatch.undo()
    (made,) = Dataset(pipe, read(root, ["a fox"]), tmp_path, seed=1).make()
    assert made.names == ("000001.png",)
    assert not (tmp_path / ".latentrt.lock").exists()
