"""ONNX Runtime: the reference on every CPU, and CUDA where its provider is installed (`device`).

On the CPU one session serves all sizes, so that `prepare` only loads. Inputs are read where they lie; outputs are
buffers of their own, so that a kept one stays valid for as long as it is held.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from latentrt.arrays import Array, Shape, Value, to_host
from latentrt.backends.base import GraphEngine, calls_of, check_files, mapped_errors
from latentrt.backends.cache import cache_of
from latentrt.backends.host_memory import give_back, in_loop
from latentrt.backends.onnxruntime.kept import kept_session
from latentrt.backends.onnxruntime.load import check_session, load_session
from latentrt.backends.onnxruntime.session import PROVIDERS, settings
from latentrt.backends.onnxruntime.weights import NO_WEIGHTS, NewWeights
from latentrt.backends.profiling.node_times import ProfiledRun
from latentrt.backends.profiling.onnxruntime import read_profile
from latentrt.engine import Engine, EngineOptions, Link
from latentrt.environment.install import install_command
from latentrt.errors import EnvironmentLacks
from latentrt.graph import GraphFile

_SHRINKAGE = "memory.enable_memory_arena_shrinkage"


class OnnxRuntimeEngine(GraphEngine):
    """A graph in an ONNX Runtime session."""

    backend = "onnxruntime"

    def __init__(self, graph: GraphFile, *, options: EngineOptions | None = None) -> None:
        super().__init__(graph, options=options)
        self._cache = None if graph.overrides else cache_of(graph, self.options.cache_dir, self.backend)
        self._session: Any = None
        self._ahead = 0  # calls of a sweep, the next one included
        self._weights = NO_WEIGHTS  # a session does not hold the memory of those that it was given
        self._taken: tuple[Any, NewWeights] | None = None  # of the engine that this one replaces

    def profiled_runs(self) -> list[ProfiledRun]:
        if not self.options.profile:
            return super().profiled_runs()
        return [] if self._session is None else read_profile(Path(self._session.end_profiling()))

    def _prepare(self, dims: Mapping[str, Shape]) -> None:
        if self._session is not None:
            return
        check_files(self.graph)
        with self._announced(f"loading {self.graph.component}"):
            if self._taken is not None:
                session, weights = self._taken
                with mapped_errors(f"loading {self.graph.path}"):
                    weights.feed(self.graph.overrides)
            elif self._cache is not None:
                session, weights = kept_session(self.graph, self._settings, self._cache), NO_WEIGHTS
            else:
                session, weights = load_session(self.graph, self._settings())
        check_session(self.graph, session)
        self._session, self._weights, self._taken = session, weights, None
        give_back()  # a third of what loading took

    def _settings(self) -> Any:
        options = settings(threads=self.options.threads)
        if self.options.profile:
            self._folder = tempfile.TemporaryDirectory(prefix="latentrt-profile-", ignore_cleanup_errors=True)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._folder.name) / self.graph.component)
        return options

    def replace(self, other: Engine) -> None:
        if isinstance(other, OnnxRuntimeEngine):
            loaded = other._taken if other._session is None else (other._session, other._weights)
            alike = (other.graph.path, other.options) == (self.graph.path, self.options)
            if alike and loaded is not None and loaded[1].serves(self.graph.overrides):
                self._taken = loaded
        other.close()

    def _run(self, feed: Mapping[str, Value], into: Mapping[str, Array], keep: Collection[str]) -> Mapping[str, Value]:
        with mapped_errors(f"running {self.graph.component}", hint="a smaller size or batch helps if memory ran out"):
            binding = self._session.io_binding()
            held = [_bind_input(binding, name, feed[name]) for name in self.inputs]
            for name, weight in self._weights.fed.items():
                binding.bind_ortvalue_input(name, weight)
            for name in self.outputs:
                if name in into:
                    binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(into[name]))
                else:
                    binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding, self._run_options())
            del held
            values = dict(zip(self.outputs, binding.get_outputs(), strict=True))
            return {name: into[name] if name in into else value.numpy() for name, value in values.items()}

    def _run_options(self) -> Any:
        """Of the last call of a loop, and of one outside of loops: memory that it worked in is given back. To take it
        anew in every call would cost a twentieth of a step."""
        options = ort.RunOptions()
        if self._ahead == 1 or not in_loop(self.graph.component):
            options.add_run_config_entry(_SHRINKAGE, "cpu:0")
        self._ahead = max(0, self._ahead - 1)
        return options

    def _sweep(
        self,
        feed: Mapping[str, Value],
        rows: Mapping[str, Array],
        carry: Mapping[str, str],
        before: Sequence[Link],
    ) -> Generator[Mapping[str, Value], None, None]:
        calls = calls_of(rows)
        self._ahead = calls if calls > 1 else 0  # one call is a part of a loop, as with step caching
        try:
            yield from super()._sweep(feed, rows, carry, before)
        finally:
            self._ahead = 0

    def _release(self) -> None:
        loaded = self._session is not None
        self._session, self._weights, self._taken = None, NO_WEIGHTS, None
        if loaded:
            give_back()


def open_engines(
    graphs: Sequence[GraphFile], options: EngineOptions, backend: str, beside: Engine | None = None
) -> dict[str, Engine]:
    """An engine for each graph, by component, which loads on first use; with CUDA on one device, that of `beside` if it
    is given.

    Raises:
        EnvironmentLacks: a device whose provider this ONNX Runtime was built without, and with CUDA no GPU, no driver
            or none of the libraries that it needs.
    """
    provider = PROVIDERS[options.device if options.device is not None else "cpu"]
    if provider not in ort.get_available_providers():
        raise EnvironmentLacks(
            f"this onnxruntime has no {provider}",
            expected=f"one of {', '.join(ort.get_available_providers())}",
            hint="onnxruntime-gpu takes the place of onnxruntime, as both write into one package: "
            f"{install_command('onnxruntime-gpu')}; or use device='cpu'",
        )
    if options.device == "cuda":
        from latentrt.backends.onnxruntime.device import open_on_gpu

        return open_on_gpu(graphs, options, beside)
    return {graph.component: OnnxRuntimeEngine(graph, options=options) for graph in graphs}


def _bind_input(binding: Any, name: str, value: Value) -> object:
    """Binds where the value lies; what is returned has to live until the run is over: a binding may not hold it."""
    ort_value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(to_host(value)))
    binding.bind_ortvalue_input(name, ort_value)
    return ort_value
