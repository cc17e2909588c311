"""Where a command's words go: its result to stdout, progress and everything else to stderr."""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

_BAR_CELLS = 24
LINE_EVERY_S = 10.0


class Console:
    """Output of one command.

    Args:
        out, err: None is the process's stdout and stderr, as they are now.
    """

    def __init__(self, *, json: bool = False, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.json = json
        self._out = sys.stdout if out is None else out
        self._err = sys.stderr if err is None else err
        self.terminal = self._err.isatty()
        self._transient = False

    def result(self, text: str, document: Any) -> None:
        """What the command was run for, in the form that was asked for. Called once."""
        self.clear()
        print(json.dumps(document, indent=1, ensure_ascii=False) if self.json else text, file=self._out, flush=True)

    def note(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        print(text, file=self._err, flush=True)

    def status(self, text: str) -> None:
        """A line that the next word replaces; on a terminal only."""
        if not self.terminal:
            return
        self.clear()
        width = shutil.get_terminal_size().columns - 1
        self._err.write(text[:width])
        self._err.flush()
        self._transient = True

    def clear(self) -> None:
        """Removes the transient line."""
        if self._transient:
            self._err.write("\r\x1b[2K")
            self._err.flush()
            self._transient = False


class Bar:
    """A progress bar on a terminal; elsewhere nothing, or a line now and then.

    Args:
        lines: elsewhere the first and the last update are a line each, and others `LINE_EVERY_S` apart.
    """

    def __init__(self, console: Console, label: str, *, total: int, lines: bool = False) -> None:
        self._console = console
        self._label = label
        self._total = total
        self._lines = lines and not console.terminal
        self._began = time.perf_counter()
        self._line_at: float | None = None

    def update(self, done: int, *, text: str = "") -> None:
        """Shows that `done` units are behind us, `text` beside them, and how long the rest will take."""
        filled = _BAR_CELLS * done // max(1, self._total)
        cells = "#" * filled + "." * (_BAR_CELLS - filled)
        spent = time.perf_counter() - self._began
        left = f"  {spent / done * (self._total - done):.0f} s left" if 0 < done < self._total else ""
        if self._lines and (done >= self._total or self._line_at is None or spent - self._line_at >= LINE_EVERY_S):
            self._line_at = spent
            self._console.note(f"{self._label} {done}/{self._total}{left}")
        self._console.status(f"{self._label} [{cells}] {done}/{self._total}{left}  {text}".rstrip())


def table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Aligned columns: the first `left` ones to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def megabytes(count: int) -> str:
    """`1.4 MB`, in 10^6 bytes."""
    return f"{count / 1e6:.1f} MB"
