"""A bundle as the options of a command ask for it to be loaded, and what is said meanwhile."""

import argparse
from typing import Any

import latentrt
from latentrt.backends import choose
from latentrt.cli.console import Console
from latentrt.engine import Preparation
from latentrt.pipeline import Pipeline

LONG_WAIT_S = 2.0  # compilations below are not worth a line


def open_pipeline(options: argparse.Namespace, console: Console, **more: Any) -> Pipeline:
    """The pipeline of `options.bundle` by the options of `add_execution`; `more` goes to `latentrt.load`.

    Raises:
        As `latentrt.load`; of the backend before anything is read.
    """
    choose(options.backend, device=options.device, compute=options.compute)
    console.status(f"opening {options.bundle}")
    return latentrt.load(
        options.bundle,
        backend=options.backend,
        device=options.device,
        compute=options.compute,
        threads=options.threads,
        cache_dir=options.cache_dir,
        memory=options.memory,
        notify=lambda event: _announce(event, console),
        **more,
    )


def _announce(event: Preparation, console: Console) -> None:
    """Says that a graph is being loaded or compiled, and afterwards that it took long."""
    if event.seconds is None:
        console.status(str(event))
    elif event.seconds >= LONG_WAIT_S:
        console.note(str(event))
