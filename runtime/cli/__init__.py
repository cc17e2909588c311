"""The command line: `latentrt COMMAND ...`.

Commands are found through the entry-point group `latentrt.commands` (`latentrt.cli.command`). Results go to
stdout, as text or, with `--json`, as exactly one JSON document; everything else goes to stderr. Errors have one
line and an exit code (`latentrt.problems`).
"""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout

import latentrt
from latentrt.cli.arguments import Parser
from latentrt.cli.command import Command, discover
from latentrt.cli.console import Console
from latentrt.environment.requirement import check_requirements
from latentrt.errors import RequestError
from latentrt.files.names import links_followed
from latentrt.problems import INTERRUPTED, READER_GONE, Problem

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code. Raises nothing.

    Args:
        argv: arguments without the program's name; None is `sys.argv[1:]`, and a program that was interrupted ends
            at once: threads of a compiler that was stopped may crash while its libraries are taken down.
    """
    code = _guarded(argv)
    if argv is None and code == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _guarded(argv: Sequence[str] | None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    console = Console(json="--json" in flags)
    try:
        return _run(arguments, console)
    except SystemExit as stop:  # argparse, after --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        _detach_stdout()
        return READER_GONE
    except BaseException as error:
        return _report(error, console, debug="--debug" in flags)


def _run(arguments: Sequence[str], console: Console) -> int:
    commands = discover()
    named = commands.get(arguments[0]) if arguments else None
    if named is None:  # --help, --version, or no command
        _parser(commands)[0].parse_args(arguments)
        raise RequestError("no command", expected=f"one of {', '.join(commands)}", hint="see: latentrt --help")
    options = command_parser(arguments[0], named).parse(arguments[1:])
    _set_up_logging(options)
    check_requirements(f"latentrt {arguments[0]}", named.needs(options))
    with redirect_stdout(sys.stderr), links_followed(options.follow_links):  # what libraries print is no result
        return named.run(options, console)


def _report(error: BaseException, console: Console, *, debug: bool) -> int:
    problem = Problem.of(error)
    if debug:
        console.note("".join(traceback.format_exception(error)).rstrip())
    console.note(f"latentrt: {problem.line}")
    if console.json:
        console.result("", problem.document())
    return problem.exit_code


def whole_parser(commands: Mapping[str, Command]) -> tuple[Parser, list[Parser]]:
    """A parser that knows the arguments of every command, and those of the commands."""
    parser, rows = _parser(commands)
    for row, command in zip(rows, commands.values(), strict=True):
        _configure(row, command)
    return parser, rows


def _parser(commands: Mapping[str, Command]) -> tuple[Parser, list[Parser]]:
    parser = Parser(
        prog="latentrt",
        description="Compiles Stable Diffusion checkpoints into bundles and makes images with them.",
        epilog="Exit codes: 0 done, 1 a gate failed, 2 wrong use or bad input, 3 the environment lacks something.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"latentrt {latentrt.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    return parser, [subparsers.add_parser(name, help=command.help) for name, command in commands.items()]


def command_parser(name: str, command: Command) -> Parser:
    """The parser of what stands behind the command's name."""
    description = command.help[:1].upper() + command.help[1:] + "."
    parser = Parser(prog=f"latentrt {name}", description=description, allow_abbrev=False)
    _configure(parser, command)
    return parser


def _configure(parser: Parser, command: Command) -> None:
    command.configure(parser)
    common = parser.add_argument_group("output")
    common.add_argument(
        "--follow-links", action="store_true", help="let links in a bundle lead to files elsewhere; trust it first"
    )
    common.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    common.add_argument("-v", "--verbose", action="store_true", help="log what is done to stderr")
    common.add_argument("--debug", action="store_true", help="log everything, and show tracebacks")
    if command.essential is not None:
        parser.show_essential([*command.essential, "--json", "--verbose"])


def _set_up_logging(options: argparse.Namespace) -> None:
    logging.basicConfig(stream=sys.stderr, format="%(name)s: %(message)s", level=logging.WARNING)
    level = logging.DEBUG if options.debug else logging.INFO if options.verbose else logging.WARNING
    logging.getLogger("latentrt").setLevel(level)


def _detach_stdout() -> None:
    """Keeps the interpreter from complaining about the closed pipe once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
