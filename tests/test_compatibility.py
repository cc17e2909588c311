"""docs/compatibility.md says what the marks of the tests say."""

from pathlib import Path

import pytest
from compatibility import COMMAND, PAGE, ROWS, Row, page


def test_the_page_is_that_of_the_tests(request: pytest.FixtureRequest):
    rows = request.config.stash[ROWS]
    if rows is None:
        pytest.skip("only a part of the tests was collected")
    assert PAGE.read_text(encoding="utf-8") == page(rows), f"docs/compatibility.md is of other tests: run {COMMAND}"


MARKED = """
import pytest
row = pytest.mark.compatibility

@row(kind="lora", what="a | b", recognised="keys", outcome="works")
@pytest.mark.parametrize("n", [1, 2])
def test_each(n): pass

refused = row(kind="VAE", what="x", recognised="y", outcome="refused")

@pytest.mark.parametrize("n", [pytest.param(1, id="one", marks=refused)])
def test_one(n): pass
"""  # fmt: skip


class Collector:
    """A plugin that keeps the rows of what is collected."""

    rows: list[Row]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.rows = sorted({Row.of(item, mark) for item in items for mark in item.iter_markers("compatibility")})


def test_a_mark_is_a_row_once_and_that_of_a_parameter_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("compatibility.TESTS", tmp_path / "tests")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(MARKED)
    collector = Collector()
    options = ("--collect-only", "--import-mode=importlib", "-p", "no:terminal", "-p", "no:cacheprovider")
    pytest.main([*options, str(tmp_path)], plugins=[collector])
    assert collector.rows == [
        Row("LoRA", "a | b", "keys", "works", "tests/test_x.py::test_each"),
        Row("VAE", "x", "y", "refused", "tests/test_x.py::test_one[one]"),
    ]
    written = page(reversed(collector.rows))
    assert written.index("## LoRAs") < written.index("## VAEs")
    assert "| a \\| b | keys | works | [test_x](../tests/test_x.py) `test_each` |" in written


def test_a_mark_that_is_no_row_is_refused(request: pytest.FixtureRequest):
    mark = pytest.mark.compatibility(kind="VAE", what="x", recognised="y", outcome="perhaps").mark
    with pytest.raises(pytest.UsageError, match="outcome"):
        Row.of(request.node, mark)
