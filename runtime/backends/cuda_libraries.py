"""CUDA's libraries from NVIDIA's wheels, for a process that nobody else has loaded them into."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

log = logging.getLogger(__name__)

# In the order in which they need each other.
LIBRARIES = ("libcudart", "libnvrtc", "libcublasLt", "libcublas", "libcurand", "libcufft", "libcudnn")


def load_cuda_libraries(
    folders: Iterable[Path] | None = None, *, load: Callable[[str], object] | None = None
) -> list[Path]:
    """Loads what the wheels have, so that libraries which name them find them; what cannot be loaded is logged.

    Wheels may lie in several folders of packages, each with its own `nvidia/`, and hold their libraries in
    `cu13/lib`, `cudnn/lib` and the like.

    Args:
        folders: each a folder `nvidia`; None: all that Python finds.
        load: loads a file; None: so that all of the process sees its symbols.

    Returns:
        The files that were loaded.
    """
    loaded = []
    places = list(_wheels() if folders is None else folders)
    for name in LIBRARIES:
        for path in sorted(file for place in places for file in place.glob(f"*/lib/{name}.so.*")):
            try:
                (load if load is not None else _load)(str(path))
            except OSError as error:
                log.info("%s cannot be loaded: %s", path, error)
                continue
            loaded.append(path)
            break
    return loaded


def _wheels() -> list[Path]:
    spec = find_spec("nvidia")
    found = spec.submodule_search_locations if spec is not None else None
    return [Path(folder) for folder in found or ()]


def _load(path: str) -> object:
    return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
