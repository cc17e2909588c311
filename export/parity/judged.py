"""A measured value and its gate, whatever was measured. Imports no torch: calibration judges without it."""

from collections.abc import Mapping
from dataclasses import dataclass

from latentrt.result import Images


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
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


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images of the same prompts and seeds, uint8 [N, H, W, 3]: the reference's, and the bundle's by backend."""

    prompts: tuple[str, ...]
    reference: Images
    found: Mapping[str, Images]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The measurements, and the images from which some of them are; None where images were not comparable by eye."""

    rows: tuple[Judged, ...]
    pictures: Pictures | None
