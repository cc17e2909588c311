"""`latentrt generate BUNDLE PROMPT...`: images as PNG files that say how they were made."""

import argparse
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import latentrt
from latentrt.backends import choose
from latentrt.cli.arguments import add_execution, add_lora, floats, integers, named_file, size
from latentrt.cli.bulk import add_bulk, make_dataset, read_prompts, refuse_alone
from latentrt.cli.command import Command
from latentrt.cli.console import Bar, Console
from latentrt.cli.controls import add_controls, controls_of
from latentrt.cli.latents import check_latent_output, write_latents
from latentrt.cli.starts import add_starts, start_of, upscale_of
from latentrt.engine import Preparation
from latentrt.errors import EnvironmentLacks, RequestError
from latentrt.metadata import image_parameters
from latentrt.pipeline import Pipeline
from latentrt.png import expand_pattern, write_png
from latentrt.request import Request
from latentrt.result import Result, Step, Timings
from latentrt.start import TEXT
from latentrt.tasks import describe_start

LONG_WAIT_S = 2.0  # compilations below are not worth a line


def configure(parser: argparse.ArgumentParser) -> None:
    """The options carry the names of the arguments of `latentrt.load` and `Pipeline.generate`."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory made by `latentrt export`")
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="one or more texts, an image each")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="may hold {seed} and {index}; default: {seed}.png. With --prompts, a folder",
    )
    parser.add_argument(
        "--output-latent", type=Path, metavar="FILE", help="write the latents alone (.npy), decode nothing"
    )
    parser.add_argument("--no-metadata", action="store_true", help="leave the `parameters` text out of the PNG")
    group = parser.add_argument_group("request (defaults: see `latentrt inspect`)")
    group.add_argument("--negative", action="append", metavar="TEXT", help="one for all prompts, or one for each")
    group.add_argument("--syntax", default="weighted", metavar="NAME", help="of prompts: weighted (default) or plain")
    group.add_argument("--clip-skip", type=int, default=0, metavar="N", help="text layers to leave out at the top (0)")
    group.add_argument("--seed", type=int, help="of the first image, image i uses SEED + i; default: drawn")
    group.add_argument("--images", type=int, default=1, metavar="N", help="images of each prompt (1)")
    group.add_argument("--size", type=size, metavar="WIDTHxHEIGHT", help="in pixels")
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    group.add_argument("--guidance", type=float, metavar="SCALE", help="classifier-free guidance; 1 is off")
    group.add_argument(
        "--guidance-interval", type=floats, default=(0.0, 1.0), metavar="A,B", help="its part of the run (0,1)"
    )
    group.add_argument("--rescale", type=float, default=0.0, metavar="SHARE", help="guidance rescale, 0 to 1 (0)")
    group.add_argument("--sampler", metavar="NAME", help=", ".join(latentrt.sampler_names()))
    group.add_argument("--schedule", metavar="NAME", help=", ".join(latentrt.schedule_names()))
    group.add_argument("--sigmas", type=floats, metavar="A,B,...", help="explicit noise levels instead of a schedule")
    group.add_argument("--timesteps", type=integers, metavar="A,B,...", help="explicit timesteps instead of a schedule")
    group.add_argument("--eta", type=float, help="share of fresh noise, for ddim and tcd")
    group.add_argument("--stop", type=float, metavar="SHARE", help="end after this share of the steps")
    group.add_argument("--skip-layers", type=integers, default=(), metavar="A,B,...", help="for skip-layer guidance")
    group.add_argument("--skip-guidance", type=float, default=2.8, metavar="SCALE", help="its scale (2.8)")
    group.add_argument("--skip-range", type=floats, default=(0.01, 0.2), metavar="A,B", help="its part of the run")
    add_lora(group, "a .safetensors file added to the weights, at SCALE (1); may be repeated")
    group.add_argument(
        "--embedding",
        type=named_file,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="textual inversion, <NAME> in a prompt",
    )
    add_starts(parser)
    add_controls(parser)
    add_bulk(parser)
    add_execution(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    """Everything that can be wrong is looked for before the work begins."""
    return _run_one(options, console) if options.prompts is None else _run_many(options, console)


def _run_one(options: argparse.Namespace, console: Console) -> int:
    if not options.prompt:
        raise RequestError("no prompt", expected="one or more texts, or --prompts FILE")
    refuse_alone(options)
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    request = _request(options, options.prompt, seed=seed)
    count = len(request.prompts) * request.images
    seeds = range(seed, seed + count)
    paths = _paths(options, seeds)
    with _open(options, console) as pipe:
        made = pipe.run(request, progress=_Denoising(console).show)
        (request,) = made.requests
        backend = pipe.backend
        if made.latents is None:
            _write_images(paths, made, pipe, metadata=not options.no_metadata)
        else:
            write_latents(options.output_latent, made.latents)
    images = [{"path": str(path), "seed": seed} for path, seed in zip(paths, seeds, strict=True)]
    document = {
        "bundle": options.bundle,
        "backend": backend,
        "lora": [{"path": str(lora.path), "scale": lora.scale} for lora in options.lora],
        "images" if made.latents is None else "latents": images,
        "timings_ms": asdict(made.timings),
        "request": {**asdict(replace(request, start=TEXT)), "start": _start_row(request, options)},
    }
    console.result(_text(paths, seeds, made.timings), document)
    return 0


def _paths(options: argparse.Namespace, seeds: Sequence[int]) -> list[Path]:
    """Where each image goes; latents go into one file."""
    if options.output_latent is not None:
        if options.output is not None:
            raise RequestError("--output with --output-latent", expected="one of them")
        check_latent_output(options.output_latent)
        return [options.output_latent] * len(seeds)
    pattern = "{seed}.png" if options.output is None else options.output
    paths = [expand_pattern(pattern, index=i, seed=seed, count=len(seeds)) for i, seed in enumerate(seeds)]
    check_output(paths)
    return paths


def _write_images(paths: Sequence[Path], made: Result, pipe: Pipeline, *, metadata: bool) -> None:
    (request,) = made.requests
    shown = replace(request, size=(made.images.shape[2], made.images.shape[1]))
    texts: Sequence[str | None] = [None] * len(paths)
    if metadata:
        texts = image_parameters(shown, made.seeds, model=pipe.bundle.name, lora=pipe.lora)
    for path, image, text in zip(paths, made.images, texts, strict=True):
        write_png(path, image, parameters=text)


def _start_row(request: Request, options: argparse.Namespace) -> dict[str, Any]:
    """As JSON values: of a latent, its file."""
    row = describe_start(request.start)
    return row if options.latent is None else row | {"x": options.latent}


def _run_many(options: argparse.Namespace, console: Console) -> int:
    if options.prompt or options.output is None:
        raise RequestError(
            "--prompts with PROMPT" if options.prompt else "--prompts without --output",
            expected="--prompts FILE -o FOLDER",
        )
    lines = read_prompts(options, _request(options, [""]), console)
    with _open(options, console) as pipe:
        document = make_dataset(pipe, lines, options, console)
    console.result(f"{document['images']} images in {document['folder']}, {document['made']} of them new", document)
    return 0


def _open(options: argparse.Namespace, console: Console) -> Pipeline:
    choose(options.backend, device=options.device, compute=options.compute)
    console.status(f"opening {options.bundle}")
    return latentrt.load(
        options.bundle,
        backend=options.backend,
        device=options.device,
        compute=options.compute,
        threads=options.threads,
        cache_dir=options.cache_dir,
        notify=lambda event: announce(event, console),
        embeddings=dict(options.embedding),
        tile=options.tile,
        lora=options.lora,
    )


COMMAND = Command(help="make images from a bundle", configure=configure, run=run)


def check_output(paths: Sequence[Path]) -> None:
    """Tries the folders that images will be written to.

    Raises:
        RequestError: no such folder, a name that is no PNG's, or a directory of that name.
        EnvironmentLacks: a folder that cannot be written to.
    """
    for path in paths:
        if path.suffix.lower() != ".png" or path.is_dir():
            raise RequestError(f"output '{path}'", expected="the name of a PNG file", hint="such as out/{seed}.png")
    for folder in {path.parent for path in paths}:
        if not folder.is_dir():
            raise RequestError(f"no folder {folder}", expected="an existing one", hint=f"create it: mkdir -p {folder}")
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(4096))
        except OSError as error:
            raise EnvironmentLacks(
                f"cannot write to {folder} ({error.strerror})", hint="make room, or choose another folder"
            ) from error


def announce(event: Preparation, console: Console) -> None:
    """Says that a graph is being loaded or compiled, and afterwards that it took long."""
    if event.seconds is None:
        console.status(str(event))
    elif event.seconds >= LONG_WAIT_S:
        console.note(str(event))


def _request(options: argparse.Namespace, prompts: Sequence[str], *, seed: int | None = None) -> Request:
    negative = options.negative if options.negative is not None else [""]
    return Request(
        tuple(prompts),
        negative=negative[0] if len(negative) == 1 else tuple(negative),
        syntax=options.syntax,
        clip_skip=options.clip_skip,
        seed=seed,
        images=options.images,
        size=options.size,
        steps=options.steps,
        guidance=options.guidance,
        guidance_interval=options.guidance_interval,
        rescale=options.rescale,
        sampler=options.sampler,
        schedule=options.schedule,
        sigmas=options.sigmas,
        timesteps=options.timesteps,
        eta=options.eta,
        stop=options.stop,
        output="image" if options.output_latent is None else "latent",
        skip_layers=options.skip_layers,
        skip_guidance=options.skip_guidance,
        skip_range=options.skip_range,
        start=start_of(options),
        control=controls_of(options),
        upscale=upscale_of(options),
    )


class _Denoising:
    """A bar of the engine calls, which appears with the first of them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Bar | None = None

    def show(self, step: Step) -> None:
        if self._bar is None or step.index == 0:
            self._bar = Bar(self._console, "denoising", total=step.total)
        self._bar.update(step.index + 1, text=f"{step.seconds:.2f} s a call")
        if step.index + 1 == step.total:
            self._console.status("decoding")


def _text(paths: Sequence[Path], seeds: Sequence[int], timings: Timings) -> str:
    calls = timings.steps_ms
    lines = [f"{path}  seed {seed}" for path, seed in zip(paths, seeds, strict=True)]
    lines.append(
        f"{timings.total_ms / 1e3:.2f} s: text {timings.text_ms:.0f} ms, {len(calls)} calls of"
        f" {sum(calls) / len(calls):.0f} ms, decoding {timings.decode_ms:.0f} ms"
    )
    return "\n".join(lines)
