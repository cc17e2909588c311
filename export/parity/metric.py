"""The user's own measure of images, and what a bundle loses by it, image by image. Imports no torch."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from latentrt.errors import RequestError
from latentrt.export.parity.measurement import Measurement
from latentrt.output.result import Images

# (images uint8 [N, H, W, 3], N prompts) -> N scores; more is better.
Metric = Callable[[Images, list[str]], Sequence[float]]


@cache
def load_metric(name: str) -> Metric:
    """The function called `module:function` or `path.py:function`."""
    place, _, attribute = name.rpartition(":")
    expected = "MODULE:FUNCTION or FILE.py:FUNCTION"
    if not place or not attribute:
        raise RequestError(f"metric '{name}'", expected=expected)
    try:
        module = _module_from(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        raise RequestError(
            f"metric '{name}': {place} cannot be imported ({type(error).__name__}: {error})", expected=expected
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise RequestError(f"metric '{name}': {place} has no function {attribute}", expected=expected)
    metric: Metric = function
    return metric


def scores(metric: Metric, images: Images, prompts: Sequence[str]) -> list[float]:
    """The score of each image: one finite number, or a RequestError."""
    name = getattr(metric, "__name__", "metric")
    try:
        found = np.asarray(metric(images, list(prompts)), np.float64)
    except Exception as error:
        raise RequestError(
            f"metric {name} failed ({type(error).__name__}: {error})",
            expected="a function of images uint8 [N, H, W, 3] and N prompts",
        ) from error
    if found.shape != (len(images),) or not np.isfinite(found).all():
        what = f"an array {list(found.shape)}" if found.shape != (len(images),) else "NaN or infinity"
        raise RequestError(
            f"metric {name} gave {what} for {len(images)} images", expected="one finite number an image, more is better"
        )
    values: list[float] = found.tolist()
    return values


def metric_rows(
    name: str, reference_scores: Sequence[float], found_scores: Sequence[float], *, backend: str, drop: float | None
) -> list[Measurement]:
    """The means, and the mean of reference minus bundle over pairs of one prompt and seed, with its standard error.

    Args:
        backend: what made the bundle's images.
        drop: how large that mean may be; None: reported, not judged.
    """
    lost = np.subtract(reference_scores, found_scores)
    common: dict[str, Any] = {"subject": f"metric {name.rpartition(':')[2]}", "backend": backend}
    means = {"mean of float": reference_scores, "mean of this bundle": found_scores}
    rows = [
        Measurement(case=case, value=float(np.mean(values)), limit=None, unit="score", higher_is_better=True, **common)
        for case, values in means.items()
    ]
    lost_case = f"float minus this bundle, {len(lost)} pairs"
    rows.append(Measurement(case=lost_case, value=float(lost.mean()), limit=drop, unit="score", **common))
    if len(lost) > 1:
        error = float(lost.std(ddof=1) / np.sqrt(len(lost)))
        rows.append(Measurement(case="standard error of that", value=error, limit=None, unit="score", **common))
    return rows


def _module_from(path: Path) -> ModuleType:
    """A file as a module; its folder is searched for what it imports, as Python does for scripts."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    sys.path.insert(0, str(path.parent.resolve()))
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
