"""Which branches a call has, and how their outputs are weighed (docs/prompts.md)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from latentrt.arrays import FloatArray
from latentrt.text.conditioning import BRANCHED
from latentrt.text.prompt_syntax import PromptPart, Text


@dataclass(frozen=True, slots=True)
class Guiding:
    """What one image is guided by.

    Args:
        parts: its prompts and their weights, one or more.
        scale: of guidance; at 1 or below there is none, as in diffusers' pipelines (`do_classifier_free_guidance`).
        start, stop: the calls of the run in which it is on, as fractions: from `start` to before `stop`. In the others
            there is none. Source: Kynkäänniemi et al. 2024, arXiv 2404.07724, whose interval is one of noise levels.
    """

    parts: tuple[PromptPart, ...]
    scale: float
    start: float = 0.0
    stop: float = 1.0

    def on(self, calls: int) -> npt.NDArray[np.bool_]:
        """The calls with guidance, [calls]."""
        index = np.arange(calls)
        first, end = (math.ceil(round(calls * share, 6)) for share in (self.start, self.stop))
        found: npt.NDArray[np.bool_] = (index >= first) & (index < end) & (self.scale > 1)
        return found

    def weights(self, calls: int) -> FloatArray:
        """Of each prompt's branch, [calls, parts]; that of no prompt has the rest, up to a sum of 1.

        Source: Liu et al. 2022, arXiv 2206.01714, the conjunction of concepts.
        """
        scale = np.where(self.on(calls), self.scale, 1).astype(np.float32)
        return scale[:, None] * np.array([part.weight for part in self.parts], np.float32)


def prompt_texts(guidings: Sequence[Guiding]) -> list[list[Text]]:
    """The prompts of a batch by branch and image. Before those of an image with fewer, its last one stands in."""
    most = max(len(guiding.parts) for guiding in guidings)
    rows = [[part.text for part in guiding.parts] for guiding in guidings]
    return [list(branch) for branch in zip(*([row[-1]] * (most - len(row)) + row for row in rows), strict=True)]


def prompt_weights(guidings: Sequence[tuple[Guiding, int]]) -> FloatArray:
    """What those branches weigh, [calls, branches, images]; stand-ins nothing.

    Args:
        guidings: of each image, and its calls; after them it keeps the weights of the last one.
    """
    most, calls = max(len(guiding.parts) for guiding, _ in guidings), max(n for _, n in guidings)
    weights = np.zeros((calls, most, len(guidings)), np.float32)
    for image, (guiding, n) in enumerate(guidings):
        own = guiding.weights(n)
        weights[:n, -own.shape[1] :, image] = own
        weights[n:, -own.shape[1] :, image] = own[-1]
    return weights


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Consecutive calls of a run with the same branches, all deep or all shallow.

    Args:
        feed, rows: as `Engine.sweep` takes them; the state is that of the run's beginning.
        calls: which they are.
        branches: [K], those of the run's that they have.
        shallow: whether they reuse what the call before them computed (docs/step-caching.md).
    """

    feed: dict[str, FloatArray]
    rows: dict[str, FloatArray]
    calls: slice
    branches: npt.NDArray[np.bool_]
    shallow: bool = False


def segments(
    feed: Mapping[str, FloatArray],
    rows: Mapping[str, FloatArray],
    *,
    acting: Sequence[npt.NDArray[np.bool_]] = (),
    deep: npt.NDArray[np.bool_] | None = None,
) -> Iterator[Segment]:
    """A run in parts, without the branches that weigh nothing in any of a part's calls; the last one always stays.

    Args:
        acting: of each ControlNet, the calls in which it takes part, [calls]; the same ones in all calls of a part.
        deep: the calls that compute the whole network, [calls]: all of a part or none; None is all.
    """
    calls = len(next(iter(rows.values())))
    used = np.ones((calls, len(feed["guidance"])), np.bool_) if "guidance" in feed else branches_used(rows["guidance"])
    deep = np.ones(calls, np.bool_) if deep is None else deep
    same = np.column_stack([used, *acting, deep])
    bounds = [0, *(np.flatnonzero((same[1:] != same[:-1]).any(axis=1)) + 1).tolist(), calls]
    for first, end in pairwise(bounds):
        on = used[first]
        part = {name: values[first:end] for name, values in rows.items()}
        if on.all():
            yield Segment(dict(feed), part, slice(first, end), on, shallow=not deep[first])
            continue
        part["guidance"] = np.ascontiguousarray(part["guidance"][:, on])
        cut = {name: values[on] if name in BRANCHED else values for name, values in feed.items()}
        yield Segment(cut, part, slice(first, end), on, shallow=not deep[first])


def branches_used(guidance: FloatArray) -> npt.NDArray[np.bool_]:
    """Whether a call has a branch, [calls, K]."""
    used: npt.NDArray[np.bool_] = (guidance != 0).any(axis=2)
    used[:, -1] = True
    return used
