"""What a graph may leave out and ours never do: names, types, shapes and constants of its values."""

from typing import TypeVar

from latentrt.errors import BundleError

_T = TypeVar("_T")


def stated(part: _T | None) -> _T:
    """The part, which a graph that was exported here states."""
    if part is None:
        raise BundleError(
            "a graph leaves out a name, a type, a shape or a constant",
            expected="all of them, as in graphs that `latentrt export` makes",
            hint="export the bundle again",
        )
    return part
