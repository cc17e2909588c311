"""The user's own measure: how it is found, what it may give, and the comparison image by image."""

import numpy as np
import pytest

from latentrt.errors import RequestError
from latentrt.export.parity.metric import load_metric, metric_rows, scores

IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


def test_a_measure_from_a_file_may_import_what_lies_beside_it(tmp_path):
    (tmp_path / "beside.py").write_text("SCALE = 2.0\n")
    (tmp_path / "mine.py").write_text(
        "from beside import SCALE\ndef bright(images, prompts):\n    return SCALE * images.mean(axis=(1, 2, 3))\n"
    )
    found = scores(load_metric(f"{tmp_path / 'mine.py'}:bright"), IMAGES, ["a", "b"])
    assert found == pytest.approx((2 * IMAGES.reshape(2, -1).mean(axis=1)).tolist())


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("brightness", "metric 'brightness'"),
        ("no_such_module:f", "ModuleNotFoundError"),
        ("nowhere.py:f", "FileNotFoundError"),
        ("math:brightness", "math has no function brightness"),
    ],
)
def test_a_measure_that_is_none(name, found):
    with pytest.raises(RequestError, match=found):
        load_metric(name)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (0.5, r"gave an array \[\] for 2 images"),
        ([1.0, 2.0, 3.0], r"gave an array \[3\]"),
        ([1.0, float("nan")], "gave NaN or infinity"),
        (["good", "bad"], r"failed \(ValueError"),
    ],
)
def test_what_is_not_one_number_an_image_is_refused(given, found):
    with pytest.raises(RequestError, match=found):
        scores(lambda images, prompts: given, IMAGES, ["a", "b"])


def test_float_and_bundle_are_compared_in_pairs():
    """By hand: losses 0, 1, 0, 1 have the mean 0.5 and the standard error sqrt(1/3) / 2."""
    rows = metric_rows("checker.py:score", [1, 1, 1, 1], [1, 0, 1, 0], backend="openvino", drop=0.02)
    assert {row.subject for row in rows} == {"metric score"}
    values = {row.case: row.value for row in rows}
    assert values == pytest.approx(
        {
            "mean of float": 1.0,
            "mean of this bundle": 0.5,
            "float minus this bundle, 4 pairs": 0.5,
            "standard error of that": (1 / 3) ** 0.5 / 2,
        }
    )
    assert [row.case for row in rows if not row.passed] == ["float minus this bundle, 4 pairs"]


@pytest.mark.parametrize(
    ("found", "drop", "passed"), [([0.985], 0.02, True), ([0.97], 0.02, False), ([0.0], None, True)]
)
def test_a_loss_is_judged_only_if_a_limit_is_given(found, drop, passed):
    assert all(row.passed for row in metric_rows("m:f", [1.0], found, backend="x", drop=drop)) is passed


def test_a_gain_is_no_loss():
    assert all(row.passed for row in metric_rows("m:f", [0.5, 0.5], [0.9, 0.8], backend="x", drop=0.0))
