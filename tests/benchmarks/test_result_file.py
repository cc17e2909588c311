"""How results are written."""

from pathlib import Path

from benchmarks.result_file import packed, read_result, write_result


def test_rows_of_the_same_names_become_columns_and_numbers_short():
    rows = [{"name": "a", "ms": 1234.5678}, {"name": "b", "ms": 2}]
    assert packed({"rows": rows, "one": rows[:1], "mixed": [rows[0], {"ms": 1.0}]}) == {
        "rows": {"columns": ["name", "ms"], "rows": [["a", 1234.6], ["b", 2]]},
        "one": [{"name": "a", "ms": 1234.6}],
        "mixed": [{"name": "a", "ms": 1234.6}, {"ms": 1.0}],
    }


def test_a_result_lies_under_its_date(tmp_path: Path):
    document = {"provenance": {"date": "2026-01-02T03:04:05"}, "ms": (0.1234567,), "rows": [{"a": 1}, {"a": 2}]}
    path = write_result(document, what="some", folder=tmp_path / "new")
    assert path == tmp_path / "new" / "2026-01-02-some.json"
    assert read_result(path) == {**document, "ms": [0.12346]}
