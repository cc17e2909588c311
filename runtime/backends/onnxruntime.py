"""ONNX Runtime: the reference on every CPU, and CUDA where its provider is installed.

One session serves all sizes, so that `prepare` only loads; of a graph that was rewritten for CUDA each size has its
own, and the last one is kept. Inputs are read where they lie; outputs are buffers of their own, so that a kept one
stays valid for as long as it is held. With CUDA a loop uploads its inputs once and leaves its outputs on the device.
That has not run on a GPU: its logic is tested on memory of the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from latentrt.arrays import Array, Shape, Value, to_host
from latentrt.backends.base import GraphEngine, check_files, check_graph, mapped_errors
from latentrt.backends.cuda_libraries import load_cuda_libraries
from latentrt.backends.onnxruntime_cuda import Found, choose_rewritten
from latentrt.backends.onnxruntime_session import PROVIDERS, WEIGHTS_FOLDER, make_session, settings
from latentrt.backends.onnxruntime_weights import NO_WEIGHTS, NewWeights, overridden
from latentrt.engine import Engine, EngineOptions, Link
from latentrt.environment.install import install_command
from latentrt.errors import BundleError, EnvironmentLacks
from latentrt.graph import GraphFile

_ALIGNMENT = 256
_UNREADABLE = ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "NoModel")


class OnnxRuntimeEngine(GraphEngine):
    """A graph in an ONNX Runtime session."""

    backend = "onnxruntime"

    def __init__(
        self, graph: GraphFile, *, options: EngineOptions | None = None, rewritten: Found | None = None
    ) -> None:
        super().__init__(graph, options=options)
        self._rewritten = rewritten
        self._lengths: dict[str, int] = {}  # of the axes that the session was made for
        self._device = self.options.device if self.options.device is not None else "cpu"
        self._session: Any = None
        self._weights = NO_WEIGHTS  # a session does not hold the memory of those that it was given
        self._taken: tuple[Any, NewWeights] | None = None  # of the engine that this one replaces

    def _prepare(self, dims: Mapping[str, Shape]) -> None:
        lengths = {} if self._rewritten is None else self._rewritten.record.lengths(dims)
        if self._session is not None and lengths == self._lengths:
            return
        self._session = None  # of another size: two would hold the weights twice
        check_files(self.graph)
        with self._announced(f"loading {self.graph.component}"):
            if self._taken is not None:
                session, weights = self._taken
                with mapped_errors(f"loading {self.graph.path}"):
                    weights.feed(self.graph.overrides)
            elif self._rewritten is not None:
                session = _load_rewritten(self.graph, self._rewritten, lengths, self.options.threads)
                weights = NO_WEIGHTS
            else:
                session, weights = _load(self.graph, self._device, self.options.threads)
        with mapped_errors(f"loading {self.graph.path}"):  # names that are no text fail here
            inputs, outputs = ([node.name for node in nodes] for nodes in (session.get_inputs(), session.get_outputs()))
        check_graph(self.graph, inputs=inputs, outputs=outputs)
        self._session, self._weights, self._taken, self._lengths = session, weights, None, lengths

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
            held = [_bind_input(binding, name, feed[name], self._device) for name in self.inputs]
            for name, weight in self._weights.fed.items():
                binding.bind_ortvalue_input(name, weight)
            for name in self.outputs:
                if name in into:
                    binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(into[name]))
                else:
                    binding.bind_output(name, self._device if name in keep else "cpu")
            self._session.run_with_iobinding(binding)
            del held
            values = dict(zip(self.outputs, binding.get_outputs(), strict=True))
            return {name: self._unwrap(name, value, into, keep) for name, value in values.items()}

    def _sweep(
        self,
        feed: Mapping[str, Value],
        rows: Mapping[str, Array],
        carry: Mapping[str, str],
        before: Sequence[Link],
    ) -> Generator[Mapping[str, Value], None, None]:
        engines = [link.engine for link in before]
        if self._device == "cpu" or not all(isinstance(engine, OnnxRuntimeEngine) for engine in engines):
            yield from super()._sweep(feed, rows, carry, before)
            return
        dims = {name: value.shape for name, value in feed.items()}
        dims |= {name: values.shape[1:] for name, values in rows.items()}
        self.prepare(dims, before=before)
        sessions = [engine._session for engine in engines if isinstance(engine, OnnxRuntimeEngine)]
        links = list(zip(sessions, before, strict=True))
        with mapped_errors(f"running {self.graph.component}", hint="a smaller size or batch helps if memory ran out"):
            yield from sweep_on(self._session, self._device, feed, rows, carry, links)

    def _unwrap(self, name: str, value: Any, into: Mapping[str, Array], keep: Collection[str]) -> Value:
        if name in into:
            return into[name]
        if name in keep and self._device != "cpu":
            return CudaArray(value, dtype=self.outputs[name].dtype)
        host: Array = value.numpy()
        return host

    def _release(self) -> None:
        self._session, self._weights, self._taken, self._lengths = None, NO_WEIGHTS, None, {}


class CudaArray:
    """A kept output in GPU memory, or the one slot of it that begins at byte `offset`."""

    def __init__(self, ort_value: Any, *, dtype: str, shape: Shape | None = None, offset: int = 0) -> None:
        self.ort_value = ort_value
        self._dtype: np.dtype[Any] = np.dtype(dtype)
        self._shape: Shape = shape if shape is not None else tuple(ort_value.shape())
        self._offset = offset

    @property
    def shape(self) -> Shape:
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def address(self) -> int:
        return int(self.ort_value.data_ptr()) + self._offset

    def numpy(self) -> Array:
        values: Array = self.ort_value.numpy().reshape(-1)[self._offset // self._dtype.itemsize :]
        return values[: math.prod(self._shape)].reshape(self._shape)

    def slot(self, index: int) -> Value:
        """A view for a single row. ONNX Runtime offers no copy of the pieces that more of them would be."""
        rows, slots, *rest = self._shape
        if rows != 1:
            host: Array = self.numpy()[:, index]
            return host
        offset = self._offset + range(slots)[index] * math.prod(rest) * self._dtype.itemsize
        return CudaArray(self.ort_value, dtype=self._dtype.name, shape=(1, *rest), offset=offset)


def open_engine(graph: GraphFile, options: EngineOptions) -> OnnxRuntimeEngine:
    """An engine that loads on first use.

    Raises:
        EnvironmentLacks: a device whose provider this ONNX Runtime was built without.
    """
    provider = PROVIDERS[options.device if options.device is not None else "cpu"]
    if provider not in ort.get_available_providers():
        raise EnvironmentLacks(
            f"this onnxruntime has no {provider}",
            expected=f"one of {', '.join(ort.get_available_providers())}",
            hint="onnxruntime-gpu takes the place of onnxruntime: pip uninstall onnxruntime, then "
            f"{install_command('onnxruntime-gpu')}; or use device='cpu'",
        )
    rewritten = choose_rewritten(graph, options.cache_dir, ort.__version__) if options.device == "cuda" else None
    return OnnxRuntimeEngine(graph, options=options, rewritten=rewritten)


def sweep_on(
    session: Any,
    device: str,
    feed: Mapping[str, Value],
    rows: Mapping[str, Array],
    carry: Mapping[str, str],
    before: Sequence[tuple[Any, Link]] = (),
) -> Generator[Mapping[str, Value], None, None]:
    """A loop (`Engine.sweep`) on a device: everything is uploaded once, and bound where it lies."""
    fed = {name: _to_device(value, device) for name, value in feed.items()}
    tables = {name: _Table(values, device) for name, values in rows.items()}
    links = [
        (
            other,
            {name: _to_device(value, device) for name, value in link.feed.items()},
            {name: _Table(values, device) for name, values in link.rows.items()},
            link.gives,
        )
        for other, link in before
    ]
    for call in range(len(next(iter(rows.values())))):
        given: dict[str, Value | _Row] = {**fed, **{name: table[call] for name, table in tables.items()}}
        for other, own, changing, gives in links:
            mine = {**given, **own, **{name: table[call] for name, table in changing.items()}}
            results = _run_on(other, device, mine)
            given |= {name: results[output] for output, name in gives.items()}
        results = _run_on(session, device, given)
        fed |= {name: results[output] for name, output in carry.items()}
        yield results


def _run_on(session: Any, device: str, given: Mapping[str, Value | _Row]) -> dict[str, Value]:
    """One run on what lies on the device; its outputs stay there."""
    # One for each call: before 1.25 the outputs of a binding are views of what its next run replaces.
    binding = session.io_binding()
    held = []
    for name in (node.name for node in session.get_inputs()):
        value = given[name]
        if isinstance(value, _Row):
            binding.bind_input(name, device, 0, value.dtype, value.shape, value.address)
        else:
            held.append(_bind_input(binding, name, value, device))
    outputs = {node.name: _numpy_dtype(node.type) for node in session.get_outputs()}
    for name in outputs:
        binding.bind_output(name, device)
    session.run_with_iobinding(binding)
    del held
    values = zip(outputs.items(), binding.get_outputs(), strict=True)
    return {name: CudaArray(value, dtype=dtype) for (name, dtype), value in values}


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of a table, on the device."""

    dtype: np.dtype[Any]
    shape: Shape
    address: int


