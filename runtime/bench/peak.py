"""What a machine can multiply at most: large products, on the backends themselves, in the type that is asked for.

A peak is the best of the installed backends: one whose kernels of a type are poor is not flattered by them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latentrt.arrays import Shape
from latentrt.backends import BACKENDS, Backend, open_engine
from latentrt.backends.profiling.node_times import Product
from latentrt.graph import GraphFile, TensorSpec
from latentrt.weights.protobuf import field, number

Tensors = Mapping[str, npt.NDArray[np.generic]]
LAYERS = 3  # products behind each other, so that rounding the input counts for little
ENOUGH_S, FEWEST_RUNS = 1.0, 3
_OPSET, _IR = 21, 10
_TYPES = {"float32": 1, "int8": 3}
_INT, _INTS = 2, 7  # AttributeProto.type


@dataclass(frozen=True, slots=True)
class Peak:
    """The most operations of a kind that were reached.

    Args:
        product: `matmul` or `convolution`.
        precision: `fp32`, `bf16` or `int8`.
        gflops: 10^9 operations a second, a multiplication and an addition being two.
        backend: that reached them.
    """

    product: Product
    precision: str
    gflops: float
    backend: str


@dataclass(frozen=True, slots=True)
class PeakSizes:
    """Of the products: square matrices, and square pictures through a kernel of 3x3."""

    side: int = 2048
    batch: int = 2
    channels: int = 320
    pixels: int = 64

    def data(self, product: Product) -> Shape:
        """The shape of what goes in, and comes out."""
        if product == "matmul":
            return (self.side, self.side)
        return (self.batch, self.channels, self.pixels, self.pixels)

    def weights(self, product: Product) -> Shape:
        return (self.side, self.side) if product == "matmul" else (self.channels, self.channels, 3, 3)

    def flops(self, product: Product) -> int:
        inner = self.side if product == "matmul" else 9 * self.channels
        return LAYERS * 2 * prod(self.data(product)) * inner


def measure_peaks(
    precisions: Collection[str], *, threads: int | None, sizes: PeakSizes | None = None
) -> dict[tuple[Product, str], Peak]:
    """The peaks of both products by (product, precision); of precisions that none of the backends has products of,
    none."""
    measured = PeakSizes() if sizes is None else sizes
    found: dict[tuple[Product, str], Peak] = {}
    for precision in precisions:
        for product in ("matmul", "convolution"):
            peaks = [_peak(row, product, precision, threads, measured) for row in _able(precision)]
            if peaks:
                found[product, precision] = max(peaks, key=lambda peak: peak.gflops)
    return found


def _able(precision: str) -> list[Backend]:
    if precision not in ("fp32", "bf16", "int8"):
        return []
    asked = _compute(precision)
    return [row for row in BACKENDS if "cpu" in row.profiles and row.installed() and asked in row.computes]


def _compute(precision: str) -> str:
    """The arithmetic to ask for: that of what is float in the graph."""
    return "bf16" if precision == "bf16" else "fp32"


def _peak(row: Backend, product: Product, precision: str, threads: int | None, sizes: PeakSizes) -> Peak:
    rng = np.random.default_rng(0)
    shape = sizes.data(product)
    with tempfile.TemporaryDirectory(prefix="latentrt-peak-") as folder:
        path = Path(folder) / "peak.onnx"
        path.write_bytes(product_graph(product, rounded=precision == "int8", sizes=sizes, rng=rng))
        spec = TensorSpec("float32", shape)
        graph = GraphFile("peak", path=path, inputs={"x": spec}, outputs={"y": spec}, precision=precision)
        feed = {"x": rng.standard_normal(shape).astype(np.float32)}
        with closing(open_engine(graph, backend=row.name, compute=_compute(precision), threads=threads)) as engine:
            engine.run(feed)
            best, spent, runs = float("inf"), 0.0, 0
            while runs < FEWEST_RUNS or spent < ENOUGH_S:
                began = time.perf_counter()
                engine.run(feed)
                taken = time.perf_counter() - began
                best, spent, runs = min(best, taken), spent + taken, runs + 1
    return Peak(product, precision, sizes.flops(product) / best / 1e9, row.name)


def product_graph(product: Product, *, rounded: bool, sizes: PeakSizes, rng: np.random.Generator) -> bytes:
    """An ONNX model of `LAYERS` products behind each other, `x` to `y`; with `rounded` in the form of int8 bundles."""
    shape = sizes.weights(product)
    inner, axis = (shape[0], 1) if product == "matmul" else (prod(shape[1:]), 0)
    weights: npt.NDArray[np.generic] = (rng.standard_normal(shape) / inner**0.5).astype(np.float32)
    tensors: dict[str, npt.NDArray[np.generic]] = {"w": weights}
    nodes: list[bytes] = []
    if rounded:
        count = shape[axis]
        tensors = {
            "w8": rng.integers(-127, 128, shape, np.int8),
            "w_scale": np.full(count, 1 / (74 * inner**0.5), np.float32),  # of unit variance
            "w_zero": np.zeros(count, np.int8),
            "scale": np.array(4 / 127, np.float32),
            "zero": np.array(0, np.int8),
        }
        nodes.append(_node("DequantizeLinear", ("w8", "w_scale", "w_zero"), "w", axis=axis))
    latest = "x"
    for layer in range(LAYERS):
        if rounded:
            nodes.append(_node("QuantizeLinear", (latest, "scale", "zero"), f"q{layer}"))
            nodes.append(_node("DequantizeLinear", (f"q{layer}", "scale", "zero"), f"d{layer}"))
            latest = f"d{layer}"
        made = "y" if layer == LAYERS - 1 else f"x{layer}"
        nodes.append(
            _node("MatMul", (latest, "w"), made)
            if product == "matmul"
            else _node("Conv", (latest, "w"), made, pads=(1, 1, 1, 1))
        )
        latest = made
    return _model(nodes, tensors, sizes.data(product))


def _model(nodes: Sequence[bytes], tensors: Tensors, shape: Shape) -> bytes:
    """ModelProto: ir_version = 1, graph = 7, opset_import = 8; GraphProto: node = 1, name = 2, initializer = 5,
    input = 11, output = 12."""
    graph = [*(field(1, node) for node in nodes), field(2, b"peak")]
    graph += [field(5, _tensor(name, values)) for name, values in tensors.items()]
    graph += [field(11, _value("x", shape)), field(12, _value("y", shape))]
    return number(1, _IR) + field(7, b"".join(graph)) + field(8, field(1, b"") + number(2, _OPSET))


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: int | tuple[int, ...]) -> bytes:
    """NodeProto: input = 1, output = 2, name = 3, op_type = 4, attribute = 5."""
    parts = [
        *(field(1, name.encode()) for name in inputs),
        field(2, output.encode()),
        field(3, f"{kind}-{output}".encode()),
    ]
    return b"".join([*parts, field(4, kind.encode()), *_attributes(attributes)])


def _attributes(attributes: Mapping[str, int | tuple[int, ...]]) -> Iterator[bytes]:
    """AttributeProto: name = 1, i = 3, ints = 8, type = 20."""
    for name, value in attributes.items():
        many = isinstance(value, tuple)
        numbers = b"".join(number(8, each) for each in value) if isinstance(value, tuple) else number(3, value)
        yield field(5, field(1, name.encode()) + numbers + number(20, _INTS if many else _INT))


def _tensor(name: str, values: npt.NDArray[np.generic]) -> bytes:
    """TensorProto: dims = 1, data_type = 2, name = 8, raw_data = 9."""
    dims = b"".join(number(1, length) for length in values.shape)
    return dims + number(2, _TYPES[values.dtype.name]) + field(8, name.encode()) + field(9, values.tobytes())


def _value(name: str, shape: Shape) -> bytes:
    """ValueInfoProto: name = 1, type = 2, in which tensor_type = 1 has elem_type = 1 and shape = 2."""
    dims = b"".join(field(1, number(1, length)) for length in shape)
    return field(1, name.encode()) + field(2, field(1, number(1, _TYPES["float32"]) + field(2, dims)))
