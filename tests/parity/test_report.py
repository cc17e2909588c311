"""The page: whole, self-contained, the same bytes for the same judgement, and saying what the rows say."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentrt.bundle import Bundle
from latentrt.export.parity.measurement import (
    SHOWN,
    FirstImages,
    Measurement,
    Measurements,
    Pictures,
)
from latentrt.export.parity.report import LARGEST_PX, LAYERS, render

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Every tag closed in its order, text, and the attributes that name resources."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.sources: list[str] = []
        self.seen: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def layer(name: str, ratio: float | None, *, precision: str = "int8") -> dict:
    return {"name": name, "op": "Conv", "weight": f"{name}.weight", "parameters": 9, "work_macs": 100,
            "sqnr_db": ratio, "output_sqnr_db": None, "precision": precision, "reason": None}  # fmt: skip


CALIBRATION = {
    "judged": [],
    "policy": {"precision": {"step": "int8"}, "ranges": "mse", "alpha": None},
    "recipe": {"prompts": {"count": 4, "sha256": "ab"}, "sizes": [[64, 64]]},
    "tools": {"onnx": "1"},
    "components": {
        "step": {
            "quantised": ["a", "b", "c"],
            "float": [{"reason": "its error is the output's", "operators": ["conv_out/Conv"]}],
            "calls": [2, 0, 2],
            "tensors": {
                "t1": {"layer": "steady", "range": 1.0, "largest": [1.0, 0.0, 1.1], "smooth": None},
                "t2": {"layer": "drifting", "range": 9.0, "largest": [1.0, 0.0, 9.0], "smooth": None},
                "t3": {"layer": "silent", "range": 1.0, "largest": [0.0, 0.0, 0.0], "smooth": None},
            },
            "layers": [
                layer("good", 44.0),
                layer("bad", 21.5, precision="float"),
                *(layer(f"middle{i}", 33.0) for i in range(LAYERS)),
                layer("conv_out", None, precision="float"),
            ],
        }
    },
}


@pytest.fixture(scope="module")
def bundle(shapes_bundle: Path) -> Bundle:
    plain = Bundle.open(shapes_bundle)
    return replace(plain, manifest={**plain.manifest, "calibration": CALIBRATION})


def measurements(*, passes: bool = True, size: int = 16) -> Measurements:
    value = 30.0 if passes else 20.0
    rows = [
        Measurement(
            subject="component step",
            case="network, prompt branch",
            backend=backend,
            value=value,
            limit=25.0,
            unit="dB SQNR",
            higher_is_better=True,
            series=(40.0, value, 22.0),
        )
        for backend in ("onnxruntime", "openvino")
    ]
    rows.append(
        Measurement(
            subject="component step",
            case="network, prompt branch, between backends",
            backend="onnxruntime openvino",
            value=0.25,
            limit=1.0,
            unit="dB",
        )
    )
    float_images = np.full((2, size, size, 3), 100, np.uint8)
    found = float_images + np.uint8([3])
    pictures = Pictures(("<script>alert(1)</script>", "b"), float_images, {"onnxruntime": found, "openvino": found})
    return Measurements(tuple(rows), pictures)


@pytest.fixture(scope="module")
def page(bundle: Bundle, shapes_bundle: Path) -> str:
    return render(bundle, measurements(), title="a & b", parent=Bundle.open(shapes_bundle))


def test_the_page_is_whole_and_holds_everything_that_it_shows(page: str):
    found = Page(page)
    assert found.open == []
    assert "script" not in found.seen
    assert found.sources
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert not re.search(r"https?:|@import|url\(", page)


def test_the_same_measurements_gives_the_same_page(page: str, bundle: Bundle, shapes_bundle: Path):
    assert render(bundle, measurements(), title="a & b", parent=Bundle.open(shapes_bundle)) == page


def test_the_verdict_comes_first(page: str, bundle: Bundle):
    assert "All 3 gates passed" in page
    failed = render(bundle, measurements(passes=False), title="t")
    assert "2 of 3 gates failed" in failed
    assert failed.count("✗") == 2
    assert "Not judged" in render(bundle, Measurements((), None), title="t")


def test_the_page_says_where_it_was_measured(bundle: Bundle):
    where = {"date": "2026-01-02", "cpu": "A <processor>", "versions": {"openvino": "2026.4", "python": "3.11"}}
    text = " ".join(Page(render(bundle, measurements(), title="t", where=where)).text)
    assert all(part in text for part in ("2026-01-02", "A <processor>", "openvino 2026.4", "python 3.11"))


def test_the_first_images_of_a_few_cases_are_shown():
    first = FirstImages()
    assert first.pictures() is None
    for number in range(SHOWN + 3):
        size = 8 if number == 1 else 16  # another size than the first one's
        images = np.full((2, size, size, 3), number, np.uint8)
        first.add(f"case {number}", images, {"openvino": images + 1})
    pictures = first.pictures()
    assert pictures.prompts == tuple(f"case {number}" for number in (0, *range(2, SHOWN + 1)))
    assert pictures.reference.shape == pictures.found["openvino"].shape == (SHOWN, 16, 16, 3)
    assert pictures.reference[:, 0, 0, 0].tolist() == [0, *range(2, SHOWN + 1)]
    assert (pictures.found["openvino"] - pictures.reference == 1).all()


def test_layers_come_worst_first_and_those_in_float_are_told_apart(page: str):
    text = " ".join(Page(page).text)
    assert text.index("21.5 dB") < text.index("33.0 dB") < text.index("44.0 dB")
    assert page.count('class="kept"') == 1
    assert "2 more" in text
    assert "93.9%" in text  # of the work: two of 33 layers are in float


def test_damages_at_the_output_take_the_place_of_those_where_layers_stand(bundle: Bundle):
    step = CALIBRATION["components"]["step"]
    layers = [row | {"output_sqnr_db": at_output} for row, at_output in zip(step["layers"], (31.0, 52.0), strict=False)]
    calibration = {**CALIBRATION, "components": {"step": {**step, "layers": layers}}}
    searched = replace(bundle, manifest={**bundle.manifest, "calibration": calibration})
    text = " ".join(Page(render(searched, measurements(), title="t")).text)
    assert text.index("31.0 dB") < text.index("52.0 dB")
    assert "44.0 dB" not in text


def test_ranges_that_drift_are_shown_and_parts_that_were_not_run_are_not(page: str):
    text = " ".join(Page(page).text)
    assert text.index("drifting") < text.index("steady")
    assert "x9.0" in text
    assert "silent" not in text
    assert page.count('class="cell"') == 4


def test_pictures_are_float_bundle_and_eight_times_the_difference(page: str):
    """Two prompts, five pictures each; of a difference of 3 levels the last one shows 24."""
    found = Page(page)
    images = [np.array(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))) for source in found.sources]
    assert [int(image.mean()) for image in images] == [100, 103, 24, 103, 24] * 2
    assert "<script>alert(1)</script>" in "".join(found.text)


def test_large_pictures_are_made_smaller(bundle: Bundle):
    size = 2 * LARGEST_PX + 1
    (first, *_) = Page(render(bundle, measurements(size=size), title="t")).sources
    with Image.open(io.BytesIO(base64.b64decode(first.partition(",")[2]))) as image:
        assert image.size == (size // 3, size // 3)


def test_a_float_bundle_has_a_page_too(shapes_bundle: Path):
    found = Page(render(Bundle.open(shapes_bundle), measurements(), title="t"))
    assert found.open == []
    assert "Gates" in found.text
    assert not any("calibrated" in text for text in found.text)
