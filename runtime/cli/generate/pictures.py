"""The pictures of one request, made in batches and written as they are done."""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentrt.arrays import FloatArray
from latentrt.cli.console import Bar, Console
from latentrt.cli.generate.latents import check_latent_output, write_latents
from latentrt.datasets.batches import batches, image_requests, work
from latentrt.errors import EnvironmentLacks, LatentRTError, RequestError
from latentrt.output.picture_file import check_picture, write_picture
from latentrt.output.png import expand_pattern
from latentrt.output.result import Result, Step, Timings
from latentrt.pipeline import Pipeline
from latentrt.request import Request

BATCH = 1
"""Larger ones are slower to show anything, take memory in proportion and, on a CPU, save next to nothing."""


@dataclass(frozen=True, slots=True)
class PicturesMade:
    """What `make_pictures` did: the request with its defaults, and the times of all batches together."""

    request: Request
    timings: Timings


def picture_paths(options: argparse.Namespace, seeds: Sequence[int]) -> list[Path]:
    """Where each picture goes, or that all go into one file of latents."""
    if options.output_latent is not None:
        check_latent_output(options.output_latent, overwrite=options.overwrite)
        return [options.output_latent] * len(seeds)
    pattern = "{seed}.png" if options.output is None else options.output
    paths = [expand_pattern(pattern, index=i, seed=seed, count=len(seeds)) for i, seed in enumerate(seeds)]
    for path in paths:
        check_picture(path, overwrite=options.overwrite)
    for folder in {path.parent for path in paths}:
        check_folder(folder)
    return paths


def check_folder(folder: Path) -> None:
    """Raises unless files can be written there."""
    if not folder.is_dir():
        raise RequestError(f"no folder {folder}", expected="an existing one", hint=f"create it: mkdir -p {folder}")
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        raise EnvironmentLacks(
            f"cannot write to {folder} ({error.strerror})", hint="make room, or choose another folder"
        ) from error


def make_pictures(
    pipe: Pipeline, request: Request, paths: Sequence[Path], options: argparse.Namespace, console: Console
) -> PicturesMade:
    """Makes the pictures of a request, `--batch` at a time; what is written stays if a later batch fails."""
    plan = pipe.plan([request])
    (settled,) = plan.requests
    images = list(zip(image_requests(plan), paths, strict=True))
    latents: list[FloatArray] = []
    timings: list[Timings] = []
    done = 0
    every = Bar(console, "images", total=len(images), lines=True) if len(images) > 1 else None
    try:
        for part in _parts(pipe, images, BATCH if options.batch is None else options.batch):
            shown = _Denoising(console, first=done + 1, count=len(part), total=len(images))
            made = pipe.run(*(single for single, _ in part), progress=shown.show)
            if made.latents is None:
                _write(made, [path for _, path in part], options)
            else:
                latents.append(made.latents)
            timings.append(made.timings)
            done += len(part)
            if every is not None:
                every.update(done)
    except (KeyboardInterrupt, LatentRTError):
        if done and not latents:
            console.note(f"{done} of {len(images)} images are written")
        raise
    if latents:
        write_latents(options.output_latent, np.concatenate(latents), overwrite=options.overwrite)
    total = timings[0]
    for later in timings[1:]:
        total = total.then(later)
    return PicturesMade(settled, total)


_Images = Sequence[tuple[Request, Path]]


def _parts(pipe: Pipeline, images: _Images, size: int) -> Iterator[_Images]:
    """Batches of images that do not change each other; those of latents stay in order."""
    if size == 1:
        return ([image] for image in images)
    kinds = {id(single): work(pipe, pipe.plan([single])) for single, _ in images}
    return batches(
        images, lambda image: pipe.images_at_a_time(image[0], most=size), key=lambda image: kinds[id(image[0])]
    )


def _write(made: Result, paths: Sequence[Path], options: argparse.Namespace) -> None:
    texts = [None] * len(paths) if options.no_metadata else made.parameters()
    for path, image, text in zip(paths, made.images, texts, strict=True):
        write_picture(path, image, parameters=text, overwrite=options.overwrite)


class _Denoising:
    """A bar of the engine calls of a batch, which appears with the first of them."""

    def __init__(self, console: Console, *, first: int, count: int, total: int) -> None:
        self._console = console
        self._bar: Bar | None = None
        numbers = f"{first}" if count == 1 else f"{first}-{first + count - 1}"
        self._label = "denoising" if total == 1 else f"image {numbers} of {total}"

    def show(self, step: Step) -> None:
        if self._bar is None or step.index == 0:
            self._bar = Bar(self._console, self._label, total=step.total)
        self._bar.update(step.index + 1, text=f"{step.seconds:.2f} s a call")
        if step.index + 1 == step.total:
            self._console.status("decoding")
