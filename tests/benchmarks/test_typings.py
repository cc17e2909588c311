"""The stubs of TensorRT: what is kept of a module's, and that the code is checked against what they say."""

import ast
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.make_typings import reduced

ROOT = Path(__file__).resolve().parents[2]

TEXT = '''
from __future__ import annotations
class IUnused:
    def get(self, in: int) -> int:
        """No Python."""
class IExecutionContext:
    """A long text."""
    name: str
    profiler: IProfiler
    @staticmethod
    def __enter__(this):
        ...
    def execute_async_v3(self, stream_handle: typing.SupportsInt) -> bool:
        """Another."""
    def scale(self, shift: int = None, axis: int) -> bool:
        ...
    @typing.overload
    def set(self, shape: Dims) -> None:
        ...
    @typing.overload
    def set(self, shape: tuple) -> None:
        ...
'''


def test_the_classes_that_are_used_are_kept_without_texts_and_strangers():
    text = reduced(TEXT, {"execute_async_v3", "profiler", "set", "scale"})
    ast.parse(text)
    assert "def execute_async_v3(self, stream_handle: typing.SupportsInt) -> bool: ..." in text
    assert "profiler: Any" in text, "of a class that is not kept"
    assert "def set(self, *arguments: Any, **named: Any) -> Any: ..." in text, "overloads that came to say the same"
    assert "def scale(self, *arguments: typing.Any)" in text, "no signature of Python's"
    assert not [word for word in ("IUnused", "A long", "Another", "__enter__", "overload", "name: str") if word in text]


@pytest.mark.parametrize(("folder", "version"), [("tensorrt11", "11."), ("tensorrt10", "10."), ("rtx", "1.")])
def test_the_stubs_say_what_they_are_of(folder: str, version: str):
    (path,) = (ROOT / "typings" / folder).rglob("__init__.pyi")
    text = path.read_text()
    assert f"bindings=={version}" in text.splitlines()[0]
    assert "def execute_async_v3(self, stream_handle:" in text
    assert len(text) < 14_000
