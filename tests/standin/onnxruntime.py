"""A stand-in for sessions of ONNX Runtime's CUDA provider, on the stand-in's device memory and stream.

What it computes, ONNX Runtime computes on the CPU. A call waits for nobody unless it is asked to; with graphs the first
call of a name executes, captures and replays, later ones replay the addresses that were captured, whatever the binding
says now (`misuses` notes a difference). Outputs are poisoned before they are written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from standin.cudart import Cudart
from standin.memory import POISON, MisuseError

from latentrt.backends.cuda.api import Cuda
from latentrt.backends.onnxruntime import device as onnxruntime_device
from latentrt.backends.onnxruntime import load as onnxruntime_load
from latentrt.backends.onnxruntime.session import CPU, Provider, make_session

Places = dict[str, tuple[tuple[int, ...], np.dtype, int]]


@dataclass
class FakeProvider:
    """What makes sessions, in the place of `make_session`.

    Attributes:
        providers: which a session says it runs on.
        weights: bytes of device memory that a session holds.
        refuses_graphs: whether sessions that shall capture cannot be made, as with nodes on the CPU.
        capture_fails: whether captures do.
        arenas: by component, bytes of device memory that a first execution for new sizes asks for and keeps.
        made: what each session was asked for.
    """

    cudart: Cudart
    providers: tuple[str, ...] = ("CUDAExecutionProvider", "CPUExecutionProvider")
    weights: int = 100_000
    refuses_graphs: bool = False
    capture_fails: bool = False
    arenas: dict[str, int] = field(default_factory=dict)
    made: list[Provider] = field(default_factory=list)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr("onnxruntime.get_available_providers", lambda: [*self.providers])
        patch.setattr(onnxruntime_device, "open_cuda", lambda: Cuda(self.cudart))
        patch.setattr(onnxruntime_device, "make_session", self.make_session)
        patch.setattr(onnxruntime_load, "make_session", self.make_session)

    def make_session(
        self, model: Path | bytes, options: Any, *, precision: str | None, provider: Provider = CPU
    ) -> Any:
        if provider.device == "cpu":
            return make_session(model, options, precision=precision)
        assert provider.stream in self.cudart.streams
        options.intra_op_num_threads = 1
        computing = make_session(model, options, precision=None)
        if provider.graphs and self.refuses_graphs:
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        address = self.cudart.memory.allocate(self.weights)
        if address is None:
            raise RuntimeError(f"Failed to allocate memory for requested buffer of size {self.weights}")
        self.made.append(provider)
        return Session(self, computing, provider, address, name=model.stem if isinstance(model, Path) else "")


class Binding:
    def __init__(self) -> None:
        self.inputs: Places = {}
        self.outputs: Places = {}

    def bind_input(self, name: str, device: str, index: int, dtype: np.dtype, shape: Any, address: int) -> None:
        assert (device, index) == ("cuda", 0)
        self.inputs[name] = (tuple(shape), np.dtype(dtype), address)

    def bind_output(self, name: str, device: str, index: int, dtype: np.dtype, shape: Any, address: int) -> None:
        assert (device, index) == ("cuda", 0)
        self.outputs[name] = (tuple(shape), np.dtype(dtype), address)

    def state(self) -> tuple[Places, Places]:
        return dict(self.inputs), dict(self.outputs)


class Session:
    def __init__(self, made_by: FakeProvider, computing: Any, provider: Provider, weights: int, *, name: str) -> None:
        self._made_by, self._computing, self._provider, self._weights = made_by, computing, provider, weights
        self._name, self._arena = name, dict[str, int]()
        self._captured: dict[int, tuple[Places, Places]] = {}
        self.get_inputs, self.get_outputs = computing.get_inputs, computing.get_outputs
        self.io_binding = Binding

    def __del__(self) -> None:
        for address in (self._weights, *self._arena.values()):
            self._made_by.cudart.memory.free(address)

    def get_providers(self) -> list[str]:
        return list(self._made_by.providers)

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        graph_id, cudart = int(options.get_run_config_entry("gpu_graph_id")), self._made_by.cudart
        if not self._provider.graphs or graph_id == -1:
            self._execute(binding)
        elif graph_id in self._captured:
            self._replay(graph_id, binding)
        else:
            self._execute(binding)
            self._execute(binding)
            if self._made_by.capture_fails:
                raise RuntimeError("x.cc:154 CUDA failure 901: capture was invalidated ; GPU=0 ; hostname=x")
            cudart.trace.append("capture")
            self._captured[graph_id] = binding.state()
            self._replay(graph_id, binding)
        if options.get_run_config_entry("disable_synchronize_execution_providers") != "1":
            cudart.cudaStreamSynchronize(cudart.stream(self._provider.stream or 0))

    def _replay(self, graph_id: int, binding: Binding) -> None:
        if self._captured[graph_id] != binding.state():
            self._made_by.cudart.misuses.append("a captured graph is replayed for other addresses")
        self._put("launch graph", *self._captured[graph_id])

    def _execute(self, binding: Binding) -> None:
        asked = self._made_by.arenas.get(self._name, 0)
        place = str({name: shape for name, (shape, *_) in binding.inputs.items()})
        if asked and place not in self._arena:
            address = self._made_by.cudart.memory.allocate(asked)
            if address is None:
                raise RuntimeError(
                    "Non-zero status code returned while running Conv node. Name:'c' Status Message: bfc_arena.cc:376"
                    f" Available memory of 7 is smaller than requested bytes of {asked}"
                )
            self._arena[place] = address
        self._put("execute", *binding.state())

    def _put(self, event: str, inputs: Places, outputs: Places) -> None:
        cudart, computing, weights = self._made_by.cudart, self._computing, self._weights
        missing = {node.name for node in (*computing.get_inputs(), *computing.get_outputs())} - {*inputs, *outputs}
        if missing:
            raise RuntimeError(f"not bound: {missing}")
        cudart.trace.append(event)
        cudart.stream(self._provider.stream or 0).put(lambda: compute(cudart, computing, weights, inputs, outputs))


def compute(cudart: Cudart, computing: Any, weights: int, inputs: Places, outputs: Places) -> None:
    """What the device does for one launch.

    Raises:
        MisuseError: of the memory.
    """
    cudart.memory.view(weights, 1)
    fed, written = _views(cudart, inputs), _views(cudart, outputs)
    for name, view in written.items():
        for other, seen in (fed | written).items():
            if other != name and np.shares_memory(view, seen):
                raise MisuseError(f"'{name}' shares memory with '{other}'")
    if unwritten := [name for name, view in fed.items() if len(view) and (view == POISON).all()]:
        raise MisuseError(f"inputs {unwritten} were never written")
    feed = {name: fed[name].copy().view(dtype).reshape(shape) for name, (shape, dtype, _) in inputs.items()}
    for view in written.values():
        view[:] = POISON
    for (name, view), result in zip(written.items(), computing.run(list(written), feed), strict=True):
        if result.nbytes != len(view):
            raise MisuseError(f"'{name}' is {result.shape}")
        view[:] = np.ascontiguousarray(result).reshape(-1).view(np.uint8)


def _views(cudart: Cudart, places: Places) -> Mapping[str, np.ndarray]:
    return {
        name: cudart.memory.view(address, math.prod(shape) * dtype.itemsize)
        for name, (shape, dtype, address) in places.items()
    }
