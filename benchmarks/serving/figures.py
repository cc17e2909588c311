"""What arrivals became, in figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SHARES = (1.5, 2.0, 3.0, 5.0)
"""Of the time alone, within which a job is counted as attained."""

SHORT_STEPS = 4
SHORT_GOAL, THROUGHPUT_GOAL = 0.5, 0.97


@dataclass(frozen=True, slots=True)
class Served:
    """What became of an arrival: seconds after the beginning."""

    steps: int
    came_s: float
    began_s: float
    done_s: float
    alone_s: float

    @property
    def latency_s(self) -> float:
        return self.done_s - self.came_s

    @property
    def slowdown(self) -> float:
        return self.latency_s / self.alone_s


@dataclass(slots=True)
class Round:
    """What a way made of one round of arrivals."""

    served: list[Served] = field(default_factory=list)
    batches: dict[int, int] = field(default_factory=dict)
    padded: int = 0

    def count(self, images: int, calls: int = 1) -> None:
        self.batches[images] = self.batches.get(images, 0) + calls


def quantile(values: Sequence[float], share: float) -> float:
    """By the nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def figures(rounds: Sequence[Round]) -> dict[str, Any]:
    """What one way made of one load, over all rounds."""
    served = [each for round in rounds for each in round.served]
    latencies = [each.latency_s for each in served]
    busy_s = sum(max(each.done_s for each in round.served) for round in rounds)
    calls: dict[int, int] = {}
    for round in rounds:
        for size, count in round.batches.items():
            calls[size] = calls.get(size, 0) + count
    rows = sum(size * count for size, count in calls.items())
    padded = sum(round.padded for round in rounds)
    short = [each.latency_s for each in served if each.steps == SHORT_STEPS]
    return {
        "images": len(served),
        "images_per_s": len(served) / busy_s,
        "latency_s": {f"p{int(100 * share)}": quantile(latencies, share) for share in (0.5, 0.95, 0.99)},
        "short_p95_s": quantile(short, 0.95) if short else None,
        "attained": {str(share): sum(each.slowdown <= share for each in served) / len(served) for share in SHARES},
        "mean_slowdown": statistics.fmean(each.slowdown for each in served),
        "mean_batch": rows / sum(calls.values()),
        "padding": padded / (rows + padded),
        "longest_wait_s": max(each.began_s - each.came_s for each in served),
    }


def verdict(loads: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Serial serving against ours: short jobs where the machine is busy, throughput where it is too busy."""
    busy = [row["ways"] for row in loads if row["load"] >= 0.8]
    full = [row["ways"] for row in loads if row["load"] >= 1.0]
    short = [ways["step"]["short_p95_s"] / ways["serial"]["short_p95_s"] for ways in busy]
    made = [ways["step"]["images_per_s"] / ways["serial"]["images_per_s"] for ways in full]
    return {
        "short_p95_of_serial": max(short, default=None),
        "throughput_of_serial": min(made, default=None),
        "short_goal": SHORT_GOAL,
        "throughput_goal": THROUGHPUT_GOAL,
        "reached": all(value <= SHORT_GOAL for value in short) and all(value >= THROUGHPUT_GOAL for value in made),
    }


def table(result: Mapping[str, Any]) -> str:
    """For docs/serving.md."""
    lines = [
        "| load | way | images/s | p50 | p95 | p99 | p95, 4 steps | within 1.5, 2, 3, 5 times alone "
        "| batch | padding | longest wait |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["loads"]:
        for name, way in row["ways"].items():
            latency = " | ".join(f"{value:.2f} s" for value in way["latency_s"].values())
            attained = ", ".join(f"{value:.0%}" for value in way["attained"].values())
            lines.append(
                f"| {row['load']:g} | {name} | {way['images_per_s']:.2f} | {latency} | {way['short_p95_s']:.2f} s "
                f"| {attained} | {way['mean_batch']:.2f} | {way['padding']:.0%} | {way['longest_wait_s']:.2f} s |"
            )
    return "\n".join(lines)
