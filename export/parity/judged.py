"""A measured value and its gate, whatever was measured. Imports no torch: calibration judges without it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One measurement. `limit` None: reported, not judged."""

    subject: str
    case: str
    backend: str
    value: float
    limit: float | None
    unit: str
    higher_is_better: bool = False

    @property
    def passed(self) -> bool:
        if self.limit is None:
            return True
        return self.value >= self.limit if self.higher_is_better else self.value <= self.limit
