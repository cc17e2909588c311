"""Latents in files of NumPy's format, for `latentrt generate --output-latent` and `--latent`."""

import io
from pathlib import Path

import numpy as np

from latentrt.arrays import FloatArray
from latentrt.errors import RequestError
from latentrt.files.atomic import write_whole

SUFFIX = ".npy"


def check_latent_output(path: Path, *, overwrite: bool) -> None:
    """Raises RequestError for a name or a folder that no latents can be written to, or a file that is there."""
    if path.suffix.lower() != SUFFIX or path.is_dir():
        raise RequestError(f"output '{path}'", expected=f"the name of a file that ends in {SUFFIX}")
    if not path.parent.is_dir():
        raise RequestError(f"no folder {path.parent}", expected="an existing one", hint=f"mkdir -p {path.parent}")
    if path.exists() and not overwrite:
        raise RequestError(f"{path} is there already", expected="a new name", hint="or --overwrite")


def write_latents(path: Path, latents: FloatArray, *, overwrite: bool) -> None:
    """Writes float32 [B, C, h, w], whole or not at all; what is there is replaced with `overwrite` alone."""
    check_latent_output(path, overwrite=overwrite)
    buffer = io.BytesIO()
    np.save(buffer, latents, allow_pickle=False)
    write_whole(path, buffer.getvalue())


def read_latent(path: Path) -> FloatArray:
    """What `write_latents` wrote; its shape and type are judged by `latentrt.Latent`."""
    try:
        latents: FloatArray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RequestError(f"{path} cannot be read ({error})", expected=f"latents in a {SUFFIX} file") from error
    return latents
