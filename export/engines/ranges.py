"""From the sizes that a user asks for to the optimisation profile of each graph."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from latentrt.backends.tensorrt.records import Profile
from latentrt.bundle import Component
from latentrt.errors import BundleError, RequestError
from latentrt.family import Family
from latentrt.manifest.axes import axis_lengths

Size = tuple[int, int]  # width, height
Length = tuple[int, int, int]  # smallest, usual, largest


@dataclass(frozen=True, slots=True)
class Span:
    """From `low` to `high`, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


@dataclass(frozen=True, slots=True)
class SizeSpan:
    """From `low` to `high`, (width, height) in pixels, each axis by itself."""

    low: Size
    high: Size

    def __str__(self) -> str:
        ends = (self.low,) if self.low == self.high else (self.low, self.high)
        return "..".join(f"{width}x{height}" for width, height in ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """The requests that engines are to serve.

    Args:
        branches: guidance branches, 1 without guidance.
        context: tokens of a prompt, chunks included.
    """

    size: SizeSpan
    batch: Span
    branches: Span
    context: Span

    @classmethod
    def of(
        cls,
        family: Family,
        *,
        size: SizeSpan | None = None,
        batch: Span | None = None,
        branches: Span | None = None,
        context: Span | None = None,
    ) -> Self:
        """Checked against the family. None is its default size, one image, with and without guidance (where it takes a
        branch), and prompts of up to three chunks."""
        ranges = cls(
            size=size if size is not None else SizeSpan(family.defaults.size, family.defaults.size),
            batch=batch if batch is not None else Span(1, 1),
            branches=branches if branches is not None else Span(1, 1 if family.guidance_embedding else 2),
            context=context if context is not None else Span(family.context_length(1), family.context_length(3)),
        )
        ranges._check(family)
        return ranges

    def lengths(self, family: Family) -> dict[str, Length]:
        """What each named axis of the graphs' inputs ranges over (docs/bundle.md)."""
        width, height = (
            min(max(here, low), high)
            for here, low, high in zip(family.defaults.size, self.size.low, self.size.high, strict=True)
        )
        bounds = [
            axis_lengths(family, size=size, batch=batch, branches=branches, context=context, embeddings=embeddings)
            for size, batch, branches, context, embeddings in (
                (self.size.low, self.batch.low, self.branches.low, self.context.low, 1),
                ((width, height), self.batch.low, self.branches.high, self.context.low, 1),
                # as many new words as a chunk has tokens
                (
                    self.size.high,
                    self.batch.high,
                    self.branches.high,
                    self.context.high,
                    family.text_encoders[0].length,
                ),
            )
        ]
        bounds[0]["N"] = 1  # images and branches that share a prompt encode it once
        return {axis: (bounds[0][axis], bounds[1][axis], bounds[2][axis]) for axis in bounds[0]}

    def options(self, component: Component) -> dict[str, str]:
        """The ranges that a component's profile depends on, as a user writes them."""
        names = {name for tensor in component.graph.inputs for name in component.dims[tensor]}
        return {
            option: str(getattr(self, option))
            for option in ("size", "batch", "branches", "context")
            if any(option in _DEPENDS.get(str(name), ()) for name in names)
        }

    def _check(self, family: Family) -> None:
        low, high = family.size_range_px
        for size in (self.size.low, self.size.high):
            for name, pixels in zip(("width", "height"), size, strict=True):
                if pixels % family.multiple_px or not low <= pixels <= high:
                    raise RequestError(
                        f"{name} is {pixels} px",
                        expected=f"a multiple of {family.multiple_px} between {low} and {high}",
                    )
        pairs = [
            ("size (width)", self.size.low[0], self.size.high[0]),
            ("size (height)", self.size.low[1], self.size.high[1]),
            *((name, span.low, span.high) for name, span in self._spans().items()),
        ]
        for name, first, last in pairs:
            if not 1 <= first <= last:
                raise RequestError(f"{name} from {first} to {last}", expected="from 1 on, the smaller one first")
        if None in (family.chunks_of(self.context.low), family.chunks_of(self.context.high)):
            first, second = family.context_length(1), family.context_length(2)
            expected = f"multiples of {first}, the tokens of one chunk"
            if second != 2 * first:
                expected = f"{first}, {second} and so on: {second - first} more for each chunk"
            raise RequestError(f"context {self.context}", expected=expected)

    def _spans(self) -> dict[str, Span]:
        return {"batch": self.batch, "branches": self.branches, "context": self.context}


_DEPENDS = {
    "B": ("batch",),
    "K": ("branches",),
    "L": ("context",),
    "N": ("batch", "branches", "context"),
    **dict.fromkeys(("w", "h", "W", "H", *(f"{axis}{n}" for axis in "hw" for n in (2, 4, 8))), ("size",)),
}


def profile(component: Component, lengths: Mapping[str, Length]) -> Profile:
    """The smallest, usual and largest shape of each input; a BundleError for an axis whose range nobody knows."""
    shapes: tuple[dict[str, Any], ...] = ({}, {}, {})
    for name in component.graph.inputs:
        axes = component.dims[name]
        unknown = [axis for axis in axes if not isinstance(axis, int) and axis not in lengths]
        if unknown:
            raise BundleError(
                f"input '{name}' of {component.name} has an axis '{unknown[0]}'",
                expected=f"one of {', '.join(lengths)}",
                hint="the bundle is newer than this version: update LatentRT",
            )
        for i, bound in enumerate(shapes):
            bound[name] = tuple(axis if isinstance(axis, int) else lengths[axis][i] for axis in axes)
    low, usual, high = shapes
    return Profile(min=low, opt=usual, max=high)
