"""What the README shows is true: its program runs, its commands parse, its targets and links exist."""

import re
import shlex
from pathlib import Path

import pytest
from families.rows import ROWS
from PIL import Image

from latentrt.cli import command_parser
from latentrt.cli.command import discover

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BUNDLE = "build/bundles/shapes"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every line of a shell block that calls `latentrt`, without its prompt."""
    lines = "\n".join([*blocks("sh"), *blocks("console")]).splitlines()
    return sorted({line.removeprefix("$ ") for line in lines if line.removeprefix("$ ").startswith("latentrt ")})


def targets() -> list[str]:
    return sorted(set(re.findall(r"(?:`|^)make ([a-z][a-z-]*)", README, flags=re.MULTILINE)))


def test_the_program_runs(shapes_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (program,) = blocks("python")
    assert BUNDLE in program
    exec(compile(program.replace(BUNDLE, str(shapes_bundle)), "README.md", "exec"), {})
    assert Image.open("circle.png").size == (128, 128)
    assert Image.open("star.png").size == (96, 160)


def families() -> list[list[str]]:
    """The cells of the table of families."""
    table = README.split("## Families")[1].split("## Figures")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| .*`tiny-.*", table, re.M)
    ]


def test_each_cell_of_the_table_of_families_is_a_test():
    tested = {row.architecture: row for row in reversed(ROWS)}  # the first of each, which names its inputs
    assert {cells[4].strip("`") for cells in families()} == tested.keys()
    single_files = re.findall(r'Case\(\s*"([^"]+)"', (ROOT / "tests/export/test_single_file.py").read_text())
    for _, inputs, begins, single_file, architecture in families():
        row = tested[architecture.strip("`")]
        assert tuple(filter(None, inputs.split(", "))) == tuple(sorted(row.inputs))
        assert begins == row.start
        assert single_file in {"", *single_files}


def test_there_is_something_to_check():
    assert {shlex.split(line)[1] for line in commands()} == set(discover())
    assert {"demo", "test"} <= set(targets())


@pytest.mark.parametrize("line", commands())
def test_a_command_parses(line: str):
    words = shlex.split(line, comments=True)[1:]
    assert command_parser(words[0], discover()[words[0]]).parse(words[1:])


@pytest.mark.parametrize("target", targets())
def test_a_target_exists_and_is_listed(target: str):
    assert re.search(rf"^{target}:.* ## \S", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_a_link_leads_somewhere(link: str):
    assert (ROOT / link).exists()
