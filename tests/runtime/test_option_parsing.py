"""Guidance by the names that the command line and files of prompts have for it."""

import pytest

from latentrt import RequestError, SkipLayers
from latentrt.datasets.option_parsing import skip_layers_from

BASE = SkipLayers((7, 8), scale=2.0)


@pytest.mark.parametrize(
    ("values", "base", "expected"),
    [
        ({}, None, None),
        ({}, BASE, BASE),
        ({"skip_layers": [7]}, None, SkipLayers((7,))),
        (
            {"skip_layers": [7], "skip_guidance": 3.0, "skip_range": (0.1, 0.3)},
            None,
            SkipLayers((7,), scale=3.0, range=(0.1, 0.3)),
        ),
        ({"skip_guidance": 3.0}, BASE, SkipLayers((7, 8), scale=3.0)),
        ({"skip_layers": []}, BASE, None),
    ],
)
def test_what_is_not_given_is_as_in_the_run(values, base, expected):
    assert skip_layers_from(values, base) == expected


def test_a_scale_without_layers_is_refused():
    with pytest.raises(RequestError, match="--skip-range without --skip-layers"):
        skip_layers_from({"skip_range": (0, 1)}, spelling=lambda name: "--" + name.replace("_", "-"))
