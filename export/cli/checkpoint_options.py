"""The options by which commands take a checkpoint in any of its forms."""

import argparse
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from latentrt.cli.console import Console

if TYPE_CHECKING:
    from latentrt.export.checkpoint.folder import Checkpoint

CHECKPOINT_HELP = "a folder in diffusers' layout, its name on a hub, or a single .safetensors or .ckpt file"


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """How a checkpoint is read."""
    group = parser.add_argument_group("the checkpoint (docs/checkpoints.md)")
    group.add_argument(
        "--components",
        type=Path,
        metavar="FOLDER",
        help="a diffusers folder to take missing parts from: tokenizer, text encoders",
    )
    group.add_argument(
        "--vae",
        "--decoder",
        type=Path,
        metavar="PATH",
        help="take the VAE from this folder or file; a folder may hold a tiny one (AutoencoderTiny)",
    )
    group.add_argument(
        "--prediction", choices=("epsilon", "v"), help="what the network predicts, if the checkpoint does not say"
    )
    group.add_argument("--variant", metavar="NAME", help="prefer a folder's weights of this name, such as fp16")
    group.add_argument(
        "--allow-pickle", action="store_true", help="read .ckpt, .pt and .bin too, tensors and plain values only"
    )


def opened(
    source: str, options: argparse.Namespace, console: Console, *, beside: Path | None = None
) -> AbstractContextManager["Checkpoint"]:
    """The checkpoint called `source`, read as the options say; `open_source` describes it."""
    from latentrt.export.checkpoint.sources import SourceOptions, open_source

    return open_source(
        source,
        options=SourceOptions(
            variant=options.variant,
            allow_pickle=options.allow_pickle,
            vae=options.vae,
            components=options.components,
            prediction=options.prediction,
        ),
        beside=beside,
        note=console.note,
    )
