"""Labels as Ultralytics' loader takes them: a text file beside each picture, an object a row.

detect   class x y w h               centre and size, as shares of the picture
segment  class x1 y1 x2 y2 x3 y3 ... a polygon
obb      class x1 y1 ... x4 y4       four corners
pose     class x y w h px py [v] ... a box and its keypoints
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latentrt.errors import LatentRTError, RequestError

Points = npt.NDArray[np.float64]
Bounds = tuple[float, float, float, float]
"""left, top, right, bottom, as shares of the picture."""

TASKS = ("detect", "segment", "obb", "pose", "classify")
BEYOND = 0.01
"""How far outside the picture the loader lets a coordinate lie."""

HIDDEN = -0.005
"""Both coordinates of a keypoint that is not seen, where no third number says so."""

_DECIMALS = 6


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """One object.

    Args:
        category: index of its class.
        outline: float64 [N, 2], corners as shares of the picture, within it; of a box, its four.
        keypoints: float64 [K, 3] of x, y and visibility (0: not labelled), or None.
    """

    category: int
    outline: Points
    keypoints: Points | None = None

    @property
    def bounds(self) -> Bounds:
        (left, top), (right, bottom) = self.outline.min(axis=0), self.outline.max(axis=0)
        return float(left), float(top), float(right), float(bottom)


@dataclass(frozen=True, slots=True)
class BadFile:
    """A picture or a row of labels that cannot be used, and why."""

    path: Path
    line: int | None
    error: LatentRTError

    def __str__(self) -> str:
        return f"{self.path}{'' if self.line is None else f', line {self.line}'}: {self.error}"


@dataclass(frozen=True, slots=True)
class Form:
    """What a row of a dataset's labels is.

    Args:
        task: one of `TASKS`.
        names: of the classes.
        keypoints: how many a pose has, and of how many numbers each; None without.
    """

    task: str
    names: tuple[str, ...]
    keypoints: tuple[int, int] | None = None

    def read(self, text: str) -> Label:
        """The object of a row.

        Raises:
            RequestError: anything that the loader rejects, or takes for something else.
        """
        numbers = _numbers(text)
        self._check_columns(numbers.size)
        category, values = self._category(numbers[0]), numbers[1:]
        boxed = self.task in ("detect", "pose")
        points = values[:4].reshape(2, 2) if boxed else values.reshape(-1, 2)
        outline = _box(points) if boxed else points
        keypoints = self._keypoints(values[4:]) if self.keypoints is not None else None
        _check_within(points)
        label = Label(category, outline.clip(0, 1), keypoints)
        left, top, right, bottom = label.bounds
        if not (right > left and bottom > top):
            raise RequestError("an object without an area", expected="a width and a height above 0")
        return label

    def write(self, label: Label) -> str:
        """The row of an object."""
        if self.task in ("segment", "obb"):
            values = label.outline.clip(0, 1).ravel()
        else:
            left, top, right, bottom = (min(1.0, max(0.0, value)) for value in label.bounds)
            values = np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
        if label.keypoints is not None and self.keypoints is not None:
            values = np.concatenate([values, self._keypoint_values(label.keypoints)])
        return " ".join([str(label.category), *(f"{value:.{_DECIMALS}f}" for value in values)])

    def rows(self, labels: Sequence[Label]) -> list[str]:
        """The rows of a picture's objects, each once."""
        return list(dict.fromkeys(map(self.write, labels)))

    def _check_columns(self, found: int) -> None:
        if self.keypoints is not None:
            count, numbers = self.keypoints
            fits, expected = found == 5 + count * numbers, f"{5 + count * numbers} for {count} keypoints of {numbers}"
        elif self.task == "segment":
            fits, expected = found >= 7 and found % 2 == 1, "a class and three points or more, which is 7, 9, 11, ..."
        else:
            wanted = 9 if self.task == "obb" else 5
            fits, expected = found == wanted, f"{wanted} for the task {self.task}"
        if not fits:
            raise RequestError(f"{found} columns", expected=expected)

    def _category(self, number: float) -> int:
        if not number.is_integer() or not 0 <= number < len(self.names):
            most = len(self.names) - 1
            raise RequestError(f"class {number:g}", expected=f"a whole number, 0 to {most}, as data.yaml has names")
        return int(number)

    def _keypoints(self, values: Points) -> Points:
        count, numbers = self.keypoints or (0, 2)
        found = np.ones((count, 3))
        found[:, :numbers] = values.reshape(count, numbers)
        if numbers == 2:
            found[:, 2] = (found[:, :2] >= 0).all(axis=1)
        elif not np.isin(found[:, 2], (0, 1, 2)).all():
            raise RequestError("a visibility of a keypoint beside 0, 1 and 2", expected="x, y, visibility by turns")
        seen = found[:, 2] > 0
        _check_within(found[seen, :2])
        found[:, :2] = np.where(seen[:, None], found[:, :2].clip(0, 1), 0)
        return found

    def _keypoint_values(self, keypoints: Points) -> Points:
        rows = keypoints.copy()
        _, numbers = self.keypoints or (0, 2)
        unseen = rows[:, 2] <= 0
        rows[unseen] = (HIDDEN, HIDDEN, 0) if numbers == 2 else (0, 0, 0)
        return rows[:, :numbers].ravel()


def read_label_file(path: Path, form: Form) -> tuple[list[Label], list[BadFile]]:
    """The objects of a picture; a file that is missing or empty is a picture without any. Equal rows count once."""
    labels: dict[str, Label] = {}
    bad: list[BadFile] = []
    try:
        lines = label_lines(path)
    except RequestError as error:
        return [], [BadFile(path, None, error)]
    for number, line in lines:
        try:
            labels.setdefault(" ".join(line.split()), form.read(line))
        except RequestError as error:
            bad.append(BadFile(path, number, error))
    return list(labels.values()), bad


def label_lines(path: Path) -> list[tuple[int, str]]:
    """The rows that are not empty, by their number from 1; none of a file that is not there.

    Raises:
        RequestError: no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot be read ({error})", expected="a text file in UTF-8") from error
    return [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def box_outline(bounds: Bounds) -> Points:
    """float64 [4, 2]: the corners of a box, clockwise from the top left."""
    left, top, right, bottom = bounds
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)


def _box(points: Points) -> Points:
    centre, size = points
    if (size <= 0).any():
        raise RequestError(f"a box of {size[0]:g} by {size[1]:g}", expected="a width and a height above 0")
    (left, top), (right, bottom) = centre - size / 2, centre + size / 2
    return box_outline((left, top, right, bottom))


def _numbers(text: str) -> Points:
    try:
        numbers = np.array([float(word) for word in text.split()])
    except ValueError as error:
        raise RequestError(f"no number ({error})", expected="numbers separated by spaces") from error
    if not np.isfinite(numbers).all():
        raise RequestError("a number that is not finite", expected="shares of the picture, 0 to 1")
    return numbers


def _check_within(points: Points) -> None:
    outside = points[(points < -BEYOND) | (points > 1 + BEYOND)]
    if outside.size:
        raise RequestError(
            f"a coordinate of {outside[0]:g}",
            expected="shares of the picture, 0 to 1",
            hint="divide pixels by its size",
        )
