"""A quantised graph for a moment: written beside the work, measured on ONNX Runtime, removed."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentrt.backends import open_engine
from latentrt.calibration.evaluation import Evaluator
from latentrt.calibration.placement import Operator
from latentrt.calibration.quantize import Scales, quantize, save
from latentrt.export.passes.storage import load_graph

BACKEND = "onnxruntime"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one trial.

    Args:
        sqnr_db: of the worst case, such as a guidance branch: the mean over the calls.
    """

    sqnr_db: float
    graph_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """Tries scales and sets of quantised operators; each is measured once, also over interruptions.

    Args:
        folder: for the graphs, as large as what is tried; removed after each trial.
    """

    evaluator: Evaluator
    folder: Path

    def run(self, component: str, found: Sequence[Operator], scales: Scales, *, what: str) -> Outcome:
        """Measures one component. `what`: for the status line."""
        source = [scales_digest(scales), [operator.name for operator in found if operator.float_reason is None]]
        name = f"trial-{component}-{hashlib.sha256(repr(source).encode()).hexdigest()[:16]}"
        measure: Callable[[], list[Any]] = lambda: self._measure(component, found, scales, what)  # noqa: E731
        return Outcome(*self.evaluator.cache.value(name, measure, source=source))

    def _measure(self, component: str, found: Sequence[Operator], scales: Scales, what: str) -> list[Any]:
        self.evaluator.status(f"{component}: trying {what}")
        graph = self.evaluator.parent.component(component).graph
        path = self.folder / graph.path.name
        weights = path.with_suffix(".weights")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            model = load_graph(graph.path)
            quantize(model, found, scales)
            save(model, path)
            tried = replace(graph, path=path, weights=(weights,), digest=None, precision=scales.form.name)
            engine = open_engine(tried, backend=BACKEND, threads=self.evaluator.threads)
            try:
                ratios = self.evaluator.sqnr(component, engine)
            finally:
                engine.close()
            size = sum(file.stat().st_size for file in (path, weights) if file.exists())
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        return [min(ratios.values()), size]


def scales_digest(scales: Scales) -> str:
    """Changes with anything in them."""
    digest = hashlib.sha256(repr([scales.form.name, sorted(scales.ranges.items()), sorted(scales.folded)]).encode())
    for tensor, factors in sorted(scales.factors.items()):
        digest.update(tensor.encode() + factors.tobytes())
    return digest.hexdigest()
