"""The exact versions of constraints/: each stated once and allowed by pyproject.toml, and the runtime's with hashes."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME_EXTRAS = ("onnxruntime", "openvino", "tensorrt-rtx", "serve")


def pins(name: str) -> dict[str, str]:
    """Version by distribution."""
    rows = re.findall(r"^([\w.-]+)==([\w.+]+)", (ROOT / "constraints" / name).read_text(), re.MULTILINE)
    found = {canonicalize_name(name): version for name, version in rows}
    assert len(found) == len(rows), "stated twice"
    return found


def wanted(*extras: str) -> Iterator[Requirement]:
    """What the project needs with some extras."""
    extra_rows = [row for extra in extras for row in PROJECT["optional-dependencies"][extra]]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extra_rows]):
        if requirement.name == PROJECT["name"]:
            yield from wanted(*requirement.extras)
        else:
            yield requirement


RUNTIME, DEVELOPMENT = pins("runtime.txt"), pins("development.txt")


@pytest.mark.parametrize(
    ("extras", "found"), [(RUNTIME_EXTRAS, RUNTIME), (("dev",), RUNTIME | DEVELOPMENT)], ids=["runtime", "development"]
)
def test_every_direct_dependency_has_a_version_that_is_allowed(extras: tuple[str, ...], found: dict[str, str]):
    rows = {canonicalize_name(each.name): each.specifier for each in wanted(*extras)}
    assert rows.keys() - found.keys() == set()
    assert [name for name, allowed in rows.items() if not allowed.contains(found[name])] == []


def test_no_version_is_stated_in_both():
    assert RUNTIME.keys() & DEVELOPMENT.keys() == set()


def test_the_versions_of_the_runtime_carry_hashes():
    text = (ROOT / "constraints" / "runtime.txt").read_text()
    assert len(re.findall(r"^[\w.-]+==.*\\\n +--hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)) == len(RUNTIME)
    assert "--hash" not in (ROOT / "constraints" / "development.txt").read_text()
