"""What `make gpu-placement` counts as wrong; the run itself downloads a provider and is no part of the tests."""

import json
from typing import Any

import pytest

from benchmarks.placement.__main__ import LAUNCHES, LOOP, _problems, _text

GOOD = {
    "bundle": "shapes",
    "component": "step",
    "kind": "rewritten",
    "on_cpu": 0,
    "memcpy": 0,
    "group_norms": 30,
    "attention": 14,
    "changes": {"GroupNorm": 30, "Attention": 14},
    "launches": LAUNCHES["step"],
    "loop": {**LOOP, "launches_without_capture": 300},
    "out_of_memory": {"known": True, "told": True, "usable": True},
}


def test_a_graph_that_is_placed_well_has_no_problem():
    assert _problems(GOOD) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"on_cpu": 2}, "2 nodes on the CPU"),
        ({"memcpy": 1}, "1 copies"),
        ({"group_norms": 29}, "1 GroupNorms"),
        ({"attention": 0}, "14 Attentions"),
        ({"launches": LAUNCHES["step"] + 3}, "3 launches above"),
        ({"loop": {**LOOP, "waits": 2}}, "2 waits a call"),
        ({"loop": {**LOOP, "graphs": 0}}, "-1 graphs a call"),
    ],
)
def test_what_is_placed_badly_is_told(change: dict[str, Any], words: str):
    (problem,) = _problems({**GOOD, **change})
    assert problem.startswith("shapes step")
    assert words in problem
    assert _problems({**GOOD, **change, "kind": "plain"}) == []


def test_a_run_without_memory_is_judged_of_plain_graphs_too():
    for kind in ("plain", "rewritten"):
        (problem,) = _problems({**GOOD, "kind": kind, "out_of_memory": {"known": True, "told": False, "usable": True}})
        assert problem == f"shapes step {kind}: out of memory, and not told"


def test_rows_are_written_as_columns_that_can_be_read_again():
    written = json.loads(_text({"what": "x", "rows": [GOOD, {**GOOD, "kind": "plain"}]}))
    rows = [dict(zip(written["columns"], row, strict=True)) for row in written["rows"]]
    assert rows == [GOOD, {**GOOD, "kind": "plain"}]
