"""`latentrt augment`: a dataset for detectors from a bundle, and what is refused before anything is made."""

import json

import numpy as np
import pytest
from PIL import Image

from latentrt.images.edges import canny

QUICK = ("--steps", "2", "--guidance", "1", "--backend", "onnxruntime", "--json")


@pytest.fixture
def data(tmp_path):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / "in" / kind / split).mkdir(parents=True)
        image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
        image = image if split == "train" else image.rotate(90)
        image.save(tmp_path / f"in/images/{split}/a.png")
        (tmp_path / f"in/labels/{split}/a.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    path = tmp_path / "in/data.yaml"
    path.write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    return path


def test_a_dataset_becomes_larger_and_is_filtered_again(cli, tiny_bundle, data, tmp_path):
    out = tmp_path / "out"
    first = cli(
        "augment", tiny_bundle, "--yolo", data, "-o", out, "--mode", "background", *QUICK, "--least", "distance=0"
    )
    assert first.code == 0, first.err
    assert {key: first.document[key] for key in ("real", "made", "new", "kept")} == {
        "real": 1,
        "made": 1,
        "new": 1,
        "kept": 1,
    }
    assert (out / "labels/train/a-background-1.txt").read_text() == "0 0.500000 0.500000 0.250000 0.250000\n"
    again = cli("augment", "-o", out, "--least", "contrast=300", "--json")
    assert again.code == 0 and again.document["kept"] == 0 and again.document["new"] == 0
    assert not (out / "images/train/a-background-1.png").exists()
    assert "<h1>" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no --yolo"),
        (("--yolo", "nowhere.yaml"), "no dataset at nowhere.yaml"),
        (("--mode", "paint"), "mode 'paint'"),
        (("--mode", "edges"), "a bundle with a ControlNet"),
        (("--task", "pose"), "task pose"),
        (("--val", "0.5"), "the dataset has val"),
        (("--empty", "0.5"), "--empty without a template"),
        (("--least", "contrast"), "SCORE=VALUE"),
        (("--least", "taste=1"), "a least taste"),
        (("--score", "hash=math:sqrt"), "a score called hash"),
        (("--score", "root=math:sqrt"), "the score root failed"),
        (("--detector", "nowhere.py:f"), "cannot be loaded"),
        (("--copies", "-1"), "copies is -1"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is(options, message, cli, tiny_bundle, data, tmp_path):
    given = () if options in ((), ("--yolo", "nowhere.yaml")) else ("--yolo", data)
    outcome = cli("augment", tiny_bundle, *given, "-o", tmp_path / "out", *options, *QUICK)
    assert outcome.code == 2 and message in outcome.err, outcome.err
    assert not (tmp_path / "out").exists()


def test_bad_labels_are_told_by_file_and_line(cli, tiny_bundle, data, tmp_path):
    (data.parent / "labels/train/a.txt").write_text("0 0.5 0.5 0.25 0.25\n3 0.5 0.5 0.1 0.1\n")
    outcome = cli("augment", tiny_bundle, "--yolo", data, "-o", tmp_path / "out", *QUICK)
    assert outcome.code == 2 and "a.txt, line 2: class 3" in outcome.err
    assert not (tmp_path / "out").exists()


def test_edges_lead_pictures_whose_labels_are_copied(cli, controlled_bundle, data, tmp_path):
    common = ("augment", controlled_bundle, "--yolo", data, "--least", "distance=0", *QUICK)
    unsaid = cli(*common, "-o", tmp_path / "out", "--mode", "edges")
    assert unsaid.code == 2 and "which ControlNet reads edges is not said" in unsaid.err
    assert not (tmp_path / "out").exists()
    for name, options in (("led", ("--mode", "edges", "--control", "random")), ("plain", ("--mode", "image:1"))):
        made = cli(*common, "-o", tmp_path / name, *options)
        assert made.code == 0 and made.document["kept"] == 1, made.err
    led = tmp_path / "led"
    assert (led / "labels/train/a-edges-1.txt").read_text() == "0 0.500000 0.500000 0.250000 0.250000\n"
    about = json.loads((led / "images/train/a-edges-1.json").read_text())
    assert about["mode"] == "edges" and "random" in json.dumps(about["request"])
    source, edges = data.parent / "images/train/a.png", led / "parts/a-edges-1.png"
    assert np.array_equal(np.asarray(Image.open(edges).convert("RGB")), canny(str(source)))
    seen = [
        np.asarray(Image.open(tmp_path / path))
        for path in ("led/generated/a-edges-1.png", "plain/generated/a-image-1.png")
    ]
    assert seen[0].shape == seen[1].shape == (64, 64, 3) and not np.array_equal(*seen)
