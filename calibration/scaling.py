"""From counts to the scales of every component, in a second pass over the prompts where SmoothQuant divides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from latentrt.bundle import Bundle
from latentrt.calibration.collect import CalibrationSettings, CollectionProgress, collect
from latentrt.calibration.manifest import Policy
from latentrt.calibration.observers import probes
from latentrt.calibration.placement import Operator
from latentrt.calibration.quantize import Scales, unmap
from latentrt.calibration.ranges import choose_ranges
from latentrt.calibration.smooth import Group, smoothable, smoothing_factors
from latentrt.calibration.statistics import Statistics

ALPHAS = (None, 0.5, 0.65, 0.8, 0.9)  # tried by a search
SEARCH_PROMPTS = 4  # that ranges behind a tried division are counted on

Divisors = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """Counts the tensors of some components over prompts."""

    parent: Bundle
    models: Mapping[str, ir.Model]
    found: Mapping[str, Sequence[Operator]]
    work: Path
    threads: int | None
    progress: Callable[[str, CollectionProgress], None]

    def count(self, name: str, settings: CalibrationSettings, *, divisors: Divisors) -> dict[str, Statistics]:
        """One pass; with divisors, only of the tensors that these change."""
        wanted = {}
        for component, model in self.models.items():
            every = probes(model, self.found[component], divisors=divisors.get(component, {}))
            changed = [probe for probe in every if probe.divisor is not None]
            wanted[component] = changed if changed or any(divisors.values()) else every
        return collect(
            self.parent,
            settings,
            {component: tensors for component, tensors in wanted.items() if tensors},
            record=self.work / f"{name}.npz",
            threads=self.threads,
            progress=lambda event: self.progress(name, event),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Chooses scales."""

    counter: Counter
    counted: Mapping[str, Statistics]
    policy: Policy
    settings: CalibrationSettings

    def scales(self, alpha: float | None) -> dict[str, Scales]:
        """For a strength of SmoothQuant; None: without."""
        return self._scales(alpha, "smoothed", self.settings)

    def tried(self, alpha: float | None) -> dict[str, Scales]:
        """The same, counted on a few prompts only."""
        few = replace(self.settings, prompts=self.settings.prompts[:SEARCH_PROMPTS], sizes=self.settings.sizes[:1])
        return self._scales(alpha, f"alpha-{alpha}", few)

    def _scales(self, alpha: float | None, name: str, settings: CalibrationSettings) -> dict[str, Scales]:
        groups = {component: {} if alpha is None else self._groups(component) for component in self.counted}
        factors: Divisors = {
            component: {}
            if alpha is None
            else smoothing_factors(
                self.counter.models[component], groups[component], self.counted[component].all_maxima(), alpha=alpha
            )
            for component in self.counted
        }
        for model in self.counter.models.values():
            unmap(model)
        again = self.counter.count(name, settings, divisors=factors) if any(factors.values()) else {}
        scales = {}
        for component, form in self.policy.quantised.items():
            counted = self.counted[component]
            ranges = choose_ranges(counted, counted.tensors, method=self.policy.ranges, form=form)
            if (divided := again.get(component)) is not None:
                ranges |= choose_ranges(divided, divided.tensors, method=self.policy.ranges, form=form)
            folded = frozenset(tensor for tensor, group in groups[component].items() if group.folds)
            scales[component] = Scales(form=form, ranges=ranges, factors=factors[component], folded=folded)
        return scales

    def _groups(self, component: str) -> dict[str, Group]:
        counter = self.counter
        return smoothable(counter.models[component], counter.found[component], self.counted[component].all_maxima())
