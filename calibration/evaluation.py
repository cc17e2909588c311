"""Measuring on prompts that were not calibrated on, so that nothing is measured twice after an interruption."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from latentrt.arrays import Array, to_host
from latentrt.bundle import Bundle
from latentrt.calibration.result_cache import ResultCache
from latentrt.engine import Engine
from latentrt.export.parity.gates import Evaluation, FloatOutputs, Status, apart_rows, measure_backend, observe_parent
from latentrt.export.parity.measurement import Measurement, Measurements, Pictures
from latentrt.export.parity.metrics import signal_to_noise_db
from latentrt.export.parity.probes import Probe

FEW_STEPS = 2


@dataclass(kw_only=True)
class Evaluator:
    """What the float parent does in an evaluation, and comparisons with it."""

    parent: Bundle
    evaluation: Evaluation
    components: Collection[str]
    cache: ResultCache
    threads: int | None
    status: Status = field(default=lambda _: None)

    @cached_property
    def reference(self) -> FloatOutputs:
        """The parent's calls and images."""
        return _unpacked(self.cache.arrays("float", self._observe, source=[*self._runs(), sorted(self.components)]))

    def sqnr(self, component: str, engine: Engine) -> dict[str, float]:
        """dB of a component by case, such as the network's branch: the mean over its calls, as the judgement has it."""
        ratios: dict[str, list[float]] = {}
        for probe in self.reference.probes:
            if probe.component == component:
                found = to_host(engine.run(probe.feed)[probe.output])
                ratios.setdefault(probe.case, []).append(signal_to_noise_db(found, probe.reference))
        return {case: float(np.mean(series)) for case, series in ratios.items()}

    def few(self, component: str) -> list[Probe]:
        """A short run's calls of a component with float's answers: one image, the last case, which is the prompt."""
        evaluation = replace(
            self.evaluation, prompts=self.evaluation.prompts[:1], batch=1, steps=min(FEW_STEPS, self.evaluation.steps)
        )
        short = observe_parent(self.parent, (component,), evaluation, threads=self.threads, status=self.status)
        return [probe for probe in short.probes if probe.case == short.probes[-1].case]

    def judge(self, bundle: Bundle) -> Measurements:
        """The rows of every backend, how far these are apart, and the images."""
        digests = {name: part.graph.digest for name, part in bundle.components.items()}
        rows: list[Measurement] = []
        images = {}
        for backend in self.evaluation.backends:

            def measure(backend: str = backend) -> Mapping[str, Array]:
                found, made = measure_backend(
                    bundle, self.reference, self.evaluation, backend, threads=self.threads, status=self.status
                )
                return {"rows": np.array(json.dumps([asdict(row) for row in found])), "images": made}

            source = [asdict(replace(self.evaluation, backends=(backend,))), digests]
            stored = self.cache.arrays(f"judged-{backend}", measure, source=source)
            rows += [Measurement(**{**row, "series": tuple(row["series"])}) for row in json.loads(str(stored["rows"]))]
            images[backend] = stored["images"]
        return Measurements(
            (*rows, *apart_rows(rows)), Pictures(self.evaluation.prompts, self.reference.images, images)
        )

    def _observe(self) -> Mapping[str, Array]:
        observed = observe_parent(
            self.parent, self.components, self.evaluation, threads=self.threads, status=self.status
        )
        return _packed(observed)

    def _runs(self) -> list[Any]:
        """What decides the parent's calls; limits, metrics and backends do not."""
        others = ("min_", "metric", "backends")
        return [{name: value for name, value in asdict(self.evaluation).items() if not name.startswith(others)}]


def _packed(reference: FloatOutputs) -> dict[str, Array]:
    arrays: dict[str, Array] = {"images": reference.images}
    rows = []
    for number, probe in enumerate(reference.probes):
        rows.append([probe.component, probe.case, probe.output])
        arrays |= {f"{number}/feed/{name}": array for name, array in probe.feed.items()}
        arrays[f"{number}/reference"] = probe.reference
    return {**arrays, "rows": np.array(json.dumps(rows))}


def _unpacked(arrays: Mapping[str, Array]) -> FloatOutputs:
    probes = []
    for number, (component, case, output) in enumerate(json.loads(str(arrays["rows"]))):
        prefix = f"{number}/feed/"
        feed = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        probes.append(Probe(component, case, feed, arrays[f"{number}/reference"], output))
    return FloatOutputs(tuple(probes), arrays["images"])
