"""What rounding each operator costs: where it stands, and at the end of the graph.

The float graph is run with a twin of every operator that gets the same input and rounds it and its weights. The power
of the difference of the two outputs over that of the float one is the operator's own damage: one pass gives all of
them. Gates put single twins in the place of their operators: how much of the damage reaches the graph's output, one
operator a run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from latentrt.arrays import Array, Value, to_host
from latentrt.bundle import Bundle
from latentrt.calibration.collect import CalibrationSettings, extended_pipeline
from latentrt.calibration.placement import Operator
from latentrt.calibration.quantize import Scales, constant, quantize, save
from latentrt.engine import EngineOptions
from latentrt.export.convert.extended_engine import ExtendedEngine
from latentrt.export.parity.metrics import signal_to_noise_db
from latentrt.export.parity.probes import Probe
from latentrt.export.passes.stated import stated
from latentrt.export.passes.storage import load_graph
from latentrt.graph import GraphFile

PROMPTS, STEPS = 2, 4  # of the pass: ratios of powers over many values settle soon
GATES = "layer.gates"
_NOISE, _POWER, _SIZE = "noise", "power", "size"
_ROUNDED = "/Rounded"

Measures = Mapping[str, "Measure"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One operator in the pass.

    Args:
        sqnr_db: power of its float output over that of its own rounding error; None: it is not quantised.
        work_macs: multiply-accumulates for one image and one guidance branch.
        output_sqnr_db: power of the component's output over the error in it where this operator alone is rounded;
            None: not measured.
    """

    sqnr_db: float | None
    work_macs: int
    output_sqnr_db: float | None = None


def short_settings(settings: CalibrationSettings, *, prompts: Sequence[str], seed: int) -> CalibrationSettings:
    """A short run on other prompts, one after the other, spread over the schedule like calibration itself."""
    steps = min(STEPS, settings.steps)
    return replace(
        settings, prompts=tuple(prompts[:PROMPTS]), sizes=settings.sizes[:1], seed=seed, steps=steps, batch=1
    )


def measure_layers(
    parent: Bundle,
    settings: CalibrationSettings,
    found: Mapping[str, Sequence[Operator]],
    scales: Mapping[str, Scales],
    *,
    folder: Path,
    threads: int | None = None,
    status: Callable[[str], None] = lambda _: None,
) -> dict[str, dict[str, Measure]]:
    """Each operator of some components, by component and name.

    Args:
        folder: for the graphs of the pass, about 1.3 times the components' weights; removed afterwards.
    """
    status("layers: writing the graph with both forms of every operator")
    sums = {name: _Sums(operators) for name, operators in found.items()}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        engines = {
            name: _engine(
                parent.component(name).graph,
                found[name],
                scales[name],
                gates=_gates(found[name]),
                extra=sums[name].names,
                seen=sums[name].add,
                folder=folder,
                threads=threads,
            )
            for name in found
        }
        pipe = stack.enter_context(extended_pipeline(parent, engines, threads=threads))
        requests = list(settings.requests(parent.family.noise.num_train_timesteps))
        for number, request in enumerate(requests):
            for step in pipe.steps(request):
                status(f"layers: prompt {number + 1} of {len(requests)}, call {step.index + 1} of {step.total}")
            if "decoder" in found:
                pipe.decode(step.latent())
    return {name: each.measures() for name, each in sums.items()}


