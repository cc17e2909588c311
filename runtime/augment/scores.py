"""Scores of pictures, the more the better: any function of a `Sample`. `contrast` and `distance` are always there."""

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from latentrt.augment.geometry import overlap
from latentrt.augment.labels import Form, Label, box_outline
from latentrt.errors import RequestError
from latentrt.images.framing import resized
from latentrt.images.photo import Pixels, read_photo

Score = Callable[["Sample"], float]
Detection = Sequence[Any]
"""class (index or name), left, top, right, bottom in pixels; what follows, such as a confidence, is not used."""

Detector = Callable[[Pixels], Iterable[Detection]]

USUAL = {"contrast": 4.0, "distance": 1.0, "agreement": 0.75}
"""Least scores that a picture is kept with, where no others are given."""

MEETS = 0.5  # intersection over union from which a detection is of a label
_SIDE, _LOW = 32, 8  # of the picture that is hashed, and of its low frequencies
FIXED = ("image", "digest", "kept", "hash")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What is scored.

    Args:
        pixels: uint8 [H, W, 3].
        prompt: what it was made with.
        labels: of its objects.
        form: of the labels; `form.names` are the classes.
        changed: indices of labels that are of new objects.
        folder: its class, where folders are classes.
    """

    pixels: Pixels
    prompt: str
    labels: tuple[Label, ...]
    form: Form
    changed: tuple[int, ...] = ()
    folder: str | None = None


def contrast(sample: Sample) -> float:
    """The standard deviation of brightness, in levels of 255; a blank picture has 0."""
    return float((sample.pixels @ np.array([0.299, 0.587, 0.114])).std())


def agreement_with(detector: Detector) -> Score:
    """The share of labels and detections that meet (F1): same class, intersection over union of `MEETS` at least.

    It is 0 if the detector does not find a new object: one of many hardly moves the share. Where folders are classes,
    a picture counts as one label, which any detection of its class meets.
    """

    def score(sample: Sample) -> float:
        height, width = sample.pixels.shape[:2]
        found = [_detected(row, sample.form, (width, height)) for row in detector(sample.pixels)]
        if sample.folder is not None:
            own = sample.form.names.index(sample.folder)
            return 2 * any(one.category == own for one in found) / (1 + len(found))
        both = len(sample.labels) + len(found)
        left = set(range(len(sample.labels)))
        for one in found:
            index = max(left, key=lambda k: _meets(one, sample.labels[k]), default=None)
            if index is not None and _meets(one, sample.labels[index]) >= MEETS:
                left.remove(index)
        if left.intersection(sample.changed):
            return 0.0
        return 2 * (len(sample.labels) - len(left)) / both if both else 1.0

    return score


def text_score(function: Callable[[Pixels, str], float]) -> Score:
    """A score of a picture and its prompt, such as the cosine of their CLIP embeddings."""
    return lambda sample: function(sample.pixels, sample.prompt)


def ultralytics_detector(path: str, *, confidence: float = 0.25) -> Detector:
    """A model of Ultralytics' as a detector, where their package is installed."""
    if importlib.util.find_spec("ultralytics") is None:
        raise RequestError(f"{path} needs ultralytics, not installed here", hint="pip install ultralytics")
    model = importlib.import_module("ultralytics").YOLO(path)

    def detect(pixels: Pixels) -> Iterable[Detection]:
        result = model.predict(pixels[..., ::-1], conf=confidence, verbose=False)[0]  # it takes BGR
        for category, box in zip(result.boxes.cls.tolist(), result.boxes.xyxy.tolist(), strict=True):
            yield result.names[int(category)], *box

    return detect


def loaded(spec: str) -> Any:
    """The function that `package.module:name` or `file.py:name` stands for.

    Raises:
        RequestError: there is none.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise RequestError(f"'{spec}'", expected="MODULE:NAME or FILE.py:NAME")
    try:
        found = getattr(_module_from(Path(place)) if place.endswith(".py") else importlib.import_module(place), name)
    except Exception as error:
        raise RequestError(
            f"{spec} cannot be loaded ({type(error).__name__}: {error})", expected="a function"
        ) from error
    if not callable(found):
        raise RequestError(f"{spec} is {found!r:.80}", expected="a function")
    return found


def perceptual_hash(pixels: Pixels) -> int:
    """64 bits of which pictures that look alike share most: signs of low frequencies, around their median.

    Source: Zauner 2010 (`pHash`, DCT variant).
    """
    grey = resized(pixels, (_SIDE, _SIDE)) @ np.array([0.299, 0.587, 0.114])
    place = np.arange(_SIDE)
    waves = np.cos(np.pi * (2 * place[None] + 1) * place[:_LOW, None] / (2 * _SIDE))
    low = np.rint(waves @ grey @ waves.T)  # equal pictures stay equal whatever the last bit
    bits = (low > np.median(low)).ravel()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def read_sample(path: Path, row: Mapping[str, Any], labels: tuple[Label, ...], form: Form) -> Sample | None:
    """A picture as it is scored, `row` being its .json; None if it is broken."""
    try:
        pixels = read_photo(path).on_white()
    except RequestError:
        return None
    return Sample(pixels, row["prompt"], labels, form, tuple(row["changed"]), row["folder"])


def hashes_of(paths: Iterable[Path]) -> list[int]:
    """Perceptual hashes of pictures."""
    return [perceptual_hash(read_photo(path).on_white()) for path in paths]


def check_scores(scores: Iterable[str], least: Mapping[str, float]) -> None:
    """Raises RequestError for a score whose name is taken, or a threshold that is no number."""
    taken = next((name for name in scores if name in (*FIXED, "contrast", "distance")), None)
    if taken is not None:
        raise RequestError(f"a score called {taken}", expected="another name: the table has that already")
    wrong = next((name for name, value in least.items() if math.isnan(value)), None)
    if wrong is not None:
        raise RequestError(f"a least {wrong} of nan", expected="a number")


def check_least(least: Iterable[str], columns: Iterable[str]) -> None:
    """Raises RequestError for a threshold for a score that there is not."""
    known = sorted(columns)
    unknown = next((name for name in least if name not in known), None)
    if unknown is not None:
        raise RequestError(f"a least {unknown}", expected=f"one of the scores: {', '.join(known)}")


def scored(name: str, score: Score, sample: Sample, of: str) -> float:
    """What a score says of a sample.

    Raises:
        RequestError: it fails, or says no finite number.
    """
    try:
        value = score(sample)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(
            f"the score {name} failed on {of} ({type(error).__name__}: {error})", expected="a number"
        ) from error
    return _number(name, value)


def _module_from(path: Path) -> ModuleType:
    """A file as a module, which dataclasses and the like look up by its name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    finally:
        if before is not None:
            sys.modules[path.stem] = before
    return module


def _detected(row: Detection, form: Form, size: tuple[int, int]) -> Label:
    try:
        name, *box = row
        sides = np.array(box[:4], np.float64).reshape(2, 2) / size
    except (TypeError, ValueError) as error:
        raise RequestError(f"the detector found {row!r:.80}", expected="class, left, top, right, bottom") from error
    category = form.names.index(name) if isinstance(name, str) and name in form.names else name
    index = int(category) if not isinstance(category, str) else -1  # a class that the data has not
    return Label(index, box_outline((*sides[0], *sides[1])))


def _meets(one: Label, other: Label) -> float:
    return overlap(one, other) if one.category == other.category else 0.0


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise RequestError(f"the score {name} is {value!r:.80}", expected="a number") from error
    if not math.isfinite(number):
        raise RequestError(f"the score {name} is {number}", expected="a finite number")
    return number
