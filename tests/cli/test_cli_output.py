"""Where words go, and what becomes of exceptions."""

import errno
import io

import pytest

from latentrt.cli import inspect as inspect_module
from latentrt.cli import main
from latentrt.cli.console import Bar, Console, table
from latentrt.errors import BackendError, GateError, LatentRTError, RequestError
from latentrt.problems import Problem, error_from


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("error", "code", "parts"),
    [
        (RequestError("a", expected="b", hint="c"), 2, ("error: a; expected b; c",)),
        (GateError("a"), 1, ("error: a",)),
        (BackendError("a"), 3, ("error: a",)),
        (KeyboardInterrupt(), 130, ("interrupted",)),
        (MemoryError(), 3, ("error: memory ran out", "smaller size")),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 3, ("/x: No space left", "free some disk space")),
        (ValueError("odd\nthing"), 70, ("internal error: ValueError: odd thing", "report it", "--debug")),
    ],
)
def test_every_exception_is_a_line_and_a_code(error, code, parts, cli, tiny_bundle, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(inspect_module, "describe", fail)
    outcome = cli("inspect", tiny_bundle, "--json")
    assert outcome.code == code
    (line,) = outcome.err.splitlines()
    assert all(part in line for part in parts)
    assert outcome.document["exit_code"] == code
    debug = cli("inspect", tiny_bundle, "--debug")
    assert "Traceback" in debug.err
    assert debug.err.splitlines()[-1] == line
    assert debug.out == ""


def test_a_reader_that_has_gone_is_no_error(tiny_bundle, monkeypatch, capfd):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

        def fileno(self) -> int:
            return sink.fileno()

    with open("/dev/null", "w") as sink:  # noqa: PTH123 - a descriptor to lose
        monkeypatch.setattr("sys.stdout", Closed())
        assert main(["inspect", str(tiny_bundle)]) == 141
    assert capfd.readouterr().err == ""


def test_errors_survive_a_process_boundary():
    error = RequestError("found", expected="this", hint="do that")
    again = error_from(Problem.of(error).document())
    assert type(again) is RequestError
    assert str(again) == str(error)
    unknown = error_from(Problem.of(ValueError("odd")).document())
    assert isinstance(unknown, LatentRTError)


def test_a_bar_is_drawn_on_a_terminal_only():
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        console = Console(out=io.StringIO(), err=stream)
        bar = Bar(console, "denoising", total=4)
        bar.update(1, text="0.10 s a call")
        bar.update(4)
        console.result("done", {})
    assert file.getvalue() == ""
    assert "denoising [######..................] 1/4" in terminal.getvalue()
    assert "[########################] 4/4" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[2K")


def test_a_note_replaces_the_transient_line():
    terminal = Terminal()
    console = Console(err=terminal)
    console.status("working")
    console.note("compiled")
    assert terminal.getvalue() == "working\r\x1b[2Kcompiled\n"


def test_table():
    assert table([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc   d"
