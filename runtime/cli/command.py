"""What a subcommand is, and how the installed ones are found.

A distribution adds a command with an entry point in the group `latentrt.commands`: its name is the command's,
its value a `Command`. The module must import without the packages that the work itself needs, so that help
can always be shown; it imports those inside `run`.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from latentrt.cli.console import Console
from latentrt.environment.requirement import Requirement
from latentrt.errors import EnvironmentLacks

GROUP = "latentrt.commands"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A subcommand.

    Args:
        configure: adds its arguments to a parser that has the common ones (`--json`, `-v`, `--debug`).
        run: does the work and returns the exit code: 0, or 1 where a gate failed. Errors are raised.
        requires: the extras without which it cannot run, or which ones those are with these options.
        essential: the options that `--help` shows, the others are left to `--help-all`; None: it shows all.
    """

    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], int]
    requires: Sequence[Requirement] | Callable[[argparse.Namespace], Sequence[Requirement]] = ()
    essential: Sequence[str] | None = None

    def needs(self, options: argparse.Namespace) -> Sequence[Requirement]:
        """The extras without which it cannot run with these options."""
        return self.requires(options) if callable(self.requires) else self.requires


def discover() -> Mapping[str, Command]:
    """The installed commands by name; one that cannot be imported is listed and says so when it is called."""
    return {entry.name: _load(entry) for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def _load(entry: EntryPoint) -> Command:
    try:
        loaded = entry.load()
    except Exception as error:
        return _broken(entry, f"{type(error).__name__}: {error}")
    return loaded if isinstance(loaded, Command) else _broken(entry, f"{entry.value} is no Command")


def _broken(entry: EntryPoint, reason: str) -> Command:
    def run(options: argparse.Namespace, console: Console) -> int:
        raise EnvironmentLacks(
            f"the command {entry.name} cannot be loaded ({reason})",
            hint="install again the distribution that brings it",
        )

    return Command(help=f"(cannot be loaded: {reason})".replace("%", "%%"), configure=lambda parser: None, run=run)
