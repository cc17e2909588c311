"""`latentrt generate BUNDLE --prompts FILE -o DIR`: thousands of images as a dataset (docs/bulk.md)."""

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from latentrt.cli.console import Bar, Console
from latentrt.datasets.dataset import METADATA, Dataset
from latentrt.datasets.request_file import BadLine, Line, read_lines
from latentrt.errors import LatentRTError, RequestError
from latentrt.pipeline import Pipeline
from latentrt.request import Request

BATCH = 4
SHOWN = 20  # bad lines that are listed, of however many


def add_bulk(parser: argparse.ArgumentParser) -> None:
    """The options that go with `--prompts`."""
    group = parser.add_argument_group("many images")
    group.add_argument(
        "--prompts",
        metavar="FILE",
        help="a prompt or a JSON object a line, `-` for standard input; OUTPUT is a folder, and a run that was"
        " interrupted goes on where it stopped",
    )
    group.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        help="what a bad line does: stop before any work (default), or be left out",
    )


def refuse_alone(options: argparse.Namespace) -> None:
    """Refuses what goes with `--prompts` without it."""
    if options.on_error is not None:
        raise RequestError("--on-error without --prompts", expected="--prompts FILE with it")


def read_prompts(options: argparse.Namespace, defaults: Request, console: Console) -> list[Line]:
    """The lines of `--prompts`; a bad one is a RequestError without `--on-error skip`."""
    root = Path() if options.prompts == "-" else Path(options.prompts).parent
    lines, bad = read_lines(_texts(options.prompts), defaults=defaults, root=root)
    _judge(bad, options, console)
    if not lines:
        raise RequestError(f"{options.prompts} holds no request", expected="a prompt or a JSON object a line")
    return lines


def make_dataset(pipe: Pipeline, lines: list[Line], options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Makes the images and returns the command's result."""
    folder = Path(options.output)
    console.status(f"checking {len(lines)} lines")
    dataset = Dataset(pipe, lines, folder, seed=options.seed, overwrite=options.overwrite)
    _judge(dataset.bad, options, console)
    total, resumed = len(dataset.items), len(dataset.items) - len(dataset.missing)
    if resumed:
        console.note(f"{resumed} of {total} images are there")
    try:
        failed = _make(dataset, options, console, total=total - resumed)
    except (KeyboardInterrupt, LatentRTError):
        console.note(f"{total - len(dataset.missing)} of {total} images are in {folder}; the same command goes on")
        raise
    return {
        "bundle": options.bundle,
        "backend": pipe.backend,
        "folder": str(folder),
        "metadata": str(folder / METADATA),
        "images": total - len(failed),
        "made": total - resumed - len(failed),
        "failed": failed,
    }


def _make(dataset: Dataset, options: argparse.Namespace, console: Console, *, total: int) -> dict[str, str]:
    """Why images could not be made, by their names."""
    failed: dict[str, str] = {}
    bar, done = Bar(console, "images", total=total, lines=True), 0
    batch = BATCH if options.batch is None else options.batch
    skip = options.on_error == "skip"
    with closing(dataset.make(batch=batch, skip_failures=skip, parameters=not options.no_metadata)) as batches:
        for made in batches:
            for name, error in made.failed.items():
                console.note(f"{name} was not made: {error}")
                failed[name] = str(error)
            done += len(made.names) + len(made.failed)
            bar.update(done, text=made.names[-1] if made.names else "")
    return failed


def _texts(path: str) -> list[str]:
    """The file's lines; JSON texts may hold other characters that end a line for `str.splitlines`."""
    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return raw.decode("utf-8-sig").split("\n")
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror})", expected="a text file") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 (byte {error.start})", expected="text in UTF-8") from error


def _judge(bad: list[BadLine] | tuple[BadLine, ...], options: argparse.Namespace, console: Console) -> None:
    """Says which lines are bad; stops unless they are to be left out."""
    if not bad:
        return
    for line in bad[:SHOWN]:
        console.note(str(line))
    if options.on_error != "skip":
        raise RequestError(
            f"bad lines in {options.prompts}: {len(bad)}, the first is line {bad[0].number}",
            hint="correct them, or leave them out with --on-error skip",
        )
    console.note(f"{len(bad)} bad lines are left out")
