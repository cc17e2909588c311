"""Torch, diffusers and transformers without their banners, bars and warnings: none is about the user's work."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LIBRARIES = ("torch", "diffusers", "transformers", "huggingface_hub", "onnxscript", "onnx_ir")


@contextmanager
def quiet(*, verbose: bool = False) -> Iterator[None]:
    """Silences them, their import included; what they say of errors is kept. `verbose` leaves everything as it is."""
    if verbose:
        yield
        return
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _disable_bars()
        yield


def _disable_bars() -> None:
    """Both libraries draw a bar for every part that they load, and read no variable that stops them."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
