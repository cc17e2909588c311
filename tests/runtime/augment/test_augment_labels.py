"""Rows of labels, and what becomes of them on another picture."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentrt.augment.geometry import FITS, STAY, Move, area, clip, fitted, moved, overlap, placed
from latentrt.augment.labels import BEYOND, Form, Label, box_outline, read_label_file
from latentrt.errors import RequestError

NAMES = ("cat", "dog")
FORMS = {
    "detect": Form("detect", NAMES),
    "segment": Form("segment", NAMES),
    "obb": Form("obb", NAMES),
    "pose": Form("pose", NAMES, (2, 3)),
    "pose2": Form("pose", NAMES, (2, 2)),
}
ROWS = {
    "detect": "1 0.500000 0.250000 0.200000 0.100000",
    "segment": "0 0.100000 0.100000 0.900000 0.200000 0.500000 0.800000",
    "obb": "1 0.300000 0.100000 0.600000 0.400000 0.500000 0.500000 0.200000 0.200000",
    "pose": "0 0.500000 0.500000 0.400000 0.400000 0.400000 0.400000 2.000000 0.000000 0.000000 0.000000",
    "pose2": "0 0.500000 0.500000 0.400000 0.400000 0.400000 0.400000 -0.005000 -0.005000",
}
sides = st.integers(10, 2000)
shares = st.floats(0, 1)
corners = st.tuples(shares, shares)


@pytest.mark.parametrize("kind", FORMS)
def test_a_row_is_written_as_it_was_read(kind):
    form = FORMS[kind]
    assert form.write(form.read(ROWS[kind])) == ROWS[kind]


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("detect", "0 0.5 0.5 0.1", "4 columns"),
        ("detect", "0 0.5 0.5 0.1 0.1 0.9", "6 columns"),
        ("detect", "2 0.5 0.5 0.1 0.1", "class 2"),
        ("detect", "-1 0.5 0.5 0.1 0.1", "class -1"),
        ("detect", "0.5 0.5 0.5 0.1 0.1", "class 0.5"),
        ("detect", "0 64 0.5 0.1 0.1", "a coordinate of 64"),
        ("detect", "0 0.5 0.5 0.1 nan", "not finite"),
        ("detect", "0 0.5 0.5 0.1 wide", "no number"),
        ("detect", "0 0.5 0.5 0 0.1", "a box of 0 by 0.1"),
        ("detect", "0 0.5 0.5 -0.1 0.1", "a box of -0.1"),
        ("segment", "0 0.1 0.1 0.9 0.9", "5 columns"),
        ("segment", "0 0.1 0.1 0.9 0.9 0.5 0.5 0.5", "8 columns"),
        ("segment", "0 0.1 0.1 0.1 0.9 0.1 0.5", "without an area"),
        ("segment", f"0 0.1 0.1 0.9 0.2 0.5 {1 + 2 * BEYOND}", "a coordinate of 1.02"),
        ("obb", "0 0.1 0.1 0.9 0.1 0.9 0.9", "7 columns"),
        ("pose", "0 0.5 0.5 0.1 0.1 0.5 0.5 2", "8 columns"),
        ("pose", "0 0.5 0.5 0.1 0.1 0.5 0.5 3 0.5 0.5 2", "a visibility"),
        ("pose", "0 0.5 0.5 0.1 0.1 0.5 1.5 2 0.5 0.5 2", "a coordinate of 1.5"),
    ],
)
def test_a_row_that_the_loader_rejects_or_misreads_is_refused(kind, row, message):
    with pytest.raises(RequestError, match=message):
        FORMS[kind].read(row)


def test_bad_rows_are_told_by_file_and_line_and_equal_rows_count_once(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\ufeff0 .5 .5 .1 .1\n\n7 .5 .5 .1 .1\n0  .5 .5 .1 .1\n1 .5 .5\n", encoding="utf-8")
    labels, bad = read_label_file(path, FORMS["detect"])
    assert len(labels) == 1
    assert [str(each).split(":")[0] for each in bad] == [f"{path}, line 3", f"{path}, line 5"]
    assert read_label_file(tmp_path / "none.txt", FORMS["detect"]) == ([], [])


@st.composite
def boxes(draw):
    (x, y), (u, v) = draw(corners), draw(corners)
    left, top = min(x, u, 0.99), min(y, v, 0.99)
    return Label(0, box_outline((left, top, max(x, u, left + 0.01), max(y, v, top + 0.01))))


def has_area(label):
    left, top, right, bottom = label.bounds
    return right > left and bottom > top


polygons = st.lists(corners, min_size=3, max_size=8).map(lambda points: Label(1, np.array(points))).filter(has_area)
labels = st.one_of(
    st.tuples(boxes(), st.sampled_from(["detect", "obb", "pose"])), st.tuples(polygons, st.just("segment"))
)
moves = st.builds(
    placed, st.tuples(sides, sides), st.tuples(st.integers(-900, 900), st.integers(-900, 900)), st.tuples(sides, sides)
)


@given(labels, moves, shares)
def test_what_is_left_of_a_label_lies_in_the_picture_and_can_be_read(given_label, move, visible):
    label, task = given_label
    there = moved(label, move, task=task, visible=visible)
    if there is None:
        return
    assert there.outline.min() >= 0 and there.outline.max() <= 1
    assert there.category == label.category
    assert has_area(there)
    if task == "obb":
        assert there.outline.shape == (4, 2)
    if task == "detect":
        assert np.array_equal(there.outline, box_outline(there.bounds))


@given(boxes(), moves)
def test_a_box_is_dropped_exactly_below_the_visible_share(label, move):
    left, top, right, bottom = (float(value) for value in (*move(label.outline)[0], *move(label.outline)[2]))
    inside = max(0.0, min(1, right) - max(0, left)) * max(0.0, min(1, bottom) - max(0, top))
    share = inside / ((right - left) * (bottom - top))
    assert (moved(label, move, task="detect", visible=min(1, share + 1e-6)) is None) or share > 1 - 1e-6
    if inside > 1e-9:
        assert moved(label, move, task="detect", visible=max(0.0, share - 1e-6)) is not None


@given(boxes(), st.tuples(sides, sides), st.tuples(sides, sides))
def test_a_letterbox_shows_all_of_a_label_and_its_way_back_gives_the_label(label, picture, canvas):
    size, at = fitted(picture, canvas, "letterbox")
    move = placed(size, at, canvas)
    there = moved(label, move, task="segment", visible=0.999)
    assert there is not None
    back = Move(
        (1 / move.scale[0], 1 / move.scale[1]), (-move.shift[0] / move.scale[0], -move.shift[1] / move.scale[1])
    )
    assert np.abs(back(there.outline) - label.outline).max() < 1e-9
    assert np.abs(move.then(back)(label.outline) - label.outline).max() < 1e-9


@given(st.tuples(sides, sides), st.tuples(sides, sides), st.sampled_from(FITS))
def test_a_picture_is_fitted_as_it_says(picture, canvas, fit):
    (width, height), (left, top) = fitted(picture, canvas, fit)
    if fit == "letterbox":
        assert left >= 0 and top >= 0 and width <= canvas[0] and height <= canvas[1]
    else:
        assert left <= 0 and top <= 0 and left + width >= canvas[0] and top + height >= canvas[1]


@given(polygons)
def test_a_polygon_within_is_clipped_to_itself(label):
    assert np.array_equal(clip(label.outline), label.outline)
    assert moved(label, STAY, task="segment", visible=1) is label


def test_a_polygon_is_cut_at_the_border_and_a_cut_oriented_box_keeps_four_corners():
    diamond = Label(0, np.array([(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)]))
    half = placed((100, 100), (-50, 0), (100, 100))
    cut = moved(diamond, half, task="segment", visible=0.5)
    assert cut is not None and area(cut.outline) == pytest.approx(0.25)
    assert moved(diamond, half, task="segment", visible=0.51) is None
    four = moved(diamond, half, task="obb", visible=0.5)
    assert four is not None and four.outline.shape == (4, 2)


def test_a_keypoint_that_is_cut_off_is_no_longer_seen():
    form = FORMS["pose"]
    label = form.read("0 0.5 0.5 0.8 0.8 0.2 0.2 2 0.8 0.8 1")
    there = moved(label, placed((100, 100), (-50, 0), (100, 100)), task="pose", visible=0.3)
    assert there is not None
    assert there.keypoints.tolist() == [[0, 0, 0], [pytest.approx(0.3), pytest.approx(0.8), 1]]
    assert form.write(there).split()[5:8] == ["0.000000"] * 3
    form.read(form.write(there))


def test_overlap_is_intersection_over_union():
    one, other = (Label(0, box_outline(bounds)) for bounds in ((0, 0, 0.2, 0.2), (0.1, 0, 0.3, 0.2)))
    assert overlap(one, other) == pytest.approx(1 / 3)
    assert overlap(one, one) == pytest.approx(1)
