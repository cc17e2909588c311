"""A dataset made larger, on the fake pipeline: labels, splits, what survives a kill, filters."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentrt.augment.labels import Form, Label, box_outline
from latentrt.augment.modes import MODES, Mode
from latentrt.augment.run import augment, refilter
from latentrt.augment.scores import Sample, agreement_with, contrast, loaded, perceptual_hash
from latentrt.augment.settings import Augmentation
from latentrt.augment.source import Source, read_source, split_off
from latentrt.augment.templates import Templates
from latentrt.augment.variants import Copies, copies_of
from latentrt.errors import BackendError, InUseError, RequestError
from latentrt.images.photo import read_photo
from latentrt.request import Request
from latentrt.testing import fake_pipeline

NAMES = ("cat", "dog")
ROWS = {  # by task: two objects, of which one stands at the border
    "detect": "0 0.3 0.3 0.25 0.25\n1 0.875 0.8 0.25 0.25\n",
    "segment": "0 0.2 0.2 0.4 0.2 0.3 0.45\n1 0.75 0.7 1 0.7 1 0.9\n",
    "obb": "0 0.3 0.2 0.4 0.3 0.3 0.4 0.2 0.3\n1 0.75 0.7 1 0.7 1 0.9 0.75 0.9\n",
    "pose": "0 0.3 0.3 0.25 0.25 0.3 0.3 2\n1 0.875 0.8 0.25 0.25 0.99 0.8 2\n",
}
ALL = ("image", "background", "object", "swap", "insert", "outpaint")


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return fake_pipeline(tmp_path_factory.mktemp("bundle"))


def noisy(seed, size=(80, 64)):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def dataset(root: Path, task="detect", pictures=2) -> Source:
    for number, (split, count) in enumerate((("train", pictures), ("val", 1), ("test", 1))):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.fromarray(noisy(100 * number + index)).save(root / "images" / split / f"{split}{index}.png")
            (root / "labels" / split / f"{split}{index}.txt").write_text(ROWS[task])
    shape = "\nkpt_shape: [1, 3]" if task == "pose" else ""
    text = f"train: images/train\nval: images/val\ntest: images/test\nnames: [cat, dog]{shape}\n"
    (root / "data.yaml").write_text(text)
    return read_source(root / "data.yaml", task=task)


def settings(*modes, least=None, scores=None, **options):
    return Augmentation(
        copies=Copies(modes=tuple(map(Mode.read, modes)), **options),
        request=Request("", steps=3, guidance=1),
        least={"distance": 0} if least is None else least,
        scores=scores or {},
        dilate=2,
    )


def rows(output):
    with (output / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("task", ROWS)
def test_every_mode_that_a_task_allows_leaves_labels_that_the_dataset_can_be_read_with(task, pipe, tmp_path):
    source = dataset(tmp_path / "in", task)
    modes = [name for name in ALL if task in MODES[name].tasks]
    summary = augment(pipe, source, tmp_path / "out", settings(*modes, copies=len(modes)))
    assert summary.kept == summary.made == summary.new == 2 * len(modes) - sum(summary.skipped.values())
    again = read_source(tmp_path / "out" / "data.yaml", task=task)
    assert not again.bad and again.form.names == NAMES
    assert len(again.of("train")) == 2 + summary.kept
    for real in [*source.of("val"), *source.of("test")]:
        there = tmp_path / "out" / "images" / real.split / f"{real.name}.png"
        assert there.read_bytes() == real.path.read_bytes()
    assert (len(again.of("val")), len(again.of("test"))) == (1, 1)
    for name in ALL:
        if name not in modes:
            with pytest.raises(RequestError, match=f"mode {name} for the task {task}"):
                augment(pipe, source, tmp_path / "other", settings(name))
    assert not (tmp_path / "other").exists()


def test_objects_stay_to_the_bit_when_the_background_is_repainted(pipe, tmp_path):
    source = dataset(tmp_path / "in")
    augment(pipe, source, tmp_path / "out", settings("background"))
    for picture in source.of("train"):
        before = read_photo(picture.path).rgb
        after = read_photo(tmp_path / "out/images/train" / f"{picture.name}-background-1.png").rgb
        for label in picture.labels:
            left, top, right, bottom = (round(v * s) for v, s in zip(label.bounds, (80, 64) * 2, strict=True))
            assert np.array_equal(before[top:bottom, left:right], after[top:bottom, left:right])
        assert (before != after).mean() > 0.2


def test_repainted_objects_change_within_their_boxes_alone(pipe, tmp_path):
    source = dataset(tmp_path / "in")
    augment(pipe, source, tmp_path / "out", settings("object", "swap", "insert", copies=3))
    for picture in source.of("train"):
        before = read_photo(picture.path).rgb
        for mode, copy in (("object", 1), ("swap", 2), ("insert", 3)):
            path = tmp_path / "out/generated" / f"{picture.name}-{mode}-{copy}.png"
            about = json.loads(path.with_suffix(".json").read_text())
            changed = [Form("detect", NAMES).read(about["labels"][index]) for index in about["changed"]]
            mask = np.zeros((64, 80), bool)
            for label in changed:
                left, top, right, bottom = label.bounds
                x, y = (max(0, int(value) - 3) for value in (left * 80, top * 64))
                mask[y : int(bottom * 64) + 4, x : int(right * 80) + 4] = True
            differs = (read_photo(path).rgb != before).any(axis=2)
            assert differs.any() and not (differs & ~mask).any()
            classes = [int(row.split()[0]) for row in about["labels"]]
            assert classes[:2] == [0, 1] if mode != "swap" else sum(classes) in (0, 2)
            assert len(classes) == (3 if mode == "insert" else 2)


def test_labels_move_with_the_picture_when_it_is_continued_or_fitted(pipe, tmp_path):
    source = dataset(tmp_path / "in")
    augment(pipe, source, tmp_path / "out", settings("outpaint", "image", copies=2, size=(96, 96), fit="letterbox"))
    for path in sorted((tmp_path / "out/generated").glob("*.json")):
        if path.name == "bulk.json":
            continue
        about = json.loads(path.read_text())
        made = read_photo(path.with_suffix(".png")).rgb
        size = 120 if about["mode"] == "outpaint" else 96
        assert made.shape == (size, size, 3)
        first = Form("detect", NAMES).read(about["labels"][0])
        width, height = first.bounds[2] - first.bounds[0], first.bounds[3] - first.bounds[1]
        assert width * size == pytest.approx(0.25 * 96, abs=1e-3) and height * size == pytest.approx(
            0.25 * 77, abs=1e-3
        )


def test_a_killed_run_goes_on_and_gives_what_an_uninterrupted_one_gives(pipe, tmp_path):
    source, plan = dataset(tmp_path / "in"), settings("image", "swap", copies=2, seed=7)

    def kill(what, done, total):
        raise Killed

    with pytest.raises(Killed):
        augment(pipe, source, tmp_path / "out", plan, batch=1, progress=kill)
    assert not (tmp_path / "out" / "data.yaml").exists()
    assert augment(pipe, source, tmp_path / "out", plan).new == 3
    assert augment(pipe, source, tmp_path / "out", plan).new == 0
    augment(pipe, source, tmp_path / "whole", plan)
    apart = {Path(each) for each in ("augment.json", "report.html", "generated/bulk.json")}
    one, other = contents(tmp_path / "out"), contents(tmp_path / "whole")
    pictures = {path for path in one if path.suffix in (".png", ".txt", ".csv", ".yaml")}
    assert one.keys() == other.keys() and len(pictures - apart) > 10
    assert all(one[path] == other[path] for path in pictures - apart)


def test_more_copies_keep_the_pictures_that_are_there_and_other_settings_are_refused(pipe, tmp_path):
    source = dataset(tmp_path / "in")
    augment(pipe, source, tmp_path / "out", settings("image"))
    assert augment(pipe, source, tmp_path / "out", settings("image", copies=2)).new == 2
    with pytest.raises(RequestError, match="of other settings"):
        augment(pipe, source, tmp_path / "out", settings("image", seed=1))
    with pytest.raises(RequestError, match="of other settings"):
        augment(pipe, source, tmp_path / "out", settings("image:0.9"))
    summary = augment(pipe, source, tmp_path / "out", settings("image", seed=1), overwrite=True)
    assert (summary.new, summary.made) == (2, 2)
    assert len(read_source(tmp_path / "out/data.yaml").of("train")) == 4


def test_thresholds_are_put_to_scores_without_making_anything_again(pipe, tmp_path):
    source, calls = dataset(tmp_path / "in"), []

    def first(sample: Sample) -> float:
        calls.append(sample.prompt)
        return len(calls)

    out = tmp_path / "out"
    augment(pipe, source, out, settings("image", copies=2, scores={"order": first}))
    assert [row["order"] for row in rows(out)] == ["2", "3", "4", "5"]  # the first call tries it on a real picture
    before = contents(out / "generated")
    summary = refilter(out, {"order": 4, "distance": 0})
    assert (summary.kept, summary.made, summary.dropped) == (2, 4, {"order": 2})
    assert [row["kept"] for row in rows(out)] == ["0", "0", "1", "1"]
    assert len(read_source(out / "data.yaml").of("train")) == 4 == len(list((out / "labels/train").iterdir()))
    assert refilter(out, {"order": 1, "distance": 0}).kept == 4
    assert len(read_source(out / "data.yaml").of("train")) == 6
    assert contents(out / "generated") == before and len(calls) == 5
    assert refilter(out, {}, {"order": lambda sample: 9}).dropped.get("order") is None
    assert {row["order"] for row in rows(out)} == {"9"}
    with pytest.raises(RequestError, match="a least taste"):
        refilter(out, {"taste": 1})


def test_duplicates_blank_and_broken_pictures_score_low(pipe, tmp_path):
    source = dataset(tmp_path / "in", pictures=3)
    out = tmp_path / "out"
    augment(pipe, source, out, settings("image"))
    shutil.copy(source.of("train")[0].path, out / "generated/train0-image-1.png")
    (out / "generated/train1-image-1.png").write_bytes(b"broken")
    Image.new("RGB", (80, 64), (9, 9, 9)).save(out / "generated/train2-image-1.png")
    for name in ("train0", "train1", "train2"):
        path = out / "generated" / f"{name}-image-1.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": name}))
    summary = refilter(out, {})
    assert summary.kept == 0 and summary.dropped["contrast"] == 2 and summary.dropped["distance"] >= 1
    assert next(row["distance"] for row in rows(out)) == "0"


def test_alike_pictures_have_alike_hashes():
    image = np.asarray(Image.fromarray(noisy(0, (8, 8))).resize((96, 96)))
    lighter = (image * 0.9 + 12).astype(np.uint8)
    assert (perceptual_hash(image) ^ perceptual_hash(lighter)).bit_count() <= 4
    assert (perceptual_hash(image) ^ perceptual_hash(noisy(9, (96, 96)))).bit_count() > 12


def test_agreement_is_the_share_that_a_detector_meets():
    labels = (Label(0, box_outline((0, 0, 0.5, 0.5))), Label(1, box_outline((0.5, 0.5, 1, 1))))
    sample = Sample(noisy(0, (100, 100)), "", labels, Form("detect", NAMES))
    right, other = ("cat", 0, 0, 50, 50, 0.9), (1, 50, 50, 100, 100)
    for found, expected in (
        ([right, other], 1),
        ([right], 2 / 3),
        ([right, right], 0.5),
        ([("dog", 0, 0, 50, 50)], 0),
        ([("cow", 0, 0, 50, 50), right, other], 0.8),
        ([(0, 30, 30, 80, 80)], 0),
        ([], 0),
    ):
        assert agreement_with(lambda pixels, found=found: found)(sample) == pytest.approx(expected)
    inserted = Sample(sample.pixels, "", labels, sample.form, changed=(1,))
    assert agreement_with(lambda pixels: [right])(inserted) == 0
    assert agreement_with(lambda pixels: [other])(inserted) == pytest.approx(2 / 3)
    of_class = Sample(sample.pixels, "", (), Form("classify", NAMES), folder="cat")
    assert agreement_with(lambda pixels: [right])(of_class) == 1
    assert agreement_with(lambda pixels: [right, other])(of_class) == pytest.approx(2 / 3)
    assert agreement_with(lambda pixels: [other])(of_class) == agreement_with(lambda pixels: [])(of_class) == 0
    empty = Sample(sample.pixels, "", (), sample.form)
    assert agreement_with(lambda pixels: [])(empty) == 1
    assert contrast(empty) > 30
    with pytest.raises(RequestError, match="the detector found"):
        agreement_with(lambda pixels: ["cat"])(sample)


def test_rare_classes_are_copied_more_often(tmp_path):
    source = dataset(tmp_path / "in", pictures=4)
    for index in range(3):
        (tmp_path / f"in/labels/train/train{index}.txt").write_text("0 0.3 0.3 0.25 0.25\n")
    source = read_source(tmp_path / "in/data.yaml")
    for balance, expected in ((0, [2, 2, 2, 2]), (1, [2, 2, 2, 8]), (0.5, [2, 2, 2, 4])):
        counts = copies_of(source, Copies(modes=(Mode.read("image"),), copies=2, balance=balance))
        assert list(counts.values()) == expected
    assert copies_of(source, Copies(modes=(Mode.read("image"),), copies=2, balance=1, most_copies=5))["train3"] == 5


def test_pictures_without_objects_have_empty_labels(pipe, tmp_path):
    source, out = dataset(tmp_path / "in"), tmp_path / "out"
    plan = Augmentation(
        copies=Copies(modes=(Mode.read("image"),), copies=0, empty=1.0),
        templates=Templates(background="an empty {street|meadow}"),
        request=Request("", steps=3),
        least={"distance": 0},
    )
    assert augment(pipe, source, out, plan).kept == 2
    assert (out / "labels/train/empty-00001.txt").read_text() == ""
    assert "an empty" in json.loads((out / "images/train/empty-00001.json").read_text())["prompt"]


def test_classifications_are_made_of_pictures_or_of_words_alone(pipe, tmp_path):
    for inner in ("train/cat", "train/dog", "val/cat"):
        (tmp_path / "in" / inner).mkdir(parents=True)
        Image.fromarray(noisy(len(inner))).save(tmp_path / "in" / inner / f"{inner[-3:]}.png")
    source, out = read_source(tmp_path / "in"), tmp_path / "out"
    assert augment(pipe, source, out, settings("image", "prompts", copies=2)).kept == 4
    again = read_source(out)
    assert sorted((each.split, each.folder) for each in again.pictures) == [
        *[("train", "cat")] * 3,
        *[("train", "dog")] * 3,
        ("val", "cat"),
    ]
    assert refilter(out, {"contrast": 255}).kept == 0 and len(read_source(out).of("train")) == 2
    alone = Source(Form("classify", NAMES), (), (), {})
    assert augment(pipe, alone, tmp_path / "alone", settings("prompts", copies=3)).kept == 6
    assert len(list((tmp_path / "alone/train/dog").glob("*.png"))) == 3
    for name in ("..", "a/b", "a\\b", "c" * 200, ""):
        wrong = Source(Form("classify", (name, "dog")), (), (), {})
        with pytest.raises(RequestError, match="a class called"):
            augment(pipe, wrong, tmp_path / "wrong", settings("prompts"))
        assert not (tmp_path / "wrong").exists()


def test_what_a_mode_cannot_do_is_counted_and_what_the_bundle_lacks_is_refused(pipe, tmp_path):
    source = dataset(tmp_path / "in", pictures=1)
    (tmp_path / "in/labels/train/train0.txt").write_text("0 0.5 0.5 1 1\n")
    source = read_source(tmp_path / "in/data.yaml")
    summary = augment(pipe, source, tmp_path / "out", settings("background", "insert", "image", copies=3))
    assert summary.made == 1 and summary.skipped == {
        "background: hardly any background": 1,
        "insert: no room for an object": 1,
    }
    with pytest.raises(RequestError, match="a bundle with a ControlNet"):
        augment(pipe, source, tmp_path / "edges", settings("edges"))
    with pytest.raises(RequestError, match="no template for dog"):
        templates = Templates(classes={"cat": "a cat"})
        augment(pipe, source, tmp_path / "edges", Augmentation(copies=settings("image").copies, templates=templates))
    assert not (tmp_path / "edges").exists()
    for text in ("paint", "image:high", "image:0", "image:2"):
        with pytest.raises(RequestError):
            Mode.read(text)


def test_one_process_at_a_time_fills_a_folder_and_a_failure_leaves_what_was_made(pipe, tmp_path, monkeypatch):
    source, out = dataset(tmp_path / "in"), tmp_path / "out"
    run, seen = pipe.run, []

    def once(*requests):
        if seen:
            raise BackendError("out of memory")
        seen.append(requests)
        return run(*requests)

    monkeypatch.setattr(pipe, "run", once)
    with pytest.raises(BackendError):
        augment(pipe, source, out, settings("image"), batch=1)
    monkeypatch.undo()
    assert len(list((out / "generated").glob("*.png"))) == 1
    import threading

    from latentrt.concurrency.locks import lock_folder

    failed = []

    def other():
        try:
            refilter(out, {})
        except InUseError as error:
            failed.append(error)

    with lock_folder(out):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert failed
    assert augment(pipe, source, out, settings("image")).new == 1


def test_validation_that_is_split_off_is_never_copied(pipe, tmp_path):
    source = split_off(dataset(tmp_path / "in", pictures=4), 0.5, order=[3, 1, 2, 0])
    augment(pipe, source, tmp_path / "out", settings("image"))
    held = {each.name for each in source.of("val")}
    made = [json.loads(path.read_text()) for path in (tmp_path / "out/images/train").glob("*.json")]
    assert len(made) == 2 and not {Path(each["source"]).stem for each in made} & held


def test_functions_are_loaded_by_file_and_by_module(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Box:\n    left: int\n"
        "def score(sample):\n    return Box(1).left\n"
    )
    (tmp_path / "wrong.py").write_text("1 / 0\n")
    assert loaded(f"{tmp_path / 'mine.py'}:score")(None) == 1
    assert loaded("math:sqrt")(4) == 2
    places = ("none.py", "wrong.py")
    for spec in ("mine", "nowhere:f", "math:none", "math:pi", *(f"{tmp_path / place}:f" for place in places)):
        with pytest.raises(RequestError):
            loaded(spec)


def test_scores_and_thresholds_that_cannot_work_are_refused_before_anything_is_made(pipe, tmp_path):
    source, out = dataset(tmp_path / "in"), tmp_path / "out"

    def fails(sample):
        raise KeyError("weights")

    for wrong, message in (
        ({"least": {"taste": 1}}, "a least taste"),
        ({"scores": {"taste": fails}}, "the score taste failed on .*train0.png.*KeyError"),
        ({"scores": {"taste": lambda sample: "good"}}, "the score taste is 'good'"),
        ({"scores": {"agreement": agreement_with(lambda pixels: [7])}}, "the detector found 7"),
    ):
        with pytest.raises(RequestError, match=message):
            augment(pipe, source, out, settings("image", **wrong))
        assert not out.exists()
    for wrong in (
        {"scores": {"kept": contrast}},
        {"scores": {"distance": contrast}},
        {"least": {"contrast": float("nan")}},
    ):
        with pytest.raises(RequestError):
            settings("image", **wrong)


def test_prompts_that_cannot_be_filled_in_are_refused_before_anything_is_made(pipe, tmp_path):
    source, out = dataset(tmp_path / "in"), tmp_path / "out"
    for templates, message in (
        ({"classes": {"*": "a $name, $weather"}}, r"class \* says \$weather.*train0.png"),
        ({"picture": "{a street|$ground}"}, r"picture says \$ground"),
        ({"background": "a $name"}, r"background says \$name"),
        ({"background": "$ground", "words": {"train0.png": {"ground": "a field"}}}, r"\$ground.*train1.png"),
        ({"captions": {"train1.png": "$who"}}, r"caption says \$who"),
        ({"captions": {"train9.png": "a cat"}}, "captions or words of train9.png"),
        ({"words": {"train9.png": {}}}, "captions or words of train9.png"),
    ):
        with pytest.raises(RequestError, match=message):
            plan = Augmentation(copies=settings("image").copies, templates=Templates(**templates))
            augment(pipe, source, out, plan)
        assert not out.exists()
    words = {"train0.png": {"ground": "a field"}, "*": {"ground": "a street"}}
    plan = Augmentation(
        copies=settings("background").copies,
        templates=Templates(background="$ground", words=words),
        request=Request("", steps=2),
        least={"distance": 0},
    )
    augment(pipe, source, out, plan)
    prompts = {path.stem[:6]: json.loads(path.read_text())["prompt"] for path in (out / "images/train").glob("*.json")}
    assert prompts == {"train0": "a field", "train1": "a street"}


def test_nothing_is_made_of_a_training_picture_that_is_in_val_too(pipe, tmp_path):
    dataset(tmp_path / "in")
    shutil.copy(tmp_path / "in/images/val/val0.png", tmp_path / "in/images/train/train1.png")
    source = read_source(tmp_path / "in/data.yaml")
    summary = augment(pipe, source, tmp_path / "out", settings("image", copies=3))
    assert summary.made == 3 and summary.skipped == {"in val or test as well": 3}
    assert all(path.name.startswith("train0") for path in (tmp_path / "out/generated").glob("*.png"))


def test_an_object_is_inserted_wherever_there_is_room(pipe, tmp_path):
    """One corner alone is free, and just large enough."""
    dataset(tmp_path / "in", pictures=1)
    (tmp_path / "in/labels/train/train0.txt").write_text("0 0.5 0.35 1 0.7\n0 0.36 0.5 0.72 1\n1 0.1 0.1 0.15 0.15\n")
    source, out = read_source(tmp_path / "in/data.yaml"), tmp_path / "out"
    assert augment(pipe, source, out, settings("insert", copies=4)).made == 4
    for path in out.glob("generated/train0*.json"):
        left, top, *_ = Form("detect", NAMES).read(json.loads(path.read_text())["labels"][-1]).bounds
        assert left > 0.72 and top > 0.7
    nothing = Source(source.form, tuple(replace(each, labels=()) for each in source.pictures), (), {})
    assert augment(pipe, nothing, tmp_path / "none", settings("insert")).skipped == {
        "insert: no object whose size could be taken": 1
    }


def test_a_new_object_begins_with_a_real_one_of_its_class_within_the_mask(pipe, tmp_path):
    source, out = dataset(tmp_path / "in"), tmp_path / "out"
    augment(pipe, source, out, settings("swap", "insert", copies=2))
    for path in sorted((out / "parts").glob("*-start.png")):
        name = path.stem.removesuffix("-start")
        about = json.loads((out / f"generated/{name}.json").read_text())
        before, start = read_photo(about["source"]).rgb, read_photo(path).rgb
        mask = read_photo(path.with_name(f"{name}.png")).rgb[..., 0] > 0
        differs = (before != start).any(axis=2)
        assert differs.any() and not (differs & ~mask).any()
        left, top, right, bottom = Form("detect", NAMES).read(about["labels"][about["changed"][0]]).bounds
        assert differs.sum() > 0.8 * (right - left) * 80 * (bottom - top) * 64
    assert len(list((out / "parts").glob("*-start.png"))) == 4
