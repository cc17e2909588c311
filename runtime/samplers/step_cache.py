"""Step caching: which calls of a run compute the whole network, and which its outermost layers alone.

Source: Ma et al. 2023, arXiv 2312.00858 (DeepCache).
"""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latentrt.errors import RequestError
from latentrt.values import Kind, Listed, Optional, Whole, settle, shown

MOST_CALLS = 10_000
INTERVAL = Whole(1, MOST_CALLS)
CALLS = Listed(Whole(0, MOST_CALLS), "whole numbers", least=1, most=MOST_CALLS)
_STEP_CACHE: Mapping[str, Kind] = {"interval": Optional(INTERVAL), "deep": Optional(CALLS)}


@dataclass(frozen=True, slots=True)
class StepCache:
    """Which engine calls are deep; those between them, the shallow ones, reuse what the last deep one computed.

    A call is deep as well where it begins with other guidance branches or ControlNets than the call before it has.

    Args:
        interval: every so many calls one is deep, counted from the last change of branches or ControlNets; 1 is no
            caching.
        deep: instead, the deep calls of a run by number; 0 is the first, and has to be among them.

    Raises:
        RequestError: values out of range, none or both of them, or a first call that is shallow.
    """

    interval: int | None = None
    _: KW_ONLY
    deep: Sequence[int] | None = None

    def __post_init__(self) -> None:
        settle(self, _STEP_CACHE, of=" of a step cache")
        if (self.interval is None) == (self.deep is None):
            both = "without interval and deep" if self.deep is None else "with interval and deep"
            raise RequestError(f"a step cache {both}", expected="one of them")
        if self.deep is not None:
            object.__setattr__(self, "deep", tuple(sorted(set(self.deep))))
            if 0 not in self.deep:
                raise RequestError(
                    f"a step cache whose first deep call is {min(self.deep)}",
                    expected="call 0 among the deep ones: shallow calls reuse what a deep one before them computed",
                )

    @property
    def active(self) -> bool:
        """Whether it asks for anything."""
        return self.interval != 1

    def calls(self, has: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """The deep calls of a run, [calls], by what each has of branches and ControlNets: `has` [calls, n]."""
        count = len(has)
        changes = np.concatenate([[True], (has[1:] != has[:-1]).any(axis=1)])
        if self.deep is not None:
            if self.deep[-1] >= count:
                raise RequestError(f"deep call {self.deep[-1]} in a run of {count} calls", expected=f"0 to {count - 1}")
            changes[list(self.deep)] = True
            return changes
        index = np.arange(count)
        since = index - np.maximum.accumulate(np.where(changes, index, 0))
        found: npt.NDArray[np.bool_] = since % np.array(self.interval) == 0
        return found


@dataclass(frozen=True, slots=True)
class StepCacheKind:
    """A `StepCache`, its interval, its deep calls, or None; one that asks for nothing becomes None."""

    def read(self, name: str, value: Any) -> StepCache | None:
        if isinstance(value, StepCache) or value is None:
            found = value
        elif isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes):
            found = StepCache(deep=CALLS.read(name, value))
        elif isinstance(value, Mapping):
            raise RequestError(f"{name} is {shown(value)}", expected="an interval, deep calls, or a StepCache")
        else:
            found = StepCache(INTERVAL.read(name, value))
        return found if found is not None and found.active else None
