"""Datasets as people have them, and prompts from templates."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from latentrt.augment.source import label_path, read_source, split_off
from latentrt.augment.templates import Templates, drawn, read_templates
from latentrt.errors import RequestError

ROW = "0 0.5 0.5 0.5 0.5\n"
COMPATIBLE = "YOLO dataset"


def picture(path, size=(32, 24), label=ROW):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (9, 90, 200)).save(path)
    text = label_path(path)
    text.parent.mkdir(parents=True, exist_ok=True)
    if label is not None:
        text.write_text(label)
    return path


def dataset(root, data="train: images/train\nval: images/val\nnames: [cat, dog]\n"):
    for split in ("train", "val"):
        for name in ("a.png", "b.jpg"):
            picture(root / "images" / split / name)
    (root / "data.yaml").write_text(data)
    return root / "data.yaml"


def compatible(what, recognised):
    return pytest.mark.compatibility(kind=COMPATIBLE, what=what, recognised=recognised, outcome="works")


@pytest.mark.parametrize(
    ("data", "splits"),
    [
        pytest.param(
            "train: images/train\nval: images/val\nnames: [cat, dog]",
            {"train": 2, "val": 2},
            marks=compatible("data.yaml with folders of pictures", "train and val without path"),
        ),
        pytest.param(
            "path: .\ntrain: images/train\nvalidation: images/val\nnames: {0: cat, 1: dog}\nnc: 2",
            {"train": 2, "val": 2},
            marks=compatible("data.yaml with path, validation and names by number", "path, validation, names"),
        ),
        pytest.param(
            "train: ../images/train\nval: ../images/val\nnc: 2",
            {"train": 2, "val": 2},
            marks=compatible("data.yaml whose paths begin with ../, as exports of labelling services", "../"),
        ),
        pytest.param(
            "train: [images/train, images/val]\nval: list.txt\ntest: images/val\nnames: [cat, dog]",
            {"train": 4, "val": 1, "test": 2},
            marks=compatible("data.yaml with lists of folders and of pictures", "a list, a .txt"),
        ),
    ],
)
def test_pictures_and_labels_are_found_where_the_loader_finds_them(data, splits, tmp_path):
    (tmp_path / "list.txt").write_text("./images/val/a.png\n")
    source = read_source(dataset(tmp_path, data))
    assert not source.bad
    assert Counter(each.split for each in source.pictures) == splits
    assert all(len(each.labels) == 1 and each.size == (32, 24) for each in source.pictures)
    assert len({each.name for each in source.pictures}) == len(source.pictures)
    assert source.form.task == "detect" and len(source.form.names) == 2


@pytest.mark.parametrize(
    ("label", "extra", "task"),
    [
        (ROW, "", "detect"),
        ("0 0.1 0.1 0.9 0.1 0.5 0.8\n0 0.1 0.1 0.9 0.1 0.5 0.8 0.2 0.2\n", "", "segment"),
        ("0 0.5 0.5 0.5 0.5 0.4 0.4 2\n", "\nkpt_shape: [1, 3]\nflip_idx: [0]", "pose"),
    ],
)
def test_the_task_is_told_from_the_labels(label, extra, task, tmp_path):
    path = dataset(tmp_path, f"train: images/train\nval: images/val\nnames: [cat]{extra}\n")
    for file in tmp_path.glob("labels/*/*.txt"):
        file.write_text(label)
    source = read_source(path)
    assert source.form.task == task and not source.bad
    assert dict(source.extra) == ({} if task != "pose" else {"kpt_shape": [1, 3], "flip_idx": [0]})


def test_nine_columns_are_oriented_boxes_only_if_someone_says_so(tmp_path):
    path = dataset(tmp_path)
    for file in tmp_path.glob("labels/*/*.txt"):
        file.write_text("0 0.1 0.1 0.9 0.1 0.9 0.8 0.1 0.8\n")
    with pytest.raises(RequestError, match="oriented boxes or polygons"):
        read_source(path)
    assert {len(each.labels[0].outline) for each in read_source(path, task="obb").pictures} == {4}


def test_every_bad_row_and_picture_is_told_and_left_out(tmp_path):
    path = dataset(tmp_path)
    (tmp_path / "labels/train/a.txt").write_text(f"{ROW}5 0.5 0.5 0.1 0.1\n0 0.1 0.1 0.9 0.1 0.5 0.8\n")
    (tmp_path / "images/train/b.jpg").write_bytes(b"no picture")
    picture(tmp_path / "images/val/c.png", size=(9, 30))
    source = read_source(path)
    told = [str(each) for each in source.bad]
    assert "a.txt, line 2: class 5" in told[0] and "a.txt, line 3: 7 columns" in told[1]
    assert "b.jpg: cannot be read" in told[2] and "c.png: 9x30 px" in told[3]
    assert [len(each.labels) for each in source.of("train")] == [1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("train: images/train\nval: nowhere\nnames: [cat]", "nowhere"),
        ("val: images/val\nnames: [cat]", "no pictures for train"),
        ("train: images/train\nval: images/val", "no names"),
        ("train: images/train\nval: images/val\nnames: {1: cat}", "0, 1, 2"),
        ("train: images/train\nval: images/val\nnames: [cat]\nnc: 3", "nc is 3"),
        ("train: 7\nval: images/val\nnames: [cat]", "train of"),
        ("names: [cat]\nkpt_shape: [1, 4]\ntrain: images/train", "kpt_shape"),
        ("train: [images/train", "cannot be read"),
        ("just words", "no keys"),
    ],
)
def test_a_data_yaml_that_cannot_be_used_is_refused(data, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        read_source(dataset(tmp_path, data))


@compatible("a classification: a folder a class", "train/CLASS/*.jpg")
def test_folders_are_classes(tmp_path):
    for inner in ("train/cat", "train/dog", "val/cat"):
        picture(tmp_path / inner / "a.png", label=None)
    source = read_source(tmp_path)
    assert source.form.task == "classify" and source.form.names == ("cat", "dog")
    assert [(each.split, each.folder) for each in source.pictures] == [
        ("train", "cat"),
        ("train", "dog"),
        ("val", "cat"),
    ]
    with pytest.raises(RequestError, match="no folder train"):
        read_source(tmp_path / "train" / "cat")


def test_the_last_folder_images_is_labels():
    from pathlib import Path

    assert label_path(Path("/data/images/x/images/a.b.jpg")) == Path("/data/images/x/labels/a.b.txt")
    assert label_path(Path("/data/pictures/a.jpg")) == Path("/data/pictures/a.txt")


def test_an_upright_size_is_that_of_exif(tmp_path):
    path = dataset(tmp_path)
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[274] = 6
    image.save(tmp_path / "images/train/b.jpg", exif=exif)
    assert [each.size for each in read_source(path).of("train")] == [(32, 24), (20, 40)]


def test_validation_is_split_off_by_pictures(tmp_path):
    source = read_source(dataset(tmp_path, "train: [images/train, images/val]\nnames: [cat]"))
    split = split_off(source, 0.5, order=[0.9, 0.1, 0.2, 0.8])
    assert [each.split for each in split.pictures] == ["train", "val", "val", "train"]
    with pytest.raises(RequestError, match="for validation"):
        split_off(source, 1.0, order=[0, 1, 2, 3])


def rng(seed=0):
    return np.random.default_rng(seed)


def test_alternatives_are_drawn_by_their_weights():
    texts = Counter(drawn("a {red|{dark |light }blue|2::green} $name", rng(seed), name="cat") for seed in range(400))
    assert set(texts) == {"a red cat", "a dark blue cat", "a light blue cat", "a green cat"}
    assert 160 < texts["a green cat"] < 240
    assert drawn(r"a \{b\|c\} $other", rng()) == "a {b|c} $other"
    for wrong in ("a {b|c", "a } b", "a | b", "{0::a|0::b}"):
        with pytest.raises(RequestError):
            drawn(wrong, rng())


def test_templates_speak_of_objects_pictures_and_backgrounds(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text(
        "classes: {cat: [a cat], '*': 'a $name, $weather'}\npicture: $names\nbackground: a street, $weather\n"
        "captions: {a.png: 'my $names'}\nwords: {a.png: {weather: sunny}}\nnegative: blurry\n"
    )
    found = read_templates(path)
    found.check(["cat", "dog"])
    assert found.of_class("cat", rng()) == "a cat" and found.of_class("dog", rng(), file="a.png") == "a dog, sunny"
    assert found.of_picture(["cat", "dog", "cat"], rng(), file="b.png") == "cat and dog"
    assert found.of_picture(["cat"], rng(), file="a.png") == "my cat"
    assert found.of_background(rng(), file="a.png") == "a street, sunny"
    assert Templates().of_picture(["cat", "dog"], rng()) == "a photo of a cat, a photo of a dog"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clases: {}", "the key 'clases'"),
        ("classes: {cat: 'a {cat'}", "not closed"),
        ("classes: {cat: 7}", "holds 7"),
        ("picture: [1]", "holds"),
        ("words: {a: b}", "words of"),
        ("- a", "no keys"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_file_of_templates_that_cannot_be_used_is_refused(text, message, tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        read_templates(path)


def test_a_class_without_a_template_and_a_template_without_a_class_are_refused():
    with pytest.raises(RequestError, match="no template for dog"):
        Templates(classes={"cat": "a cat"}).check(["cat", "dog"])
    with pytest.raises(RequestError, match="a template for cow"):
        Templates(classes={"cow": "a cow", "*": "a $name"}).check(["cat"])
