"""Every error that LatentRT raises on purpose.

    LatentRTError
    ├── RequestError        a request that this bundle cannot serve: size, sampler, steps, prompt
    ├── BundleError         a bundle that is missing, incomplete or malformed
    │   ├── IntegrityError  a file whose bytes are not those that the manifest promised
    │   └── VersionError    a bundle written in a format newer than this runtime reads
    ├── CheckpointError     a checkpoint that cannot be exported: missing, truncated, not Stable Diffusion
    ├── GateError           a measured quality is below its gate (parity, accuracy)
    └── EnvironmentLacks    the machine lacks something: a package, a device, disk space
        ├── BackendError    a backend that failed to compile or to run a graph
        └── InUseError      a place that another process is at work on

A message says what was found, what was expected, and what to do next. The command line prints it and
exits with `exit_code`: 1 a gate failed, 2 wrong use or bad input, 3 the environment lacks something.
"""

from typing import Any, TypeVar

_E = TypeVar("_E", bound=BaseException)


class LatentRTError(Exception):
    """Root of the tree.

    Args:
        found: what was found, a clause without a final full stop.
        expected: what would have been right.
        hint: what the user can do about it.
    """

    exit_code = 2

    def __init__(self, found: str, *, expected: str | None = None, hint: str | None = None) -> None:
        self.found = found
        self.expected = expected
        self.hint = hint
        parts = [found]
        if expected is not None:
            parts.append(f"expected {expected}")
        if hint is not None:
            parts.append(hint)
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes to other processes whole, whatever a member of the tree takes to be made."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[LatentRTError], args: tuple[Any, ...], state: dict[str, Any]) -> LatentRTError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class RequestError(LatentRTError):
    """A request that this bundle cannot serve: size, sampler, steps, prompt."""


class BundleError(LatentRTError):
    """A bundle that is missing, incomplete or malformed."""


class IntegrityError(BundleError):
    """A bundle file whose bytes are not those that the manifest promised."""


class VersionError(BundleError):
    """A bundle written in a format newer than this runtime reads."""


class CheckpointError(LatentRTError):
    """A checkpoint that cannot be exported: missing, truncated, not Stable Diffusion."""


class GateError(LatentRTError):
    """A measured quality is below its gate."""

    exit_code = 1


class EnvironmentLacks(LatentRTError):  # noqa: N818 - reads as a sentence: the environment lacks X
    """The machine lacks something: a package, a device, disk space."""

    exit_code = 3


class BackendError(EnvironmentLacks):
    """A backend that failed to compile or to run a graph."""


class InUseError(EnvironmentLacks):
    """A place that another process is at work on."""


def without_frames(error: _E) -> _E:
    """The error without its traceback and those of its causes, whose frames hold whatever failed: models, memory."""
    links: list[BaseException | None] = [error]
    seen: set[int] = set()
    while links:
        link = links.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.__traceback__ = None
            links += [link.__cause__, link.__context__]
    return error