class _Sums:
    """Powers of one component's operators over all calls."""

    def __init__(self, operators: Sequence[Operator]) -> None:
        self.operators = operators
        kinds = {True: (_SIZE, _POWER, _NOISE), False: (_SIZE,)}  # of those that are quantised, and the others
        self.names = [_name(o, kind) for o in operators for kind in kinds[o.float_reason is None]]
        self._totals = dict.fromkeys(self.names, 0.0)
        self._samples = 0

    def add(self, feed: Mapping[str, Value], found: Mapping[str, Array]) -> None:
        # Guidance is [branches, images]; other components have one row a sample.
        rows = feed["guidance"] if "guidance" in feed else to_host(next(iter(feed.values())))[:, :1]
        self._samples += int(np.prod(rows.shape[:2]))
        for name, value in found.items():
            self._totals[name] += float(value)

    def measures(self) -> dict[str, Measure]:
        return {operator.name: self._measure(operator) for operator in self.operators}

    def _measure(self, operator: Operator) -> Measure:
        outputs = self._totals[_name(operator, _SIZE)] / max(1, self._samples)
        work = round(outputs * operator.size / operator.shape[operator.out_axis])
        if operator.float_reason is not None:
            return Measure(None, work)
        noise, power = (self._totals[_name(operator, kind)] for kind in (_NOISE, _POWER))
        return Measure(10 * float(np.log10(max(power, 1e-300) / max(noise, 1e-300))), work)


