"""`latentrt generate BUNDLE --prompts FILE -o DIR`: thousands of images as a dataset (docs/bulk.md)."""

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from latentrt.cli.arguments import count
from latentrt.cli.console import Bar, Console
from latentrt.cli.generate.starts import option
from latentrt.datasets.dataset import Dataset
from latentrt.datasets.request_file import BadLine, Line, read_lines
from latentrt.datasets.shards import FORMS
from latentrt.datasets.store import open_store
from latentrt.datasets.target import METADATA, SHARD, Layout
from latentrt.errors import LatentRTError, RequestError
from latentrt.pipeline import Pipeline
from latentrt.ray_data.run import RayDataset
from latentrt.request import Request

BATCH = 4
SHOWN = 20  # bad lines that are listed, of however many
FOLDER = "folder"


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
    group.add_argument(
        "--format", choices=(FOLDER, *FORMS), help=f"a file an image (default), or shards: {', '.join(FORMS)}"
    )
    group.add_argument("--shard-images", type=count, metavar="N", help=f"images of a shard ({SHARD})")


def refuse_alone(options: argparse.Namespace) -> None:
    """Refuses what goes with `--prompts` without it."""
    for name in _WITH_PROMPTS:
        if getattr(options, name) is not None:
            raise RequestError(f"{option(name)} without --prompts", expected="--prompts FILE with it")


def layout_of(options: argparse.Namespace) -> Layout:
    """How the options ask for the images to be stored.

    Raises:
        RequestError: a size of shards without shards.
        EnvironmentLacks: the library for shards is not installed.
    """
    form = FORMS.get(FOLDER if options.format is None else options.format)
    if form is None and options.shard_images is not None:
        raise RequestError("--shard-images without shards", expected=f"--format {' or '.join(FORMS)} with it")
    if form is not None:
        form.check_installed()
    return Layout(form, SHARD if options.shard_images is None else options.shard_images)


def read_prompts(options: argparse.Namespace, defaults: Request, console: Console) -> list[Line]:
    """The lines of `--prompts`; a bad one is a RequestError without `--on-error skip`."""
    root = Path() if options.prompts == "-" else Path(options.prompts).parent
    lines, bad = read_lines(_texts(options.prompts), defaults=defaults, root=root)
    _judge(bad, options, console)
    if not lines:
        raise RequestError(f"{options.prompts} holds no request", expected="a prompt or a JSON object a line")
    return lines


def open_dataset(pipe: Pipeline, lines: list[Line], options: argparse.Namespace, console: Console) -> Dataset:
    """The dataset that this process is to make."""
    console.status(f"checking {len(lines)} lines")
    return Dataset(
        pipe, lines, options.output, seed=options.seed, overwrite=options.overwrite, layout=layout_of(options)
    )


def make_dataset(dataset: Dataset | RayDataset, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Makes the images and returns the command's result."""
    _judge(dataset.bad, options, console)
    total, missing = len(dataset.items), len(dataset.missing)
    if missing < total:
        console.note(f"{total - missing} of {total} images are there")
    try:
        failed = _make(dataset, options, console, total=missing)
    except (KeyboardInterrupt, LatentRTError):
        there = total - len(dataset.missing)
        console.note(f"{there} of {total} images are in {options.output}; the same command goes on")
        raise
    layout, store = layout_of(options), open_store(options.output)
    return {
        "bundle": options.bundle,
        "backend": dataset.backend,
        "folder": store.path(),
        "format": FOLDER if layout.form is None else layout.form.name,
        "metadata": store.path(METADATA) if layout.form is None else None,
        "images": total - len(failed),
        "made": missing - len(failed),
        "failed": failed,
    }


def _make(
    dataset: Dataset | RayDataset, options: argparse.Namespace, console: Console, *, total: int
) -> dict[str, str]:
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


_WITH_PROMPTS = ("on_error", "format", "shard_images")
