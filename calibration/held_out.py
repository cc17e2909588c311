"""Measuring on prompts that were not calibrated on, so that nothing is measured twice after an interruption."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from latentrt.bundle import Bundle
from latentrt.calibration.judge import Exam, Probe, Reference, Row, Status, apart_rows, judge_observed, observe_parent
from latentrt.calibration.kept import Kept
from latentrt.calibration.measures import sqnr_db
from latentrt.engine import Array, Engine, to_host

FEW_STEPS = 2


@dataclass(kw_only=True)
class HeldOut:
    """What the float parent does in an exam, and comparisons with it.

    Args:
        parent: the float bundle.
        exam: what is run.
        components: those that the judgement is of.
        kept: where results stay.
        threads: within one engine call; None is the backend's choice.
        status: called with a line before each piece of work.
    """

    parent: Bundle
    exam: Exam
    components: Collection[str]
    kept: Kept
    threads: int | None
    status: Status = field(default=lambda _: None)

    @cached_property
    def reference(self) -> Reference:
        """The parent's calls and images."""
        return _unpacked(self.kept.arrays("float", self._observe, source=[*self._runs(), sorted(self.components)]))

    def sqnr(self, component: str, engine: Engine) -> dict[str, float]:
        """dB of a component by case, such as the network's branch: the mean over its calls, as the judgement has it."""
        ratios: dict[str, list[float]] = {}
        for probe in self.reference.probes:
            if probe.component == component:
                found = to_host(engine.run(probe.feed)[probe.output])
                ratios.setdefault(probe.case, []).append(sqnr_db(found, probe.reference))
        return {case: float(np.mean(series)) for case, series in ratios.items()}

    def few(self, component: str) -> list[Probe]:
        """A short run's calls of a component with float's answers: one image, the last case, which is the prompt."""
        exam = replace(self.exam, prompts=self.exam.prompts[:1], batch=1, steps=min(FEW_STEPS, self.exam.steps))
        short = observe_parent(self.parent, (component,), exam, threads=self.threads, status=self.status)
        return [probe for probe in short.probes if probe.case == short.probes[-1].case]

    def judge(self, bundle: Bundle) -> list[Row]:
        """The rows of every backend, and how far these are apart."""
        digests = {name: part.graph.digest for name, part in bundle.components.items()}
        rows = []
        for backend in self.exam.backends:
            exam = replace(self.exam, backends=(backend,))

            def measure(exam: Exam = exam) -> list[dict[str, Any]]:
                found = judge_observed(bundle, self.reference, exam, threads=self.threads, status=self.status)
                return [asdict(row) for row in found]

            stored = self.kept.value(f"judged-{backend}", measure, source=[asdict(exam), digests])
            rows += [Row(**{**row, "series": tuple(row["series"])}) for row in stored]
        return [*rows, *apart_rows(rows)]

    def _observe(self) -> Mapping[str, Array]:
        observed = observe_parent(self.parent, self.components, self.exam, threads=self.threads, status=self.status)
        return _packed(observed)

    def _runs(self) -> list[Any]:
        """What decides the parent's calls; limits and backends do not."""
        exam = asdict(self.exam)
        return [{name: value for name, value in exam.items() if not name.startswith("min_") and name != "backends"}]


def _packed(reference: Reference) -> dict[str, Array]:
    arrays: dict[str, Array] = {"images": reference.images}
    rows = []
    for number, probe in enumerate(reference.probes):
        rows.append([probe.component, probe.case, probe.output])
        arrays |= {f"{number}/feed/{name}": array for name, array in probe.feed.items()}
        arrays[f"{number}/reference"] = probe.reference
    return {**arrays, "rows": np.array(json.dumps(rows))}


def _unpacked(arrays: Mapping[str, Array]) -> Reference:
    probes = []
    for number, (component, case, output) in enumerate(json.loads(str(arrays["rows"]))):
        prefix = f"{number}/feed/"
        feed = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        probes.append(Probe(component, case, feed, arrays[f"{number}/reference"], output))
    return Reference(tuple(probes), arrays["images"])
