"""`latentrt completion`: a script that completes commands, options and paths in a shell."""

import argparse
from pathlib import Path

from latentrt.cli.command import Command, discover
from latentrt.cli.console import Console
from latentrt.environment.requirement import Requirement

SHELLS = ("bash", "zsh", "tcsh")
NEEDS = (Requirement(extra="completion", packages=("shtab",)),)
# Arguments that are text and still name a path: a folder, or anything that a file manager shows.
_PATHS = {"BUNDLE", "BUNDLE8", "CHECKPOINT", "CHECKPOINT|BUNDLE", "DIR", "FILE", "FOLDER", "PATH", "PHOTO"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help=f"one of {', '.join(SHELLS)}")


def run(options: argparse.Namespace, console: Console) -> int:
    import shtab

    from latentrt.cli import whole_parser

    parser, commands = whole_parser(discover())
    for command in commands:
        for action in command._actions:
            if action.choices is None and (action.type is Path or action.metavar in _PATHS):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    script = shtab.complete(parser, shell=options.shell)
    console.result(script, {"shell": options.shell, "script": script})
    return 0


COMMAND = Command(
    help="print a script that completes commands and options in a shell", configure=configure, run=run, requires=NEEDS
)
