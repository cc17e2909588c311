"""One torch module to one ONNX graph: opset 23, float32, named dynamic dimensions, weights in a file beside it, in the
type that the checkpoint has them in."""

import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from latentrt.export.graphs.translations import TRANSLATIONS
from latentrt.export.passes.stated import stated
from latentrt.export.passes.storage import save_graph
from latentrt.graph import GraphFile, TensorSpec

OPSET = 23

Dims = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class GraphInput:
    """An example value and the name of each dimension that may vary: `Dims` such as ("B", 4, "h", "w")."""

    example: Tensor
    dims: Dims

    @property
    def dynamic(self) -> dict[int, str]:
        return {axis: name for axis, name in enumerate(self.dims) if isinstance(name, str)}


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """What was written: IO as (dtype, dims), the number of weights, which checkpoint tensor each one is, and how many
    values are stored in each type."""

    inputs: Mapping[str, tuple[str, Dims]]
    outputs: Mapping[str, tuple[str, Dims]]
    parameters: int
    keys: Mapping[str, tuple[str, bool]]  # initializer -> (parameter's name, transposed)
    stored: Mapping[str, int]

    def file(self, name: str, path: Path) -> GraphFile:
        """The graph that was written to `path`, as engines take it, all axes free."""
        inputs, outputs = (
            {key: TensorSpec(dtype, (None,) * len(dims)) for key, (dtype, dims) in side.items()}
            for side in (self.inputs, self.outputs)
        )
        return GraphFile(name, path=path, inputs=inputs, outputs=outputs, weights=(path.with_suffix(".weights"),))

    def describe(self, path: Path, *, part: str) -> dict[str, Any]:
        """Writes the map of keys beside the graph at `path`, and returns the component's row of the manifest; `part` of
        the checkpoint has its weights."""
        weights, map_of_keys = path.with_suffix(".weights"), path.with_suffix(".keys.json")
        keys = {name: {"key": key, "transposed": transposed} for name, (key, transposed) in self.keys.items()}
        map_of_keys.write_text(json.dumps(keys, indent=1, sort_keys=True))
        return {
            "graph": path.name,
            "weights": [weights.name] if weights.exists() else [],
            "keys": map_of_keys.name,
            "checkpoint_part": part,
            "precision": "fp32",
            "parameters": self.parameters,
            "stored": dict(self.stored),
            "conversion": None,
            "lora": [],
            "inputs": {name: {"dtype": dtype, "dims": list(dims)} for name, (dtype, dims) in self.inputs.items()},
            "outputs": {name: {"dtype": dtype, "dims": list(dims)} for name, (dtype, dims) in self.outputs.items()},
        }


def export_graph(
    module: nn.Module,
    *,
    inputs: Mapping[str, GraphInput],
    outputs: Mapping[str, Dims],
    path: Path,
    prefix: str = "",
    finish: Callable[[ir.Model], None] | None = None,
) -> ExportedGraph:
    """Writes `path` (.onnx) and `path` with suffix .weights, and returns a description of the graph.

    `prefix` is left out of the names of weights and nodes: what stays is the checkpoint's own naming. `finish` changes
    the graph before it is written.

    The file holds no trace of the machine that made it: same module, same bytes.
    """
    with torch.no_grad(), _quiet_exporter(), _equal_axes(module, inputs):
        try:
            exported = _translate(_trace(module, inputs), inputs, outputs)
        except torch.onnx.OnnxExporterError:  # an operator that is neither torch's to translate nor ours
            exported = _translate(_trace(module, inputs), inputs, outputs, decompose=True)
        traced = list(exported.model.graph.initializers.values())
        exported.optimize()
    model = exported.model
    keys = _name_initializers(model, dict(module.named_parameters()), prefix)
    _name_nodes(model, prefix)
    _name_axes(model, outputs)
    _strip_metadata(model)
    if finish is not None:
        finish(model)
    stored = save_graph(model, path)
    _forget_weights([*traced, *model.graph.initializers.values()])
    return ExportedGraph(
        inputs={stated(value.name): _describe(value) for value in model.graph.inputs},
        outputs={stated(value.name): _describe(value) for value in model.graph.outputs},
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        keys=keys,
        stored=stored,
    )


def _trace(module: nn.Module, inputs: Mapping[str, GraphInput]) -> torch.export.ExportedProgram:
    return torch.export.export(
        module.eval(),
        (),
        kwargs={name: value.example for name, value in inputs.items()},
        dynamic_shapes={
            name: dict.fromkeys(value.dynamic, torch.export.Dim.DYNAMIC) or None for name, value in inputs.items()
        },
        strict=False,
    )


