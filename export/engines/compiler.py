"""One graph to one plan: parse, look at what it contains, compile. TensorRT's module is a parameter throughout."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from latentrt.backends.tensorrt.module import TensorRt, TensorRtRtx
from latentrt.backends.tensorrt.records import Profile
from latentrt.bundle import Component
from latentrt.errors import BackendError, BundleError
from latentrt.export.engines.monitor import plain, progress_monitor
from latentrt.export.engines.targets import Target
from latentrt.export.engines.variants import Toolkit
from latentrt.files.atomic import write_if_possible

if TYPE_CHECKING:
    import tensorrt
    import tensorrt_rtx

Report = Callable[[str, int, int], None]
T = TypeVar("T")
_CHUNK_BYTES = 16 << 20

# Names as in numpy and ml_dtypes.
_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "FP4": "float4_e2m1fn",
    "E8M0": "float8_e8m0fnu",
    "INT4": "int4",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}


# Names that TensorRT has since version 11; 10 has no such layers.
_ATTENTION, _BOUNDARY = ("ATTENTION_INPUT", "ATTENTION_OUTPUT"), "IAttentionBoundaryLayer"


@dataclass(frozen=True, slots=True)
class GraphSummary:
    """What a graph contains, as TensorRT reads it.

    Args:
        types: how many of the layers' outputs are of each type.
        products: types of the matrix products.
        io: type of each input and output.
    """

    layers: int
    _: KW_ONLY
    types: Mapping[str, int]
    products: tuple[str, ...]
    io: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PlanFile:
    """A plan that was written: its size and hash, and the device memory that the builder reported for it, None where
    it reported none."""

    bytes: int
    _: KW_ONLY
    sha256: str
    weights_bytes: int | None
    activation_bytes: int | None


def parse(kit: Toolkit, component: Component) -> ParsedGraph:
    """A component as a network of TensorRT."""
    return _beside(lambda: ParsedGraph(kit, component))


class ParsedGraph:
    """What `parse` makes."""

    def __init__(self, kit: Toolkit, component: Component) -> None:
        trt = kit.trt
        self.kit, self.component = kit, component
        kit.log.begin()
        log: Any = kit.log  # it is an ILogger of whichever module, which no type says
        self.builder = trt.Builder(log)
        self.network = self.builder.create_network(0)
        self._parser = trt.OnnxParser(self.network, log)  # owns the weights: lives as long as the network
        if not self._parser.parse_from_file(str(component.graph.path)):
            raise self._parser_error()
        for i in range(self.network.num_layers):
            _allow_any_attention(trt, self.network.get_layer(i))
        self.survey = survey(trt, self.network)
        self._check_io()

    def compile(self, config: tensorrt.IBuilderConfig, path: Path) -> PlanFile:
        """Builds and writes the plan."""
        plan = self.builder.build_serialized_network(self.network, config)
        if plan is None:
            raise BackendError(
                f"{self.kit.variant.title} cannot compile {self.component.name}: {self.kit.log.trouble()}",
                hint="--debug shows its whole log",
            )
        digest, data = hashlib.sha256(), memoryview(plan)
        with path.open("wb") as file:
            for start in range(0, len(data), _CHUNK_BYTES):
                chunk = data[start : start + _CHUNK_BYTES]
                digest.update(chunk)
                file.write(chunk)
        weights, activation = (self.kit.log.memory(kind) for kind in ("Weights", "Activation"))
        return PlanFile(len(data), sha256=digest.hexdigest(), weights_bytes=weights, activation_bytes=activation)

    def _parser_error(self) -> BackendError:
        error = self._parser.get_error(0) if self._parser.num_errors else None
        node = error.node_name() if error is not None else ""
        where = f" at node '{node}' ({error.node_operator()})" if error is not None and node else ""
        what = plain(error.desc()) if error is not None else self.kit.log.trouble()
        types = self.kit.log.inputs_of(node) if node else None
        return BackendError(
            f"{self.kit.variant.title} does not take the graph of {self.component.name}{where}: {what}"
            + (f"; its inputs are {types}" if types is not None else ""),
            expected="operators that it knows, with inputs of one type",
            hint="export or convert the bundle again with this version",
        )

    def _check_io(self) -> None:
        graph = self.component.graph
        promised = {name: spec.dtype for name, spec in {**graph.inputs, **graph.outputs}.items()}
        if (found := dict(self.survey.io)) != promised:
            unlike = sorted(name for name in found.keys() | promised.keys() if found.get(name) != promised.get(name))
            raise BundleError(
                f"{graph.path} has {', '.join(f'{name} {found.get(name)}' for name in unlike)}",
                expected=", ".join(f"{name} {promised.get(name)}" for name in unlike) + " as the manifest says",
                hint="copy or export the bundle again",
            )


def survey(trt: TensorRt, network: tensorrt.INetworkDefinition) -> GraphSummary:
    """Counts what a parsed network contains."""
    types: Counter[str] = Counter()
    products = set()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        types.update(_type(layer.get_output(k)) for k in range(layer.num_outputs))
        if layer.type == trt.LayerType.MATRIX_MULTIPLY:
            products.add(_type(layer.get_input(0)))
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    return GraphSummary(
        network.num_layers,
        types=dict(sorted(types.items())),
        products=tuple(sorted(products)),
        io={tensor.name: _type(tensor) for tensor in tensors},
    )


def build_plan(
    parsed: ParsedGraph,
    *,
    target: Target,
    profile: Profile,
    weight_streaming: bool,
    timing_cache: Path | None,
    path: Path,
    report: Report,
) -> PlanFile:
    """Compiles a graph for a target. Ctrl-C stops the compiler at its next step, which can take seconds.

    Args:
        parsed: the graph; its network is spent afterwards.
        timing_cache: measured kernels are read from there and kept there, by a variant that measures on a GPU.
        report: called with phase, step and number of steps, from another thread.
    """
    monitor = progress_monitor(parsed.kit.trt, report=report)
    config = _config(parsed, target=target, profile=profile, weight_streaming=weight_streaming)
    config.progress_monitor = monitor
    if timing_cache is not None:
        _read_timings(config, timing_cache)
    plan = _beside(lambda: parsed.compile(config, path), cancel=monitor.cancel)
    if timing_cache is not None:
        _write_timings(config, timing_cache)
    return plan


def _config(
    parsed: ParsedGraph, *, target: Target, profile: Profile, weight_streaming: bool
) -> tensorrt.IBuilderConfig:
    trt = parsed.kit.trt
    config = parsed.builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 in a graph is there for its precision
    if weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if target.capabilities:
        rtx, own = cast(TensorRtRtx, trt), cast("tensorrt_rtx.IBuilderConfig", config)
        own.num_compute_capabilities = len(target.capabilities)
        for i, number in enumerate(target.capabilities):
            own.set_compute_capability(getattr(rtx.ComputeCapability, f"SM{number}"), i)
    shapes = parsed.builder.create_optimization_profile()
    for name in parsed.component.graph.inputs:
        shapes.set_shape(name, profile.min[name], profile.opt[name], profile.max[name])
    if config.add_optimization_profile(shapes) < 0:
        title, trouble = parsed.kit.variant.title, parsed.kit.log.trouble()
        raise BackendError(
            f"{title} does not take the sizes of {parsed.component.name}: {trouble}", hint="ask for other sizes"
        )
    return config


def _allow_any_attention(trt: TensorRt, layer: Any) -> None:
    """Lets an attention for which there is no fused kernel (float32, small heads) become single operations; without
    this the compiler fails."""
    if layer.type in {getattr(trt.LayerType, name, None) for name in _ATTENTION}:
        layer.__class__ = getattr(trt, _BOUNDARY)  # the bindings' way of naming a layer's own class
        layer.attention.decomposable = True


def _beside(work: Callable[[], T], *, cancel: threading.Event | None = None) -> T:
    """Runs `work` in a thread: the main one alone receives Ctrl-C, and could not within TensorRT."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="tensorrt")
    thread.start()
    while thread.is_alive():
        try:
            thread.join()
        except KeyboardInterrupt as error:
            failure.insert(0, error)
            if cancel is not None:
                cancel.set()
    try:
        if failure:
            raise failure[0]
        return outcome[0]
    finally:
        failure.clear()  # an error holds its frames, which hold this list: a cycle would keep TensorRT until the exit


def _read_timings(config: tensorrt.IBuilderConfig, path: Path) -> None:
    data = path.read_bytes() if path.is_file() else b""
    # A cache of another GPU or version is not taken, and replaced afterwards.
    if not config.set_timing_cache(config.create_timing_cache(data), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _write_timings(config: tensorrt.IBuilderConfig, path: Path) -> None:
    write_if_possible(path, bytes(memoryview(config.get_timing_cache().serialize())))


def _type(tensor: tensorrt.ITensor) -> str:
    return _TYPES[tensor.dtype.name]
