"""`latentrt generate BUNDLE PROMPT...`: images as files that say how they were made."""

import argparse
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import latentrt
from latentrt.cli.arguments import (
    add_execution,
    add_lora,
    add_memory,
    count,
    floats,
    integers,
    named_file,
    size,
    step_cache,
)
from latentrt.cli.command import Command
from latentrt.cli.console import Console
from latentrt.cli.generate.bulk import BATCH as BULK_BATCH
from latentrt.cli.generate.bulk import add_bulk, layout_of, make_dataset, open_dataset, read_prompts, refuse_alone
from latentrt.cli.generate.controls import add_controls, controls_of
from latentrt.cli.generate.on_ray import add_ray, ray_dataset, refuse_ray
from latentrt.cli.generate.pictures import BATCH, make_pictures, picture_paths
from latentrt.cli.generate.starts import add_starts, option, start_of, upscale_of
from latentrt.cli.opening import open_pipeline
from latentrt.datasets.option_parsing import describe_start, guidance_from, skip_layers_from
from latentrt.errors import RequestError
from latentrt.images.start import TEXT
from latentrt.output.result import Timings
from latentrt.pipeline import Pipeline
from latentrt.request import Request


def configure(parser: argparse.ArgumentParser) -> None:
    """The options carry the names of the arguments of `latentrt.load` and `Pipeline.generate`."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory made by `latentrt export`")
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="one or more texts, an image each")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="a .png, .jpg or .webp file, may hold {seed} and {index}; default: {seed}.png. With --prompts, a folder",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files, and images made with other settings")
    parser.add_argument(
        "--batch", type=count, metavar="N", help=f"the most images at a time ({BATCH}; with --prompts {BULK_BATCH})"
    )
    parser.add_argument(
        "--output-latent", type=Path, metavar="FILE", help="write the latents alone (.npy), decode nothing"
    )
    parser.add_argument("--no-metadata", action="store_true", help="leave out of a file how it was made")
    _add_request(parser)
    add_starts(parser)
    add_controls(parser)
    add_bulk(parser)
    add_ray(parser)
    add_memory(add_execution(parser), "that a run may take: where graphs do not fit, they load by turns")


def _add_request(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("request (defaults: see `latentrt inspect`)")
    group.add_argument("--negative", action="append", metavar="TEXT", help="one for all prompts, or one for each")
    group.add_argument("--syntax", default="weighted", metavar="NAME", help="of prompts: weighted (default) or plain")
    group.add_argument("--clip-skip", type=int, default=0, metavar="N", help="text layers to leave out at the top (0)")
    group.add_argument(
        "--seed", type=int, metavar="N", help="of the first image, image i uses SEED + i; default: drawn"
    )
    group.add_argument("--images", type=int, default=1, metavar="N", help="images of each prompt (1)")
    group.add_argument("--size", type=size, metavar="WIDTHxHEIGHT", help="in pixels")
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    group.add_argument("--guidance", type=float, metavar="SCALE", help="classifier-free guidance; 1 is off")
    group.add_argument("--guidance-interval", type=floats, metavar="A,B", help="its part of the run (0,1)")
    group.add_argument("--rescale", type=float, metavar="SHARE", help="guidance rescale, 0 to 1 (0)")
    group.add_argument("--sampler", metavar="NAME", help=", ".join(latentrt.sampler_names()))
    group.add_argument("--schedule", metavar="NAME", help=", ".join(latentrt.schedule_names()))
    group.add_argument("--sigmas", type=floats, metavar="A,B,...", help="explicit noise levels instead of a schedule")
    group.add_argument("--timesteps", type=integers, metavar="A,B,...", help="explicit timesteps instead of a schedule")
    group.add_argument("--eta", type=float, help="share of fresh noise, for ddim and tcd")
    group.add_argument("--denoising-end", type=float, metavar="SHARE", help="end after this share of the steps")
    group.add_argument("--skip-layers", type=integers, metavar="A,B,...", help="for skip-layer guidance")
    group.add_argument("--skip-guidance", type=float, metavar="SCALE", help="its scale (2.8)")
    group.add_argument("--skip-range", type=floats, metavar="A,B", help="its part of the run")
    group.add_argument(
        "--step-cache",
        dest="cache",
        type=step_cache,
        metavar="N|0,A,B,...",
        help="compute the whole network in every Nth call, or in the listed ones, alone (docs/step-caching.md)",
    )
    add_lora(group, "a .safetensors file added to the weights, at SCALE (1); may be repeated")
    group.add_argument(
        "--embedding",
        type=named_file,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="textual inversion, <NAME> in a prompt",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Everything that can be wrong is looked for before the work begins."""
    refuse_ray(options)
    return _run_one(options, console) if options.prompts is None else _run_many(options, console)