class _Table:
    """Rows on the device, each beginning where kernels may expect it to."""

    def __init__(self, values: Array, device: str) -> None:
        self.dtype = values.dtype
        self.shape: Shape = values.shape[1:]
        flat = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
        self._stride = -(-flat.shape[1] // _ALIGNMENT) * _ALIGNMENT
        padded = np.zeros((len(values), self._stride), np.uint8)
        padded[:, : flat.shape[1]] = flat
        self._values = ort.OrtValue.ortvalue_from_numpy(padded, device)

    def __getitem__(self, row: int) -> _Row:
        return _Row(self.dtype, self.shape, int(self._values.data_ptr()) + row * self._stride)


def _to_device(value: Value, device: str) -> Value:
    if isinstance(value, CudaArray):
        return value
    host = np.ascontiguousarray(to_host(value))
    return CudaArray(ort.OrtValue.ortvalue_from_numpy(host, device), dtype=host.dtype.name)


def _bind_input(binding: Any, name: str, value: Value, device: str) -> object:
    """Binds where the value lies; what is returned has to live until the run is over: a binding may not hold it."""
    if isinstance(value, CudaArray):
        binding.bind_input(name, device, 0, value.dtype, value.shape, value.address)
        return value
    ort_value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(to_host(value)))
    binding.bind_ortvalue_input(name, ort_value)
    return ort_value


