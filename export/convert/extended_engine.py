"""A component on ONNX Runtime whose graph has further outputs: what counts, probes or compares inside of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentrt.arrays import Array, Shape, Value, to_host
from latentrt.backends.base import GraphEngine, check_files, mapped_errors
from latentrt.backends.onnxruntime.session import make_session, watching
from latentrt.engine import EngineOptions
from latentrt.graph import GraphFile

Extended = tuple[bytes | Path, Sequence[str]]
"""A graph, as a serialised model whose weights lie beside the original or as a file, and its further outputs."""


class ExtendedEngine(GraphEngine):
    """Runs a component with further outputs on the CPU; to a pipeline it is an engine like any other.

    Args:
        load: gives the extended graph.
        seen: called after each run with what it was fed and the further outputs.
        also: its further inputs; read anew in each run.
        level: how far ONNX Runtime may rewrite it, a `GraphOptimizationLevel`; None: as it does by default.
    """

    backend = "onnxruntime"

    def __init__(
        self,
        graph: GraphFile,
        *,
        load: Callable[[], Extended],
        seen: Callable[[Mapping[str, Value], Mapping[str, Array]], None],
        also: Mapping[str, Array] | None = None,
        level: Any = None,
        options: EngineOptions | None = None,
    ) -> None:
        super().__init__(graph, options=options)
        self._source, self._seen, self._level = load, seen, level
        self._also = {} if also is None else dict(also)
        self._extra: Sequence[str] = ()
        self._session: Any = None

    def _prepare(self, dims: Mapping[str, Shape]) -> None:
        if self._session is None:
            check_files(self.graph)
            with self._announced(f"loading {self.graph.component} with further outputs"):
                self._session = self._load()

    def _load(self) -> Any:
        options = watching(self.graph, threads=self.options.threads)
        if self._level is not None:
            options.graph_optimization_level = self._level
        with mapped_errors(f"loading {self.graph.path}", hint="export the bundle again"):
            model, self._extra = self._source()
            return make_session(model, options, precision=self.graph.precision)

    def _run(self, feed: Mapping[str, Value], into: Mapping[str, Array], keep: Collection[str]) -> Mapping[str, Value]:
        names = [*self.outputs, *self._extra]
        with mapped_errors(f"running {self.graph.component}"):
            values = self._session.run(names, {**self._also, **{name: to_host(feed[name]) for name in self.inputs}})
        found = dict(zip(names, values, strict=True))
        self._seen(feed, {name: found[name] for name in self._extra})
        for name, array in into.items():
            array[...] = found[name]
        return {name: into.get(name, found[name]) for name in self.outputs}

    def _release(self) -> None:
        self._session = None
