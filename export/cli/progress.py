"""The components of a bundle on the terminal, as they are made."""

from typing import TYPE_CHECKING

from latentrt.cli.console import Bar, Console, megabytes

if TYPE_CHECKING:
    from latentrt.export.staging import ExportProgress


class ComponentBar:
    """Shows components as they come and go.

    Args:
        console: where.
        label: what is being done.
    """

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._label = label
        self._bar: Bar | None = None

    def show(self, event: "ExportProgress") -> None:
        if self._bar is None:
            self._bar = Bar(self._console, self._label, total=event.count)
        if event.seconds is None:
            self._bar.update(event.position, text=event.component)
        elif event.resumed:
            self._console.note(f"{event.component:<14} {megabytes(event.bytes):>10}  kept from an earlier run")
        else:
            self._console.note(f"{event.component:<14} {megabytes(event.bytes):>10}  {event.seconds:6.1f} s")
