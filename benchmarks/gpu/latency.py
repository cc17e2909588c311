"""How long text, step and decoder take, side by side: every candidate in a live process of its own, by turns."""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.card import used_memory_mb
from benchmarks.gpu.flops import graph_flops
from benchmarks.gpu.record import Deadline, Record
from benchmarks.gpu.worker import worker
from latentrt.bench.figures import ratios, summary
from latentrt.bench.runner import BenchRuns, Candidate, Workload
from latentrt.bench.worker import Worker
from latentrt.bundle import Bundle
from latentrt.output.result import Timings

OPEN_LIMIT_S = 1200.0  # compilation included
RUN_LIMIT_S = 600.0


def compete(
    candidates: Sequence[Candidate],
    workload: Workload,
    *,
    rounds: int,
    into: dict[str, Any],
    record: Record,
    deadline: Deadline,
    logs: Path,
) -> None:
    """Fills `into["results"]`, one row a candidate, and saves after every turn.

    All candidates are opened and warmed up before the first round, and stay. A card must hold them together.
    """
    rows: list[dict[str, Any]] = [{"name": candidate.name} for candidate in candidates]
    into |= {"workload": asdict(workload) | {"rounds": rounds}, "results": rows}
    with ExitStack() as stack:
        live: list[_Entrant] = []
        for candidate, row in zip(candidates, rows, strict=True):
            options = {**candidate.options, "workload": asdict(workload)}
            log = logs / f"{candidate.name.replace(' ', '-')}.log"
            process = worker(candidate.opener, options, log=log, interpreter=candidate.interpreter)
            entrant = _Entrant(row, stack.enter_context(process))
            with record.guarded(row, f"{candidate.name}, batch {workload.batch}: opening"):
                _open(entrant, workload, deadline)
                live.append(entrant)
        for turn in range(rounds):
            for entrant in _rotated([each for each in live if each.row["status"] == "done"], turn):
                name = f"{entrant.row['name']}, batch {workload.batch}: turn {turn + 1} of {rounds}"
                with record.guarded(entrant.row, name):
                    limit_s = deadline.left_s(RUN_LIMIT_S)
                    entrant.add(entrant.worker.ask({"runs": workload.repeat}, timeout_s=limit_s), batch=workload.batch)


@dataclass(slots=True)
class _Entrant:
    """A candidate at work: its row of the document, its process, and what that has answered so far."""

    row: dict[str, Any]
    worker: Worker
    samples: list[Timings] = field(default_factory=list)
    network_ms: list[float] = field(default_factory=list)

    def add(self, answer: Mapping[str, Any], *, batch: int) -> None:
        """Joins a turn's samples to those before, and sums up anew."""
        runs = [Timings(**{**sample, "steps_ms": tuple(sample["steps_ms"])}) for sample in answer["samples"]]
        self.samples += [_averaged(run) for run in runs]
        self.network_ms += answer["network_ms"]
        measured = BenchRuns(
            samples=tuple(self.samples), load_s=self.row["open_s"], peak_memory_mb=answer["peak_memory_mb"]
        )
        self.row |= summary([measured], batch=batch)
        self.row["network_ms"] = statistics.median(self.network_ms) if self.network_ms else None


def compare(into: dict[str, Any], *, flops: Mapping[str, int], peak_tflops: float | None) -> None:
    """Adds to each result the arithmetic achieved, and how many times as fast as each torch candidate it is."""
    results = [row for row in into["results"] if "step_ms" in row]
    peers = [row for row in results if row["name"].startswith("torch")]
    for row in results:
        for stage in ("step", "decode"):
            if stage in flops:
                achieved = flops[stage] / (row[f"{stage}_ms"]["median"] / 1e3) / 1e12
                row[f"{stage}_tflops"] = achieved
                row[f"{stage}_share_of_peak"] = None if peak_tflops is None else achieved / peak_tflops
        row["times_as_fast_as"] = {
            peer["name"]: {key: value for key, value in ratios(row, peer).items() if key != "against"}
            for peer in peers
            if peer is not row
        }


def stage_flops(bundle: Bundle, workload: Workload) -> dict[str, int]:
    """Operations of one step and of one decoder call of a workload."""
    factor = bundle.family.vae_factor
    width, height = workload.size
    sizes = {"B": workload.batch, "h": height // factor, "w": width // factor}
    branches = 1 if workload.guidance <= 1 else 2
    context = {"K": branches, "L": bundle.family.context_length(1)}
    return {
        "step": graph_flops(bundle.component("step").graph.path, sizes | context),
        "decode": graph_flops(bundle.component("decoder").graph.path, sizes),
    }


def _open(entrant: _Entrant, workload: Workload, deadline: Deadline) -> None:
    before, began = used_memory_mb(), time.monotonic()
    entrant.worker.open(timeout_s=deadline.left_s(OPEN_LIMIT_S))
    if workload.warmup:
        entrant.worker.ask({"runs": workload.warmup}, timeout_s=deadline.left_s(OPEN_LIMIT_S))
    entrant.row["open_s"] = round(time.monotonic() - began, 1)
    after = used_memory_mb()
    entrant.row["gpu_memory_mb"] = None if before is None or after is None else after - before


def _averaged(run: Timings) -> Timings:
    """The mean call for the calls of a run: where calls are only launched, a single one's time says nothing."""
    return replace(run, steps_ms=(sum(run.steps_ms) / len(run.steps_ms),))


def _rotated(entrants: Sequence[_Entrant], turn: int) -> list[_Entrant]:
    """Each begins a round in its turn, so that nobody always follows the same one."""
    start = turn % len(entrants) if entrants else 0
    return [*entrants[start:], *entrants[:start]]
