"""Graphs that are traced once in a run of the tests, for all files and workers.

Tracing takes seconds, and tiny checkpoints have many parts in common. What is traced is known by its content: classes,
settings and weights of all modules, the names, axes and sizes of the inputs, and what finishes the graph. A test that
changes a class or a function of the exporter traces for itself.
"""

import hashlib
import io
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir
import torch
from diffusers.configuration_utils import FrozenDict
from torch import nn
from transformers import PreTrainedConfig

from latentrt.export.graphs.onnx_from_torch import Dims, ExportedGraph, GraphInput, export_graph


class Export(Protocol):
    """`export_graph`."""

    def __call__(
        self,
        module: nn.Module,
        *,
        inputs: Mapping[str, GraphInput],
        outputs: Mapping[str, Dims],
        path: Path,
        prefix: str = "",
        finish: Callable[[ir.Model], None] = ...,
    ) -> ExportedGraph: ...


_ELSEWHERE = ("_name_or_path", "name_or_path", "_use_default_values")  # where a checkpoint lay, and how it was read


class _Content(pickle.Pickler):
    """Writes tensors and settings by value: torch writes where they lie in memory as well, and transformers and
    diffusers where on disk."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.fast = True  # equal values are written alike, whether they are one object or several

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            flat = value.detach().contiguous().reshape(-1)
            return tuple, ((str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()),)
        if isinstance(value, nn.Module | PreTrainedConfig | FrozenDict):
            held = dict(value) if isinstance(value, FrozenDict) else vars(value)
            return tuple, ((type(value), {key: _in_order(held[key]) for key in held if key not in _ELSEWHERE}),)
        return NotImplemented


def _in_order(value: Any) -> Any:
    """Sets as lists: in each process they have an order of their own."""
    return sorted(value, key=repr) if isinstance(value, set | frozenset) else value


def content(*values: Any) -> str:
    """A digest of what the values hold."""
    written = io.BytesIO()
    _Content(written).dump(values)
    return hashlib.sha256(written.getvalue()).hexdigest()


def shared_export(once: Callable[[str, Callable[[Path], Any]], Any]) -> Export:
    """As `export_graph`; what has been traced before is copied."""

    def export(module: nn.Module, *, path: Path, **arguments: Any) -> ExportedGraph:
        inputs: Mapping[str, GraphInput] = arguments["inputs"]
        traced = {
            name: (str(value.example.dtype), tuple(value.example.shape), value.dims) for name, value in inputs.items()
        }
        name = f"trace-{content(module.eval(), path.name, sorted({**arguments, 'inputs': traced}.items()))}"

        def make(folder: Path) -> tuple[Path, ExportedGraph]:
            return folder, export_graph(module, path=folder / path.name, **arguments)

        made, graph = once(name, make)
        shutil.copytree(made, path.parent, dirs_exist_ok=True)
        return graph

    return export
