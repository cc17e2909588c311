"""Any exception as one line, an exit code and a JSON value: the command line's only error policy.

0    done
1    a gate failed: parity, quality
2    wrong use or bad input
3    the environment lacks something: a package, a device, memory, disk space
70   an internal error, a bug
130  interrupted
141  whoever read the output has gone
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentrt import errors
from latentrt.errors import BackendError, EnvironmentLacks, LatentRTError
from latentrt.files.atomic import HINTS

INTERNAL = 70
INTERRUPTED = 130
READER_GONE = 141


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What to tell about an exception."""

    line: str
    exit_code: int
    kind: str
    found: str
    expected: str | None = None
    hint: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> "Problem":
        """Describes any exception."""
        if isinstance(error, KeyboardInterrupt):
            return cls(line="interrupted", exit_code=INTERRUPTED, kind="KeyboardInterrupt", found="interrupted")
        known = _translated(error)
        if known is not None:
            return cls(
                line=f"error: {known}",
                exit_code=known.exit_code,
                kind=type(known).__name__,
                found=known.found,
                expected=known.expected,
                hint=known.hint,
            )
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        hint = "this is a bug: please report it with what the same command prints with --debug"
        return cls(
            line=f"internal error: {found}; {hint}",
            exit_code=INTERNAL,
            kind=type(error).__name__,
            found=found,
            hint=hint,
        )

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        error = {"type": self.kind, "found": self.found, "expected": self.expected, "hint": self.hint}
        return {"error": error, "exit_code": self.exit_code}


def error_from(document: Mapping[str, Any]) -> LatentRTError:
    """The exception that another process described with `Problem.document`."""
    row = document["error"]
    kind = getattr(errors, row["type"], BackendError)
    error: LatentRTError = kind(row["found"], expected=row["expected"], hint=row["hint"])
    return error


def _translated(error: BaseException) -> LatentRTError | None:
    """Conditions of the machine that the library does not wrap, as errors of ours."""
    if isinstance(error, LatentRTError):
        return error
    if isinstance(error, MemoryError):
        return EnvironmentLacks("memory ran out", hint="use a smaller size or batch, or a machine with more memory")
    if isinstance(error, OSError) and error.errno in HINTS:
        where = f"{error.filename}: " if error.filename is not None else ""
        return EnvironmentLacks(f"{where}{error.strerror}", hint=HINTS[error.errno])
    return None