def _run_one(options: argparse.Namespace, console: Console) -> int:
    if not options.prompt:
        raise RequestError("no prompt", expected="one or more texts, or --prompts FILE")
    refuse_alone(options)
    if options.output is not None and options.output_latent is not None:
        raise RequestError("--output with --output-latent", expected="one of them")
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    request = _request(options, options.prompt, seed=seed)
    seeds = range(seed, seed + len(request.prompts) * request.images)
    paths = picture_paths(options, seeds)
    replaced = [path.exists() for path in paths]
    with _open(options, console) as pipe:
        made = make_pictures(pipe, request, paths, options, console)
        backend = pipe.backend
    rows = [
        {"path": str(path), "seed": seed, "replaced": there}
        for path, seed, there in zip(paths, seeds, replaced, strict=True)
    ]
    document = {
        "bundle": options.bundle,
        "backend": backend,
        "lora": [{"path": str(lora.path), "scale": lora.scale} for lora in options.lora],
        "images" if options.output_latent is None else "latents": rows,
        "timings_ms": asdict(made.timings),
        "request": {**asdict(replace(made.request, start=TEXT)), "start": _start_row(made.request, options)},
    }
    console.result(_text(rows, made.timings), document)
    return 0


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
    layout_of(options)
    lines = read_prompts(options, _request(options, [""]), console)
    if options.ray is not None:
        with ray_dataset(lines, options, console) as made_there:
            document = make_dataset(made_there, options, console)
            document["ray"] = {"nodes": len(made_there.actors.nodes), "actors": made_there.actors.count}
    else:
        with _open(options, console) as pipe:
            document = make_dataset(open_dataset(pipe, lines, options, console), options, console)
    console.result(f"{document['images']} images in {document['folder']}, {document['made']} of them new", document)
    return 0


def _open(options: argparse.Namespace, console: Console) -> Pipeline:
    return open_pipeline(options, console, embeddings=dict(options.embedding), tile=options.tile, lora=options.lora)


ESSENTIAL = (
    *("--output", "--overwrite", "--negative", "--seed", "--images", "--size", "--steps", "--guidance", "--sampler"),
    *("--schedule", "--lora", "--image", "--strength", "--mask", "--control", "--upscale", "--prompts", "--backend"),
)
COMMAND = Command(help="make images from a bundle", configure=configure, run=run, essential=ESSENTIAL)


_AS_THEY_ARE = (
    *("syntax", "clip_skip", "images", "size", "steps", "sampler", "schedule", "sigmas", "timesteps", "eta"),
    *("denoising_end", "cache"),
)
"""Options that are fields of a request by the same name."""


def _request(options: argparse.Namespace, prompts: Sequence[str], *, seed: int | None = None) -> Request:
    negative = options.negative if options.negative is not None else [""]
    return Request(
        tuple(prompts),
        negative=negative[0] if len(negative) == 1 else tuple(negative),
        seed=seed,
        guidance=guidance_from(vars(options)),
        skip_layers=skip_layers_from(vars(options), spelling=option),
        output="image" if options.output_latent is None else "latent",
        start=start_of(options),
        control=controls_of(options),
        upscale=upscale_of(options),
        **{name: getattr(options, name) for name in _AS_THEY_ARE},
    )


def _text(rows: Sequence[Mapping[str, Any]], timings: Timings) -> str:
    calls = timings.steps_ms
    lines = [f"{row['path']}  seed {row['seed']}{'  replaced' if row['replaced'] else ''}" for row in rows]
    lines.append(
        f"{timings.total_ms / 1e3:.2f} s: text {timings.text_ms:.0f} ms, {len(calls)} calls of"
        f" {sum(calls) / len(calls):.0f} ms, decoding {timings.decode_ms:.0f} ms"
    )
    return "\n".join(lines)
