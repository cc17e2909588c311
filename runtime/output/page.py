"""A report as one HTML page: self-contained, no script, the same bytes for the same findings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

_TEMPLATE = "page.html"


def render_page(
    sections: Iterable[str], *, title: str, verdict: str, summary: str, mood: str = "", columns: int = 1
) -> str:
    """The page as text.

    Args:
        sections: HTML, such as `section` makes.
        title, verdict, summary: what was looked at, what came of it in a few words, and in a sentence.
        mood: class of the verdict: `ok`, `failed` or none.
        columns: pictures beside the text in a strip.
    """
    template = Template((files(__package__) / _TEMPLATE).read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        verdict=escape(verdict),
        mood=mood,
        summary=escape(summary),
        columns=columns,
        sections="\n".join(sections),
    )


def section(title: str, lead: str, body: str) -> str:
    """A card: a heading, a sentence, and HTML."""
    return f"<section><h2>{escape(title)}</h2><p>{escape(lead)}</p>{body}</section>"


def page_table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table of texts, the first row its head: the first `left` columns to the left, the others as numbers."""
    head, *body = rows
    lines = [_cells("th", head, left), *(_cells("td", row, left) for row in body)]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def details(title: str, body: str) -> str:
    """HTML behind a line that opens it."""
    return f"<details><summary>{title}</summary>{body}</details>"


def number(text: str) -> str:
    """A cell that stands to the right."""
    return f'<td class="n">{text}</td>'


def provenance_section(where: Mapping[str, Any] | None) -> Iterator[str]:
    """Of what `latentrt.bench.machine.provenance` gives; nothing of None."""
    if where is not None:
        rows = {key.replace("_", " "): value for key, value in where.items()}
        yield section("Where it was measured", "Date, machine and versions.", facts(rows))


def facts(values: Mapping[str, Any]) -> str:
    """A table of names and JSON values."""
    lines = (f"<tr><td>{escape(key)}</td><td>{escape(_plain(value))}</td></tr>" for key, value in values.items())
    return f"<table>{''.join(lines)}</table>"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else "none" if value is None else str(value)


def _cells(tag: str, row: Sequence[str], left: int) -> str:
    return "".join(
        f"<{tag}>{escape(cell)}</{tag}>" if place < left else f'<{tag} class="n">{escape(cell)}</{tag}>'
        for place, cell in enumerate(row)
    )