def measure_outputs(
    graph: GraphFile,
    found: Sequence[Operator],
    scales: Scales,
    probes: Sequence[Probe],
    *,
    folder: Path,
    threads: int | None = None,
    status: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """dB of a component's output where a single operator is rounded, by the operator's name. The damages of several
    add up nearly as powers.

    Args:
        probes: calls with float's answers; each is repeated for every operator, in twice the time of the float graph.
    """
    gates = _gates(found)
    ratios = {}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        engine = stack.enter_context(
            _engine(graph, found, scales, gates=gates, extra=(), seen=_ignore, folder=folder, threads=threads)
        )
        quantised = [operator.name for operator in found if operator.float_reason is None]
        for place, name in enumerate(quantised):
            status(f"{graph.component}: operator {place + 1} of {len(quantised)} alone")
            gates[:] = False
            gates[place] = True
            series = [
                signal_to_noise_db(to_host(engine.run(probe.feed)[probe.output]), probe.reference) for probe in probes
            ]
            ratios[name] = float(np.mean(series))
    return ratios


def _gates(found: Sequence[Operator]) -> Array:
    """One for each quantised operator, all closed."""
    return np.zeros(sum(operator.float_reason is None for operator in found), np.bool_)


def _ignore(_: Mapping[str, Value], __: Mapping[str, Array]) -> None:
    """For runs of which only the outputs count."""


def _engine(
    graph: GraphFile,
    found: Sequence[Operator],
    scales: Scales,
    *,
    gates: Array,
    extra: Sequence[str],
    seen: Callable[[Mapping[str, Value], Mapping[str, Array]], None],
    folder: Path,
    threads: int | None,
) -> ExtendedEngine:
    path = folder / graph.path.name
    weights = path.with_suffix(".weights")
    model = load_graph(graph.path)
    compare(model, found, scales)
    save(model, path)
    return ExtendedEngine(
        replace(graph, path=path, weights=(weights,), digest=None, precision=scales.form.name),
        load=lambda: (path, extra),
        seen=seen,
        also={GATES: gates},
        options=EngineOptions(threads=threads),
    )


def compare(model: ir.Model, found: Sequence[Operator], scales: Scales) -> None:
    """Adds to a float graph the rounded twin of each quantised operator, which an open gate puts in its place, the
    powers of output and difference, and the number of every operator's outputs, as graph outputs."""
    nodes = {node.name: node for node in model.graph}
    gates = ir.Value(name=GATES, shape=ir.Shape(("gates",)), type=ir.TensorType(ir.DataType.BOOL))
    model.graph.inputs.append(gates)
    twins: list[Operator] = []
    for operator in found:
        node = nodes[operator.name]
        add = partial(_add, model, operator)
        size = add(node, "Size", node.outputs[0], output=_SIZE)
        size.dtype = ir.DataType.INT64
        if operator.float_reason is not None:
            continue
        twin = _twin(node)
        model.graph.insert_after(node, twin)
        _gate(model, gates, len(twins), node, twin)
        twins.append(replace(operator, name=stated(twin.name)))
        exact = add(twin, "Cast", node.outputs[0], to=ir.DataType.FLOAT)
        rounded = add(stated(exact.producer()), "Cast", twin.outputs[0], to=ir.DataType.FLOAT)
        difference = add(stated(rounded.producer()), "Sub", exact, rounded)
        for kind, value in ((_POWER, exact), (_NOISE, difference)):
            output = add(stated(difference.producer()), "ReduceSumSquare", value, output=kind, keepdims=0)
            output.dtype = ir.DataType.FLOAT
    quantize(model, twins, replace(scales, folded=frozenset()))
    _dequantise_late(model, twins)


def _dequantise_late(model: ir.Model, twins: Sequence[Operator]) -> None:
    """Makes the twins' weights float when their turn comes. ONNX Runtime runs first what depends on no input, and
    would hold all of them at once: their scales get a 0 that is made of the shape of what the twin reads."""
    nodes = {node.name: node for node in model.graph}
    first, none = (constant(model, f"layer.{name}", np.array([0])) for name in ("first", "none"))
    for operator in twins:
        twin = nodes[operator.name]
        dequantise = stated(stated(twin.inputs[1]).producer())
        scale = stated(dequantise.inputs[1])
        constant_scale = stated(scale.const_value)
        shape = ir.node("Shape", [twin.inputs[0]])
        length = ir.node("Gather", [shape.outputs[0], first])
        least = ir.node("Min", [length.outputs[0], none])
        cast = ir.node("Cast", [least.outputs[0]], {"to": constant_scale.dtype})
        late = ir.node("Add", [scale, cast.outputs[0]])
        for node in (added := [shape, length, least, cast, late]):
            node.name = f"{operator.name}/late/{node.op_type}"
            node.outputs[0].name = f"{node.name}.y"
        late.outputs[0].dtype, late.outputs[0].shape = constant_scale.dtype, scale.shape
        model.graph.insert_before(dequantise, added)
        dequantise.replace_input_with(1, late.outputs[0])


def _twin(node: ir.Node) -> ir.Node:
    twin = ir.Node(
        node.domain,
        node.op_type,
        node.inputs,
        attributes=list(node.attributes.values()),
        name=f"{node.name}{_ROUNDED}",
        num_outputs=1,
    )
    output = twin.outputs[0]
    output.name, output.type, output.shape = f"{twin.name}.y", node.outputs[0].type, node.outputs[0].shape
    return twin


def _gate(model: ir.Model, gates: ir.Value, place: int, node: ir.Node, twin: ir.Node) -> None:
    """Lets all that reads the node read the twin instead where its gate is open."""
    name = f"layer.gate.{place}"
    index = constant(model, f"{name}.index", np.array(place))
    gate = ir.node("Gather", [gates, index], name=name)
    gate.outputs[0].name = f"{name}.open"
    exact = node.outputs[0]
    chosen = ir.node("Where", [gate.outputs[0], twin.outputs[0], exact], name=f"{name}/Where")
    value = chosen.outputs[0]
    value.name, value.type, value.shape = f"{exact.name}.chosen", exact.type, exact.shape
    for use in list(exact.uses()):
        if use.node is not chosen:
            use.node.replace_input_with(use.idx, value)
    if exact.is_graph_output():
        model.graph.outputs[model.graph.outputs.index(exact)] = value
        value.name, exact.name = exact.name, f"{exact.name}.exact"
    model.graph.insert_after(twin, [gate, chosen])


def _add(
    model: ir.Model,
    operator: Operator,
    behind: ir.Node,
    kind: str,
    *inputs: ir.Value,
    output: str | None = None,
    **attributes: int,
) -> ir.Value:
    node = ir.node(kind, inputs, attributes)
    value = node.outputs[0]
    value.name = f"{behind.name}/{kind}" if output is None else _name(operator, output)
    node.name = value.name
    value.dtype = ir.DataType.FLOAT
    model.graph.insert_after(behind, node)
    if output is not None:
        value.shape = ir.Shape(())
        model.graph.outputs.append(value)
    return value


def _name(operator: Operator, kind: str) -> str:
    return f"layer.{kind}.{operator.name}"
