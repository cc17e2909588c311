"""Scores in a table that thresholds are put to without making anything again."""

import csv
import io
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from latentrt.augment.scores import FIXED, Sample, Score, check_least, perceptual_hash, scored
from latentrt.errors import RequestError
from latentrt.files.atomic import write_whole


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

    def score(
        self,
        name: str,
        digest: str,
        sample: Callable[[], Sample | None],
        scores: Mapping[str, Score],
        *,
        anew: Collection[str] = (),
    ) -> None:
        """Scores a picture where it is new, or a score is.

        Args:
            name: of the picture.
            digest: of what it is; scores of another one are forgotten.
            sample: None where it cannot be read.
            anew: scores that are given whether or not they are there.
        """
        row = self.rows.get(name)
        if row is None or row.get("digest") != digest:
            row = {"image": name, "digest": digest}
        missing = [each for each in scores if each in anew or not row.get(each)]
        if missing or not row.get("hash"):
            given = sample()
            row["hash"] = "" if given is None else f"{perceptual_hash(given.pixels):016x}"
            for each in missing:
                row[each] = _shown(-1.0 if given is None else scored(each, scores[each], given, name))
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
        if order:
            check_least(least, self.columns())
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


def _shown(value: float) -> str:
    return f"{value:.6g}"
