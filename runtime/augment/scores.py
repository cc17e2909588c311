"""Scores of pictures, the more the better, in a table that thresholds are put to without making anything again.

A score is any function of a `Sample`. `contrast` and `distance` are always there.
"""

import csv
import importlib
import importlib.util
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentrt.augment.geometry import overlap
from latentrt.augment.labels import Form, Label, box_outline
from latentrt.errors import RequestError
from latentrt.files.atomic import write_whole
from latentrt.images.framing import resized
from latentrt.images.photo import Pixels, read_photo

Score = Callable[["Sample"], float]
Detection = Sequence[Any]
"""class (index or name), left, top, right, bottom in pixels; what follows, such as a confidence, is not used."""

Detector = Callable[[Pixels], Iterable[Detection]]

USUAL = {"contrast": 4.0, "distance": 1.0, "agreement": 0.5}
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
    """

    pixels: Pixels
    prompt: str
    labels: tuple[Label, ...]
    form: Form


def contrast(sample: Sample) -> float:
    """The standard deviation of brightness, in levels of 255; a blank picture has 0."""
    return float((sample.pixels @ np.array([0.299, 0.587, 0.114])).std())


def agreement_with(detector: Detector) -> Score:
    """The share of labels and detections that meet (F1): same class, intersection over union of `MEETS` at least."""

    def score(sample: Sample) -> float:
        height, width = sample.pixels.shape[:2]
        found = [_detected(row, sample.form, (width, height)) for row in detector(sample.pixels)]
        both = len(sample.labels) + len(found)
        left = list(sample.labels)
        met = 0
        for one in found:
            index = max(range(len(left)), key=lambda k: _meets(one, left[k]), default=None)
            if index is not None and _meets(one, left[index]) >= MEETS:
                met += 1
                del left[index]
        return 2 * met / both if both else 1.0

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
    """The object that `package.module:name` or `file.py:name` stands for.

    Raises:
        RequestError: there is none.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise RequestError(f"'{spec}'", expected="MODULE:NAME or FILE.py:NAME")
    try:
        if place.endswith(".py"):
            found = importlib.util.spec_from_file_location(Path(place).stem, place)
            if found is None or found.loader is None:
                raise ImportError(place)
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        return getattr(module, name)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise RequestError(f"{spec} cannot be loaded ({error})", expected="a function") from error


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


class Table:
    """Scores by picture, as `scores.csv` holds them.

    Args:
        path: of the file, read if it is there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[str, dict[str, str]] = {}
        try:
            with path.open(encoding="utf-8", newline="") as file:
                self.rows = {row["image"]: row for row in csv.DictReader(file)}
        except FileNotFoundError:
            pass
        except (OSError, KeyError, csv.Error, UnicodeDecodeError) as error:
            raise RequestError(f"{path} cannot be read ({error})", expected="a table of scores") from error

    def columns(self) -> list[str]:
        """Names of the scores."""
        return list(dict.fromkeys(name for row in self.rows.values() for name in row if name not in FIXED))

    def score(self, name: str, digest: str, sample: Callable[[], Sample | None], scores: Mapping[str, Score]) -> None:
        """Scores a picture where it is new, or a score is.

        Args:
            name: of the picture.
            digest: of what it is; scores of another one are forgotten.
            sample: None where it cannot be read.
        """
        row = self.rows.get(name)
        if row is None or row.get("digest") != digest:
            row = {"image": name, "digest": digest}
        missing = [each for each in scores if not row.get(each)]
        if missing or not row.get("hash"):
            given = sample()
            row["hash"] = "" if given is None else f"{perceptual_hash(given.pixels):016x}"
            for each in missing:
                row[each] = _shown(-1.0 if given is None else _number(each, scores[each](given)))
        self.rows[name] = row

    def measure_distances(self, real: Sequence[int], order: Sequence[str]) -> None:
        """`distance`: bits by which a picture's hash differs from the nearest real one and those before it."""
        hashes = np.array([*real, *(int(self.rows[name]["hash"] or "0", 16) for name in order)], np.uint64)
        for index, name in enumerate(order, start=len(real)):
            others = np.bitwise_count(hashes[:index] ^ hashes[index])
            self.rows[name]["distance"] = str(int(others.min()) if index else 64)

    def decide(self, least: Mapping[str, float], order: Sequence[str]) -> dict[str, list[str]]:
        """Fills in `kept`, and says for each picture that is dropped which scores are too low.

        Raises:
            RequestError: a threshold for a score that there is not.
        """
        columns = self.columns()
        unknown = [name for name in least if name not in columns]
        if unknown and order:
            raise RequestError(f"a least {unknown[0]}", expected=f"one of the scores: {', '.join(columns)}")
        dropped = {}
        for name in order:
            row = self.rows[name]
            low = [each for each, value in least.items() if not float(row.get(each) or "nan") >= value]
            row["kept"] = "0" if low else "1"
            if low:
                dropped[name] = low
        return dropped

    def write(self, order: Sequence[str]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, [*FIXED, *self.columns()], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows[name] for name in order if name in self.rows)
        write_whole(self._path, text.getvalue().encode())


def read_sample(path: Path, prompt: str, labels: tuple[Label, ...], form: Form) -> Sample | None:
    """A picture as it is scored; None if it is broken."""
    try:
        return Sample(read_photo(path).on_white(), prompt, labels, form)
    except RequestError:
        return None


def hashes_of(paths: Iterable[Path]) -> list[int]:
    """Perceptual hashes of pictures."""
    return [perceptual_hash(read_photo(path).on_white()) for path in paths]


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


def _shown(value: float) -> str:
    return f"{value:.6g}"
