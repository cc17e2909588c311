"""The parts of the augmentation study that say what is true: its pictures, its judge, its detector's boxes."""

import numpy as np
import pytest
import torch
import yaml

from benchmarks.augment.detector import Pictures, area_under, average_precision, changed
from benchmarks.augment.judge import judged
from benchmarks.augment.neighbour import fitted
from benchmarks.augment.pictures import write_dataset
from latentrt.augment.labels import Label
from latentrt.augment.scores import Sample, agreement_with
from latentrt.augment.source import Source, read_source
from latentrt.augment.templates import read_templates
from latentrt.images.photo import read_photo


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return read_source(write_dataset(tmp_path_factory.mktemp("shapes"), {"train": 8, "val": 2}, seed=0))


def test_labels_are_those_of_what_is_rendered(source: Source):
    assert not source.bad and [len(source.of(split)) for split in ("train", "val")] == [8, 2]
    pictures = [(read_photo(each.path).rgb, each.labels) for each in source.pictures]
    tally = judged(pictures, source.form.names)
    assert (tally.pictures_true, tally.labels_true) == (10, tally.labels) and not tally.pictures_unlabelled
    folder = source.pictures[0].path.parents[2]
    read_templates(folder / "prompts.yaml").check(
        source.form.names, train=[each.path.name for each in source.of("train")], others=["val000.png", "val001.png"]
    )
    assert yaml.safe_load((folder / "data.yaml").read_text())["names"] == list(source.form.names)


def test_a_label_of_another_class_or_place_is_judged_false(source: Source):
    pixels, (label, *_) = read_photo(source.pictures[0].path).rgb, source.pictures[0].labels
    other = Label((label.category + 1) % 8, label.outline)
    moved = Label(label.category, (label.outline * 0.3).clip(0, 1))
    for wrong in (other, moved):
        tally = judged([(pixels, [wrong])], source.form.names)
        assert not tally.pictures_true and sum(tally.seen_as.values()) == 1
    assert judged([(pixels, [])], source.form.names).pictures_unlabelled == 1


def test_the_detector_that_filters_knows_the_pictures_that_it_was_given(source: Source):
    score = agreement_with(fitted(source.of("train")))
    for each in source.of("train"):
        pixels = read_photo(each.path).rgb
        assert score(Sample(pixels, "", each.labels, source.form)) == 1
        swapped = tuple(Label((label.category + 1) % 8, label.outline) for label in each.labels)
        assert score(Sample(pixels, "", swapped, source.form)) == 0


def test_boxes_go_with_the_pixels_when_a_picture_is_changed():
    pixels = torch.zeros((1, 3, 128, 128), dtype=torch.uint8)
    pixels[:, :, 40:70, 50:100] = 255
    pictures = Pictures(pixels, [torch.tensor([2])], [torch.tensor([[50.0, 40, 100, 70]])])
    rng = np.random.default_rng(0)
    for _ in range(8):
        x, [(classes, boxes)] = changed(pictures, [0], rng)
        rows, columns = np.nonzero(x[0].numpy().max(axis=0) > 0.3)
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert classes.tolist() == [2] and boxes[0].tolist() == pytest.approx(found, abs=1.5)


def test_precision_is_averaged_over_recall():
    assert area_under(np.array([1.0, 1, 1]), 3) == 1
    assert area_under(np.array([1.0, 0, 1]), 2) == pytest.approx((1 + 2 / 3) / 2)
    assert area_under(np.array([0.0, 1]), 1) == 0.5
    assert area_under(np.array([1.0]), 4) == 0.25
    assert area_under(np.array([]), 4) == 0


class Exact(torch.nn.Module):
    """Sees one object of class 1 in the cell at (24, 24), whatever it is shown."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, sides = torch.full((len(x), 2, 4, 4), -9.0), torch.full((len(x), 4, 4, 4), 0.1)
        scores[:, 1, 1, 1] = 9
        sides[:, :, 1, 1] = torch.tensor([0.5, 1, 1.5, 1])
        return scores, sides


def test_detections_are_measured_by_class_and_box():
    pixels = torch.zeros((2, 3, 64, 64), dtype=torch.uint8)
    box = torch.tensor([[16.0, 8, 48, 40]])
    for category, there, expected in ((1, box, (0.5, 0.5)), (0, box, (0, 0)), (1, box + 16, (0, 0))):
        pictures = Pictures(pixels, [torch.tensor([category])] * 2, [there] * 2)
        assert average_precision(Exact(), pictures, 2) == pytest.approx(expected)  # one of two classes is there