def _translate(
    program: torch.export.ExportedProgram,
    inputs: Mapping[str, GraphInput],
    outputs: Mapping[str, Dims],
    *,
    decompose: bool = False,
) -> torch.onnx.ONNXProgram:
    """`program` as ONNX, not yet optimised.

    With `decompose` torch traces a second time, for the sake of operators that it has no translation of: a third of an
    export. Those that the supported models have are translated by `TRANSLATIONS` instead.
    """
    if not decompose:
        _drop_reshapes(program.graph)
        program.run_decompositions = lambda *_: program
    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        output_names=list(outputs),
        dynamic_shapes={name: value.dynamic or None for name, value in inputs.items()},
        custom_translation_table=dict(TRANSLATIONS),
        verbose=False,
        optimize=False,
    )
    assert exported is not None  # None is what it gives where it writes a file
    return exported


def _drop_reshapes(graph: torch.fx.Graph) -> None:
    """Leaves out reshapes to the shape that there is: passes over graphs know attention without them."""
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.reshape.default or any(user.op == "output" for user in node.users):
            continue
        value, result = (str(tuple(each.meta["val"].shape)) for each in (node.args[0], node))
        if value == result:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


@contextmanager
def _equal_axes(module: nn.Module, inputs: Mapping[str, GraphInput]) -> Iterator[None]:
    """Tells the trace that axes of one name are of one length.

    It gives each its own symbol and learns late, if at all, that two agree: until then sizes are quotients of products
    of all of them, and deciding about those is what a deep network's trace would spend most of its hours with.
    """

    def check(_: nn.Module, __: tuple[()], values: dict[str, Tensor]) -> None:
        lengths: dict[str, int] = {}
        for key, value in inputs.items():
            for axis, name in value.dynamic.items():
                length = values[key].shape[axis]
                torch._check(  # type: ignore[no-untyped-call]
                    length == lengths.setdefault(name, length)
                )

    hook = module.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """torch's exporter warns about what is intended here: dimensions that share a name, its own deprecations."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.utils._sympy.interp", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _forget_weights(values: Iterable[ir.Value]) -> None:
    """The exporter's rewrite rules keep the last graph that they saw, with weights that are folded away by now: that
    would hold the module in memory."""
    for value in values:
        value.const_value = None


def _describe(value: ir.Value) -> tuple[str, Dims]:
    dims = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in stated(value.shape))
    return str(stated(value.dtype).numpy()), dims


def _name_initializers(model: ir.Model, parameters: Mapping[str, Tensor], prefix: str) -> dict[str, tuple[str, bool]]:
    """Gives folded weights their parameter's name back.

    Constant folding turns `x @ weight.T` into a product with a nameless transposed copy; it becomes
    `weight.T` here, so that adapters and refit find every weight by its name in the checkpoint.
    """
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, parameter in parameters.items():
        if parameter.ndim == 2:
            by_shape.setdefault(tuple(parameter.shape), []).append(name)
    keys: dict[str, tuple[str, bool]] = {}
    for value in list(model.graph.initializers.values()):
        name = stated(value.name)
        if name in parameters:
            value.name = name.removeprefix(prefix)
            keys[value.name] = (value.name, False)
            continue
        if len(stated(value.shape)) != 2:
            continue
        array = stated(value.const_value).numpy()
        for candidate in by_shape.get(array.shape[::-1], ()):
            if _equal(array, parameters[candidate].detach().numpy().T):
                key = candidate.removeprefix(prefix)
                value.name = f"{key}.T"
                keys[value.name] = (key, True)
                break
    return keys


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a[0], b[0]) and np.array_equal(a, b)


def _name_nodes(model: ir.Model, prefix: str) -> None:
    """Names each node after the module that it comes from, `down_blocks.0.resnets.0.conv1/Conv`, so that tables
    of patterns (what stays in float32, what is quantised) can speak of modules."""
    seen: dict[str, int] = {}
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]").strip("[]").split(", ")
        owner = "" if len(scopes) < 2 else scopes[-2].strip("'").removeprefix(prefix)
        name = f"{owner}/{node.op_type}" if not owner.startswith("_") else f"/{node.op_type}"
        count = seen[name] = seen.get(name, -1) + 1
        node.name = f"{name}_{count}" if count else name


def _name_axes(model: ir.Model, outputs: Mapping[str, Dims]) -> None:
    """Replaces the expressions that the trace gave the outputs' axes by the names of the contract."""
    for value in model.graph.outputs:
        value.shape = ir.Shape(outputs[stated(value.name)])


def _strip_metadata(model: ir.Model) -> None:
    """Removes stack traces and the paths in them: they would make the bytes depend on the machine."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name, model.producer_version, model.doc_string = "latentrt", "", None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
