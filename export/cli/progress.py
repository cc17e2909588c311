"""The components of a bundle on the terminal, as they are made, and the bundle that results."""

from typing import TYPE_CHECKING, Any

from latentrt.bundle import Bundle
from latentrt.cli.console import Bar, Console, megabytes

if TYPE_CHECKING:
    from latentrt.export.staging import ExportProgress


class ComponentBar:
    """Shows components as they come and go."""

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._label = label
        self._bar: Bar | None = None

    def show(self, event: "ExportProgress") -> None:
        if self._bar is None:
            self._bar = Bar(self._console, self._label, total=event.count)
        if event.seconds is None:
            self._bar.update(event.position, text=event.component)
            return
        took = "kept from an earlier run" if event.resumed else f"{event.seconds:6.1f} s"
        self._console.note(f"{event.component:<14} {megabytes(event.bytes):>10}  {took}")


def finished(bundle: Bundle, seconds: float) -> tuple[str, dict[str, Any]]:
    """A bundle that was made, in a line and as JSON values."""
    size = sum(entry["bytes"] for entry in bundle.manifest["files"].values())
    text = f"{bundle.root}: {megabytes(size)} in {seconds:.0f} s"
    return text, {"bundle": str(bundle.root), "bytes": size, "seconds": seconds}
