"""`latentrt generate BUNDLE --prompts FILE -o DIR --ray [ADDRESS]`: the same dataset by a Ray cluster."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentrt.cli.arguments import count, positive
from latentrt.cli.console import Console
from latentrt.cli.generate.bulk import layout_of
from latentrt.cli.generate.starts import option
from latentrt.datasets.remote_store import is_url
from latentrt.datasets.request_file import Line
from latentrt.environment.ray_cluster import connected
from latentrt.errors import RequestError
from latentrt.files.names import links_allowed
from latentrt.ray_data.opening import Opening
from latentrt.ray_data.resources import Wish
from latentrt.ray_data.run import RayDataset

OWN = ("ray_actors", "ray_cpus", "ray_gpus")


def add_ray(parser: argparse.ArgumentParser) -> None:
    """The options that go with `--ray`."""
    group = parser.add_argument_group("many images on a Ray cluster (docs/ray-data.md)")
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="have the images of --prompts made by a Ray cluster: HOST:PORT, auto, or local; default: RAY_ADDRESS, or"
        " one that runs on this machine, or a new one",
    )
    group.add_argument("--ray-actors", type=count, metavar="N", help="processes with the bundle (as many as fit)")
    group.add_argument("--ray-cpus", type=positive, metavar="N", help="cores of each (a node's; on GPUs 1)")
    group.add_argument("--ray-gpus", type=positive, metavar="N", help="GPUs of each (with --device cuda 1)")


def refuse_ray(options: argparse.Namespace) -> None:
    """Refuses what goes with `--ray` without it, and `--ray` without `--prompts`."""
    for name in OWN:
        if getattr(options, name) is not None and options.ray is None:
            raise RequestError(f"{option(name)} without --ray", expected="--ray with it")
    if options.ray is not None and options.ray.startswith("ray://"):
        raise RequestError(
            f"--ray {options.ray}",
            expected="HOST:PORT of the cluster itself: the driver is one of its processes",
            hint="run the command on a node, or have it run there: ray job submit -- latentrt generate ...",
        )
    if options.ray is not None and options.memory is not None:
        raise RequestError("--memory with --ray", expected="one of them", hint="an actor takes what its images need")
    if options.ray is not None and options.prompts is None:
        raise RequestError("--ray without --prompts", expected="--prompts FILE with it")


@contextmanager
def ray_dataset(lines: list[Line], options: argparse.Namespace, console: Console) -> Iterator[RayDataset]:
    """The dataset that a cluster is to make; the connection ends with the block.

    Raises:
        EnvironmentLacks: no Ray, nobody at the address, or nodes that differ from this one.
    """
    console.status("connecting to Ray")
    with connected(options.ray or None) as ray:
        console.status(f"checking {len(lines)} lines")
        yield RayDataset(
            ray,
            opening_of(options),
            lines,
            options.output if is_url(options.output) else Path(options.output).absolute(),
            wish=Wish(actors=options.ray_actors, cpus=options.ray_cpus, gpus=options.ray_gpus),
            seed=options.seed,
            overwrite=options.overwrite,
            layout=layout_of(options),
            say=console.note,
        )


def opening_of(options: argparse.Namespace) -> Opening:
    """How every process of the cluster opens the bundle."""
    return Opening(
        bundle=str(Path(options.bundle).absolute()),
        backend=options.backend,
        device=options.device,
        compute=options.compute,
        threads=options.threads,
        cache_dir=None if options.cache_dir is None else str(Path(options.cache_dir).absolute()),
        lora=tuple(options.lora),
        embeddings=tuple(options.embedding),
        tile=options.tile,
        follow_links=links_allowed(),
        folder=str(Path.cwd()),
    )
