"""Results that outlive an interruption: taken where they are the same, made anew where they are not."""

from dataclasses import replace

import numpy as np
import pytest

from latentrt.bundle import Bundle
from latentrt.calibration.package import calibrate_bundle
from latentrt.calibration.result_cache import ResultCache


def test_a_result_is_made_once(tmp_path):
    made = []
    for _ in range(2):
        cache = ResultCache(tmp_path, source="a")
        value = cache.value("x", lambda: made.append(1) or {"ratio": [1.5, float("-inf")]})
        arrays = cache.arrays("y", lambda: made.append(2) or {"a/b": np.arange(3), "text": np.array("words")})
    assert made == [1, 2]
    assert value == {"ratio": [1.5, float("-inf")]}
    assert arrays.keys() == {"a/b", "text"}
    assert (arrays["a/b"].tolist(), str(arrays["text"])) == ([0, 1, 2], "words")


@pytest.mark.parametrize("damage", [b"", b"{}", b"not a record"])
def test_of_another_source_or_damaged_it_is_made_anew(tmp_path, damage):
    assert ResultCache(tmp_path, source="a").value("x", lambda: 1, source=["p"]) == 1
    assert ResultCache(tmp_path, source="a").value("x", lambda: 2, source=["q"]) == 2
    assert ResultCache(tmp_path, source="b").value("x", lambda: 3, source=["q"]) == 3
    (tmp_path / "x.json").write_bytes(damage)
    assert ResultCache(tmp_path, source="b").value("x", lambda: 4, source=["q"]) == 4
    ResultCache(tmp_path, source="a").arrays("y", lambda: {"a": np.zeros(2)})
    (tmp_path / "y.npz").write_bytes(damage)
    assert ResultCache(tmp_path, source="a").arrays("y", lambda: {"a": np.ones(2)})["a"].tolist() == [1, 1]


def test_a_measurement_that_was_interrupted_goes_on_with_the_next_backend(shapes_bundle, brief, tmp_path):
    settings = replace(brief.settings, prompts=("a red circle",), steps=1, sizes=((64, 64),))
    evaluation = replace(brief.evaluation, prompts=("a blue star",), steps=1, size=(64, 64), min_sqnr=0.0)
    policy = replace(brief.policy, components={"text_encoder": "int8"}, alpha=None)
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        if line == "openvino: network":
            raise KeyboardInterrupt

    def run(status):
        arguments = {"policy": policy, "settings": settings, "evaluation": evaluation, "threads": 1, "status": status}
        return calibrate_bundle(Bundle.open(shapes_bundle), tmp_path / "q", **arguments)

    with pytest.raises(KeyboardInterrupt):
        run(interrupt)
    assert {"float: 1 images", "onnxruntime: network"} <= set(lines)
    lines.clear()
    done = run(lines.append)
    assert lines == ["writing", "openvino: network", "openvino: 1 images"]
    assert {row.backend for row in done.rows} == {"onnxruntime", "openvino", "onnxruntime openvino"}
    assert not (tmp_path / "q.part").exists()
