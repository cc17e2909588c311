"""A graph that OpenVINO has compiled, in a file: written by its own cache, read without the graph that it came from.

Its cache reads the graph and all weights to find what belongs to them, and has both in memory then. Our key says what
belongs to a graph, so that the file alone is mapped; what was packed from it leaves memory again.
"""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.environment.privacy import not_installed

with not_installed("openvino_telemetry"):
    import openvino as ov

log = logging.getLogger(__name__)

BLOB = "graph.blob"
_HEAD = b"<compiled_blob "  # of OpenVINO's cache: a line of XML, before what a plugin has exported
_LINE = 1 << 16


def compile_into(core: Any, model: Any, config: Mapping[str, Any], folder: Path | None) -> Any:
    """The compiled model, which `folder` holds from then on; None and a folder that cannot be written keep nothing.
    The file appears whole: one that a process was killed at is never read."""
    if folder is None or not os.access(folder, os.W_OK):
        return core.compile_model(model, "CPU", dict(config))
    with tempfile.TemporaryDirectory(dir=folder, prefix="part-", ignore_cleanup_errors=True) as scratch:
        compiled = core.compile_model(model, "CPU", {**config, "CACHE_DIR": scratch})
        for blob in Path(scratch).glob("*.blob"):
            blob.replace(folder / BLOB)
    return compiled


def compiled_from(core: Any, config: Mapping[str, Any], folder: Path | None) -> tuple[Any, mmap.mmap | None]:
    """The compiled model that `folder` holds, and its file, which is to stay as long; None for both where there is none
    that can be read."""
    if folder is None or not (folder / BLOB).is_file():
        return None, None
    with (folder / BLOB).open("rb") as file:
        head = file.readline(_LINE)
    if _HEAD not in head:
        log.warning("%s is no compiled graph: compiling anew", folder / BLOB)
        return None, None
    with (folder / BLOB).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    blob = np.frombuffer(mapped, np.uint8)[len(head) :]
    try:
        compiled = core.import_model(ov.Tensor(blob, shared_memory=True), "CPU", dict(config))
    except RuntimeError as error:
        log.warning("%s cannot be read (%s): compiling anew", folder / BLOB, str(error).splitlines()[-1])
        return None, None
    if hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)  # the weights are packed
    return compiled, mapped
