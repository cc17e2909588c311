"""docs/compatibility.md, written from the tests with `@pytest.mark.compatibility(kind=, what=, recognised=, outcome=)`.

Rows are gathered at collection, before anything is deselected, so that `make test` and each of its workers see all.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "compatibility.md"
COMMAND = "make compatibility"

HEADINGS = {
    "checkpoint": "Checkpoints",
    "LoRA": "LoRAs",
    "embedding": "Embeddings",
    "ControlNet": "ControlNets",
    "VAE": "VAEs",
    "scheduler": "Schedulers",
    "image": "Images",
    "prompt": "Prompts",
    "request": "Requests",
    "bundle": "Bundles",
}
OUTCOMES = ("works", "refused", "warns")
_WAY = re.compile(r"(?<=\[)ray(-locally)?-|-ray(-locally)?(?=\])")
"""What a server runs on, in the name of a test of it: a row holds for all of them."""

_PREAMBLE = f"""# What people have, and how it is treated

One line for each kind of file and request that has been tried, and the test that shows it. `works`: the result is
right, by the reference that the test names. `refused`: it ends in an error that says what was found and what to do,
before work begins. `warns`: it is done, and a warning says what was assumed or left out. What no line says has not
been tried: it is unknown.

Written by `{COMMAND}` from the tests' marks; a test of the whole suite compares the two.
"""


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """One line of the page: a kind of thing, how it is recognised, what became of it, and the test that shows it."""

    kind: str
    what: str
    recognised: str
    outcome: str
    test: str

    @classmethod
    def of(cls, item: pytest.Item, mark: pytest.Mark) -> Self:
        """The row that a mark on a test makes."""
        values = mark.kwargs
        if mark.args or values.keys() != {"kind", "what", "recognised", "outcome"} or values["outcome"] not in OUTCOMES:
            raise pytest.UsageError(
                f"{item.nodeid}: compatibility takes kind=, what=, recognised= and outcome=, one of {OUTCOMES}"
            )
        kinds = {kind.lower(): kind for kind in HEADINGS}
        path = item.path.relative_to(TESTS.parent).as_posix()
        # A mark on the function is one row, however many parameters it has.
        whole = mark in getattr(getattr(item, "function", None), "pytestmark", ())
        name = getattr(item, "originalname", item.name) if whole else _WAY.sub("", item.name)
        kind = kinds.get(values["kind"].lower(), values["kind"])
        return cls(kind, values["what"], values["recognised"], values["outcome"], f"{path}::{name}")


ROWS = pytest.StashKey[tuple[Row, ...] | None]()
"""The rows of the whole suite; None where only a part of it was collected."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-compatibility", action="store_true", help="write docs/compatibility.md, and end there")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    rows = {Row.of(item, mark) for item in items for mark in item.iter_markers("compatibility")}
    whole = not session.testsfailed and not any("::" in arg for arg in config.args)
    whole = whole and _marked_files() <= {item.path for item in items}
    config.stash[ROWS] = tuple(sorted(rows)) if whole else None
    if config.getoption("--write-compatibility"):
        if not whole:
            raise pytest.UsageError("the page is made from the whole suite, collected without an error")
        PAGE.write_text(page(rows), encoding="utf-8")
        pytest.exit(f"{len(rows)} rows in {PAGE}", returncode=0)


def _marked_files() -> set[Path]:
    return {path for path in TESTS.rglob("test_*.py") if "mark.compatibility(" in path.read_text(encoding="utf-8")}


def page(rows: Iterable[Row]) -> str:
    """The page of these rows: a table for each kind."""
    by_kind: dict[str, list[Row]] = {kind: [] for kind in HEADINGS}
    for row in sorted(rows):
        by_kind.setdefault(row.kind, []).append(row)
    return "\n".join([_PREAMBLE, *(_table(kind, found) for kind, found in by_kind.items() if found)])


def _table(kind: str, rows: Sequence[Row]) -> str:
    lines = [f"## {HEADINGS.get(kind, kind)}", "", "| what | recognised by | outcome | test |", "|---|---|---|---|"]
    for row in rows:
        path, name = row.test.split("::", 1)
        test = f"[{_cell(Path(path).stem)}](../{path}) `{_cell(name)}`"
        lines.append(f"| {_cell(row.what)} | {_cell(row.recognised)} | {row.outcome} | {test} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
