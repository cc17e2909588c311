"""Datasets in shards, and in storages that fsspec reaches: the same images whichever way, resumed after a kill."""

import io
import json
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
import webdataset
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet

from latentrt.datasets import store as stores
from latentrt.datasets.dataset import Dataset
from latentrt.datasets.request_file import read_lines
from latentrt.datasets.shards import FORMS
from latentrt.datasets.store import LocalStore, open_store
from latentrt.datasets.target import Layout
from latentrt.errors import BackendError, EnvironmentLacks, RequestError
from latentrt.files.atomic import write_whole, written_beside
from latentrt.request import Request
from latentrt.testing import fake_pipeline

LINES = [
    "a fox",
    '{"prompt": "a hen", "images": 2, "guidance": 1, "seed": 18446744073709551614}',
    '{"prompt": "an \u2028 owl", "file_name": "birds/one.two.png", "metadata": {"class": "owl"}}',
    "a cat",
]
NAMES = ["000001.png", "000002-0.png", "000002-1.png", "birds/one.two.png", "000004.png"]
LAYOUTS = {None: Layout(), **{name: Layout(form, shard=2) for name, form in FORMS.items()}}


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return fake_pipeline(tmp_path_factory.mktemp("shards"))


def run(pipe, folder, form, texts=LINES, **options):
    lines, bad = read_lines(texts, defaults=Request("", steps=2), root=Path())
    assert not bad
    dataset = Dataset(pipe, lines, folder, seed=1, layout=LAYOUTS[form], **options)
    return [name for part in dataset.make(batch=2) for name in part.names]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    """What one run makes in each form."""
    folders = {form: tmp_path_factory.mktemp("whole") for form in LAYOUTS}
    for form, folder in folders.items():
        assert sorted(run(pipe, folder, form)) == sorted(NAMES)
    return {form: contents(folder) for form, folder in folders.items()}


def test_parquet_has_the_files_of_an_image_folder(whole):
    assert whole["parquet"].keys() == {"bulk.json", *(f"images-00000{n}.parquet" for n in range(3))}
    rows = []
    for name, data in sorted(whole["parquet"].items())[1:]:
        table = parquet.read_table(io.BytesIO(data))
        rows += table.to_pylist()
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        assert features["image"] == {"_type": "Image"} and features.keys() == set(table.column_names), name
    assert [row["file_name"] for row in rows] == NAMES
    assert all(
        row["image"] == {"bytes": whole[None][name], "path": name} for row, name in zip(rows, NAMES, strict=True)
    )
    assert [row["metadata"] for row in rows] == whole[None]["metadata.jsonl"].decode().split("\n")[:-1]
    assert [row["seed"] for row in rows[1:3]] == [2**64 - 2, 2**64 - 1]


def test_webdataset_reads_the_files_of_an_image_folder(whole, tmp_path):
    paths = []
    for name, data in sorted(whole["webdataset"].items())[1:]:
        (tmp_path / name).write_bytes(data)
        paths.append(str(tmp_path / name))
    samples = list(webdataset.WebDataset(paths, shardshuffle=False))
    about = [json.loads(sample["json"]) for sample in samples]
    assert [row["file_name"] for row in about] == NAMES
    assert [sample["png"] for sample in samples] == [whole[None][name] for name in NAMES]
    assert [sample["txt"].decode() for sample in samples] == [row["prompt"] for row in about]
    assert about == [json.loads(row) for row in whole[None]["metadata.jsonl"].decode().split("\n")[:-1]]


@pytest.mark.parametrize("form", LAYOUTS)
def test_a_run_that_is_killed_at_any_write_goes_on_to_the_same_bytes(form, pipe, whole, tmp_path, monkeypatch):
    for at in range(14):
        folder, writes = tmp_path / str(at), 0

        def count(at=at):
            nonlocal writes
            writes += 1
            if writes - 1 == at:
                raise Killed

        def dying(path, data, count=count):
            count()
            write_whole(path, data)

        @contextmanager
        def dying_beside(path, count=count):
            with written_beside(path) as beside:
                yield beside
                count()

        with monkeypatch.context() as patch:
            patch.setattr(stores, "write_whole", dying)
            patch.setattr(stores, "written_beside", dying_beside)
            try:
                run(pipe, folder, form)
            except Killed:
                pass
            else:
                break
        run(pipe, folder, form)
        assert contents(folder) == whole[form]
    assert 5 < at < 13  # the kills reached the end


@pytest.mark.parametrize("form", FORMS)
def test_a_kill_between_a_shard_and_its_files_leaves_no_image_twice(form, pipe, whole, tmp_path, monkeypatch):
    removed = []

    def dying(self, name):
        removed.append(name)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        run(pipe, tmp_path, None)
        patch.setattr(LocalStore, "remove", dying)
        patch.setattr(stores, "remove_parts", lambda folder: None)
        run(pipe, tmp_path, form)
    assert removed == ["metadata.jsonl"]
    assert run(pipe, tmp_path, form) == []
    (tmp_path / NAMES[0]).write_bytes(whole[None][NAMES[0]])
    assert run(pipe, tmp_path, form) == []
    assert contents(tmp_path) == whole[form]


