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
from torch import nn

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


class _Content(pickle.Pickler):
    """Writes tensors by value: torch writes where they lie in memory as well."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            flat = value.detach().contiguous().reshape(-1)
            return tuple, ((str(value.dtype), tuple(value.shape), flat.view(torch.uint8).numpy().tobytes()),)
        return NotImplemented


def content(*values: Any) -> str:
    """A digest of what the values hold."""
    written = io.BytesIO()
    _Content(written, protocol=5).dump(values)
    return hashlib.sha256(written.getvalue()).hexdigest()


def shared_export(once: Callable[[str, Callable[[Path], Any]], Any]) -> Export:
    """As `export_graph`; what has been traced before is copied."""

    def export(module: nn.Module, *, path: Path, **arguments: Any) -> ExportedGraph:
        inputs: Mapping[str, GraphInput] = arguments["inputs"]
        traced = {
            name: (str(value.example.dtype), tuple(value.example.shape), value.dims) for name, value in inputs.items()
        }
        name = f"trace-{content(module.eval(), path.name, {**arguments, 'inputs': traced})}"

        def make(folder: Path) -> tuple[Path, ExportedGraph]:
            return folder, export_graph(module, path=folder / path.name, **arguments)

        made, graph = once(name, make)
        shutil.copytree(made, path.parent, dirs_exist_ok=True)
        return graph

    return export