def _numpy_dtype(kind: str) -> str:
    """`float32` of `tensor(float)`."""
    inner = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


def _load(graph: GraphFile, device: str, threads: int | None) -> tuple[Any, NewWeights]:
    """A session, and weights that have to live as long."""
    options = _options(device, threads)
    with (
        mapped_errors(f"loading {graph.path}", hint="use another backend, or report the graph"),
        ThreadPoolExecutor(1) as aside,
    ):
        model: Path | bytes = graph.path
        weights = NO_WEIGHTS
        if graph.overrides:
            model, weights = overridden(graph, device, options)
        feeding = aside.submit(weights.feed, graph.overrides)  # making a session takes one core only
        try:
            session = make_session(model, options, precision=graph.precision, device=device)
        except Exception as error:
            if type(error).__name__ not in _UNREADABLE:
                raise
            raise BundleError(
                f"{graph.path} cannot be read: {error}",
                expected="an ONNX graph",
                hint="export the bundle again, or copy it whole",
            ) from error
        feeding.result()
    _check_started(session, device)
    return session, weights


def _load_rewritten(graph: GraphFile, rewritten: Found, lengths: Mapping[str, int], threads: int | None) -> Any:
    """A session for one size; the weights lie where those of the plain graph do."""
    options = _options("cuda", threads)
    options.add_session_config_entry(WEIGHTS_FOLDER, str(graph.path.parent.resolve()))
    for axis, length in lengths.items():
        options.add_free_dimension_override_by_name(axis, length)
    hint = f"remove {rewritten.path.parent}, which brings the plain graph back, and report it"
    with mapped_errors(f"loading {rewritten.path}", hint=hint):
        session = make_session(
            rewritten.path.read_bytes(),
            options,
            precision=graph.precision,
            device="cuda",
            channels_last=rewritten.record.channels_last,
        )
    _check_started(session, "cuda")
    return session


def _options(device: str, threads: int | None) -> Any:
    if device == "cuda":
        _load_cuda()
    options = settings(threads=threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return options


@cache
def _load_cuda() -> None:
    """Once a process: every session needs it, and a size of its own makes a session."""
    load_cuda_libraries()
    ort.preload_dlls(directory="")  # what is left, beside onnxruntime itself


def _check_started(session: Any, device: str) -> None:
    if PROVIDERS[device] not in session.get_providers():
        raise EnvironmentLacks(
            f"onnxruntime could not start its {PROVIDERS[device]}",
            expected="a GPU, its driver, and the CUDA and cuDNN libraries that this onnxruntime was built for",
            hint="see its log with -v, or use device='cpu'",
        )