def test_a_dataset_moves_from_one_form_to_another(pipe, whole, tmp_path):
    run(pipe, tmp_path, None)
    for form in ("parquet", "webdataset", None, "webdataset", "parquet", None):
        assert run(pipe, tmp_path, form) == []
        assert contents(tmp_path) == whole[form]


@pytest.mark.parametrize("form", FORMS)
def test_more_lines_fill_the_last_shard(form, pipe, whole, tmp_path):
    assert len(run(pipe, tmp_path, form, LINES[:2])) == 3
    assert run(pipe, tmp_path, form) == NAMES[3:]
    assert contents(tmp_path) == whole[form]


@pytest.mark.parametrize("form", FORMS)
def test_other_settings_replace_images_within_shards_only_if_asked(form, pipe, whole, tmp_path):
    run(pipe, tmp_path, form, ["another fox", *LINES[1:]])
    with pytest.raises(RequestError, match=r"000001\.png is of other settings"):
        run(pipe, tmp_path, form)
    assert run(pipe, tmp_path, form, overwrite=True) == NAMES[:1]
    assert contents(tmp_path) == whole[form]


@pytest.mark.parametrize("form", FORMS)
def test_images_that_fail_are_left_out_of_their_shard_until_they_succeed(form, pipe, whole, tmp_path, monkeypatch):
    make = pipe.run

    def failing(*requests):
        if any(request.prompt == "a cat" for request in requests):
            raise BackendError("out of memory")
        return make(*requests)

    lines, _ = read_lines(LINES, defaults=Request("", steps=2), root=Path())
    with monkeypatch.context() as patch:
        patch.setattr(pipe, "run", failing)
        dataset = Dataset(pipe, lines, tmp_path, seed=1, layout=LAYOUTS[form])
        failed = [name for part in dataset.make(batch=1, skip_failures=True) for name in part.failed]
    assert failed == NAMES[4:]
    assert contents(tmp_path).keys() == whole[form].keys() - {f"images-000002{FORMS[form].suffix}"}
    assert run(pipe, tmp_path, form) == NAMES[4:]
    assert contents(tmp_path) == whole[form]


@pytest.mark.parametrize("form", LAYOUTS)
def test_a_shard_of_unknown_origin_or_none_at_all_is_never_touched(form, pipe, whole, tmp_path):
    (tmp_path / "images-000000.tar").write_bytes(whole["webdataset"]["images-000000.tar"])
    with pytest.raises(RequestError, match=r"images-000000\.tar is there, of unknown origin"):
        run(pipe, tmp_path, form, overwrite=True)
    (tmp_path / "images-000000.tar").write_bytes(b"no archive at all" * 99)
    with pytest.raises(RequestError, match=r"images-000000\.tar cannot be read"):
        run(pipe, tmp_path, form, overwrite=True)
    assert [*contents(tmp_path)] == ["images-000000.tar"]


class Plain(MemoryFileSystem):
    """Files in memory as in a storage whose files appear before they are whole."""

    protocol = "plain"
    store: dict = {}  # noqa: RUF012 - as its base has it
    pseudo_dirs = [""]  # noqa: RUF012


@pytest.mark.parametrize("form", LAYOUTS)
@pytest.mark.parametrize("kind", ["memory", "plain"])
def test_a_storage_of_fsspec_gets_the_same_files(kind, form, pipe, whole, tmp_path):
    fsspec.register_implementation("plain", Plain, clobber=True)
    place = f"{kind}://{tmp_path.name}/{form}"
    assert len(run(pipe, place, form, LINES[:2])) == 3
    open_store(place).write(".latentrt-0.tmp", b"half")
    assert run(pipe, place, form) == NAMES[3:]
    fs, root = fsspec.url_to_fs(place)
    assert {path.removeprefix(root).lstrip("/"): fs.cat_file(path) for path in fs.find(root)} == whole[form]
    assert run(pipe, place, form) == []
    with pytest.raises(RequestError, match="of other settings"):
        run(pipe, place, form, ["another fox"])


def test_addresses_that_lead_nowhere_are_refused_before_any_work(pipe, tmp_path):
    with pytest.raises(RequestError, match="nonsense://a/b"):
        run(pipe, "nonsense://a/b", None)
    with pytest.raises(EnvironmentLacks, match="s3://bucket/folder needs a package"):
        run(pipe, "s3://bucket/folder", None)
    assert len(run(pipe, f"file://{tmp_path}/out", None, LINES[:1])) == 1
    assert (tmp_path / "out" / "000001.png").is_file()
