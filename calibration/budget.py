"""Holding a quality: the operators that do the most damage for what they save return to float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from latentrt.calibration.layers import Measure
from latentrt.calibration.placement import Operator
from latentrt.calibration.trial import Outcome

MARGIN_DB = 0.25  # above what is asked for: backends differ by a little


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search ended with.

    Args:
        operators: all of the component, those that returned to float with the reason.
        returned: their names, worst first.
    """

    operators: tuple[Operator, ...]
    returned: tuple[str, ...]
    held: bool
    before: Outcome
    after: Outcome


def worst_first(found: Sequence[Operator], measures: Mapping[str, Measure]) -> list[str]:
    """Quantised operators by damage per cost. Damage is the noise over signal that each alone puts into the output;
    cost is what float takes back of the savings: its share of the work and of the weights."""
    quantised = [operator for operator in found if operator.float_reason is None]
    work = max(1, sum(measures[operator.name].work_macs for operator in quantised))
    weights = max(1, sum(operator.size for operator in quantised))

    def badness(operator: Operator) -> float:
        measure = measures[operator.name]
        damage = 10 ** (-(measure.output_sqnr_db if measure.output_sqnr_db is not None else 0.0) / 10)
        return damage / (measure.work_macs / work + operator.size / weights)

    return [operator.name for operator in sorted(quantised, key=lambda operator: (-badness(operator), operator.name))]


def hold(
    found: Sequence[Operator],
    order: Sequence[str],
    *,
    min_sqnr: float,
    run: Callable[[Sequence[Operator], str], Outcome],
) -> SearchResult:
    """Returns as few of the first operators of `order` to float as reach the quality, by doubling and bisection.

    At least one stays quantised: without any there would be nothing to gain.

    Args:
        order: names of the quantised ones, the first to return first.
        min_sqnr: dB of the worst case; `MARGIN_DB` more is aimed at where any operator has to return.
        run: measures operators; its second argument says what is tried.
    """
    reason = f"returned to float to hold {min_sqnr:g} dB"

    def tried(count: int) -> Outcome:
        return run(_returned(found, order[:count], reason), f"{count} of {len(order)} operators in float")

    before = tried(0)
    if before.sqnr_db >= min_sqnr:
        return SearchResult(tuple(found), (), True, before, before)
    goal, low, high = min_sqnr + MARGIN_DB, 0, 1
    last = len(order) - 1
    while high < last and tried(high).sqnr_db < goal:
        low, high = high, min(2 * high, last)
    if tried(min(high, last)).sqnr_db < goal:
        return SearchResult(tuple(found), (), False, before, before)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tried(middle).sqnr_db >= goal else (middle, high)
    return SearchResult(tuple(_returned(found, order[:high], reason)), tuple(order[:high]), True, before, tried(high))


def _returned(found: Sequence[Operator], names: Sequence[str], reason: str) -> list[Operator]:
    chosen = frozenset(names)
    return [replace(operator, float_reason=reason) if operator.name in chosen else operator for operator in found]
