"""A measured value and its gate, whatever was measured. Imports no torch: calibration judges without it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentrt.output.result import Images

SHOWN = 6  # pictures of a report


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measurement.

    Args:
        limit: None: reported, not judged.
        series: the value of each call along the trajectories, where there are several.
    """

    subject: str
    case: str
    backend: str
    value: float
    limit: float | None
    unit: str
    higher_is_better: bool = False
    series: tuple[float, ...] = ()

    @property
    def passed(self) -> bool:
        if self.limit is None:
            return True
        return self.value >= self.limit if self.higher_is_better else self.value <= self.limit

    def row(self, component: str) -> dict[str, Any]:
        """As the manifest's field `parity` has it."""
        figures = {"backend": self.backend, "worst": self.value, "limit": self.limit, "passed": self.passed}
        return {"component": component, "case": self.case, **figures}


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images of the same prompts and seeds, uint8 [N, H, W, 3]: the reference's, and the bundle's by backend."""

    prompts: tuple[str, ...]
    reference: Images
    found: Mapping[str, Images]


class FirstImages:
    """The first image of a few cases, of one size, to be looked at."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._reference: list[Images] = []
        self._found: dict[str, list[Images]] = {}

    def add(self, name: str, reference: Images, found: Mapping[str, Images]) -> None:
        """Keeps the first image of the case, unless there are enough or it is of another size than those before."""
        if len(self._names) == SHOWN or (self._reference and self._reference[0].shape != reference[0].shape):
            return
        self._names.append(name)
        self._reference.append(reference[0])
        for backend, images in found.items():
            self._found.setdefault(backend, []).append(images[0])

    def pictures(self) -> Pictures | None:
        """What was kept; None if it is nothing."""
        if not self._names:
            return None
        found = {name: np.stack(images) for name, images in self._found.items()}
        return Pictures(tuple(self._names), np.stack(self._reference), found)


@dataclass(frozen=True, slots=True)
class Measurements:
    """The measurements, and the images from which some of them are; None where images were not comparable by eye."""

    rows: tuple[Measurement, ...]
    pictures: Pictures | None
