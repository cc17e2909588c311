"""One operator at a time on ONNX Runtime's provider, against NumPy in float64: which kernels are there, and right.

A provider without some of its GPU code fails at the first launch that it lacks; here that is told by the operator's
name, before a whole model is tried. Each toy has a process of its own, since a failed launch ends the use of the GPU.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from latentrt.backends.base import mapped_errors
from latentrt.backends.onnxruntime.session import PROVIDERS, Provider, make_session, settings
from latentrt.export.parity.measurement import Measurement

LIMITS = {"float32": 1e-5, "float16": 2e-3}  # of the largest value: a few roundings
OPSET = 23
EPSILON = 1e-5

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy:
    """One node and what it is to give.

    Args:
        operator: its name in ONNX.
        dtype: of its input `x`.
        shape: of that.
        others: its other inputs, which are weights.
        expected: of all inputs, in float64.
        attributes: of the node.
        domain: of the operator.
        cpu: whether the CPU provider has it.
    """

    operator: str
    dtype: str
    shape: tuple[int, ...]
    others: tuple[tuple[tuple[int, ...], str], ...] = ()
    expected: Callable[..., Array]
    attributes: Mapping[str, Any]
    domain: str = ""
    cpu: bool = True

    @property
    def case(self) -> str:
        return f"{self.dtype}, {'x'.join(map(str, self.shape))}"


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def convolution(x: Array, weight: Array, bias: Array) -> Array:
    """3x3, with a border of zeros, in NCHW."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.asarray(np.einsum("nchwij,ocij->nohw", windows, weight) + bias[:, None, None])


def attention(x: Array, key: Array, value: Array, *, heads: int) -> Array:
    """Over `[B, L, heads * d]`."""
    q, k, v = (each.reshape(*each.shape[:2], heads, -1).transpose(0, 2, 1, 3) for each in (x, key, value))
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    found = weights / weights.sum(-1, keepdims=True) @ v
    return np.asarray(found.transpose(0, 2, 1, 3).reshape(x.shape))


def group_norm_silu(x: Array, scale: Array, shift: Array, *, groups: int) -> Array:
    """Over `[B, H, W, C]`."""
    grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    y = ((grouped - mean) / np.sqrt(variance + EPSILON)).reshape(x.shape) * scale + shift
    return np.asarray(y / (1 + np.exp(-y)))


def layer_norm(x: Array, scale: Array, shift: Array) -> Array:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(variance + EPSILON) * scale + shift)


HALF = "float16"
TOYS: Mapping[str, Toy] = {
    "Relu": Toy(operator="Relu", dtype="float32", shape=(3, 1000), expected=relu, attributes={}),
    "MatMul": Toy(
        operator="MatMul",
        dtype=HALF,
        shape=(2, 64, 320),
        others=(((320, 96), HALF),),
        expected=np.matmul,
        attributes={},
    ),
    "Conv": Toy(
        operator="Conv",
        dtype=HALF,
        shape=(2, 32, 16, 16),
        others=(((64, 32, 3, 3), HALF), ((64,), HALF)),
        expected=convolution,
        attributes={"pads": [1, 1, 1, 1]},
    ),
    "Attention": Toy(
        operator="Attention",
        dtype=HALF,
        shape=(2, 256, 8 * 40),
        others=(((2, 77, 8 * 40), HALF), ((2, 77, 8 * 40), HALF)),
        expected=lambda x, key, value: attention(x, key, value, heads=8),
        attributes={"q_num_heads": 8, "kv_num_heads": 8},
    ),
    "GroupNorm": Toy(
        operator="GroupNorm",
        domain="com.microsoft",
        dtype=HALF,
        shape=(2, 16, 16, 320),
        others=(((320,), "float32"), ((320,), "float32")),
        expected=lambda x, scale, shift: group_norm_silu(x, scale, shift, groups=32),
        attributes={"groups": 32, "epsilon": EPSILON, "channels_last": 1, "activation": 1},
        cpu=False,
    ),
    "LayerNormalization": Toy(
        operator="LayerNormalization",
        dtype=HALF,
        shape=(2, 77, 768),
        others=(((768,), HALF), ((768,), HALF)),
        expected=layer_norm,
        attributes={"axis": -1, "epsilon": EPSILON},
    ),
}


@contextmanager
def open_toy(options: Mapping[str, Any]) -> Iterator[Callable[[Mapping[str, Any]], list[dict[str, Any]]]]:
    """The opener: options `toy`, one of `TOYS`, and `device`."""

    def answer(_: Mapping[str, Any]) -> list[dict[str, Any]]:
        row = judge(TOYS[options["toy"]], options["device"])
        return [asdict(row) | {"passed": row.passed}]

    yield answer


def judge(toy: Toy, device: str) -> Measurement:
    """Runs a toy and compares.

    Raises:
        EnvironmentLacks: the provider does not start, or does not take the node.
        BackendError: it fails, which is what a missing kernel does.
    """
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(toy.shape).astype(toy.dtype)]
    values += [(rng.standard_normal(shape) / np.sqrt(shape[0])).astype(dtype) for shape, dtype in toy.others]
    with mapped_errors(f"{toy.operator} on {PROVIDERS[device]}", hint=_HINT):
        session = _session(toy, values, device)
        found = session.run(None, {"x": values[0]})[0]
    expected = toy.expected(*(value.astype(np.float64) for value in values))
    largest = float(np.abs(expected).max())
    return Measurement(
        subject=f"kernel {toy.operator}",
        case=toy.case,
        backend="onnxruntime",
        value=float(np.abs(found.astype(np.float64) - expected).max()) / largest,
        limit=LIMITS[toy.dtype],
        unit="of the largest value",
        higher_is_better=False,
    )


def _session(toy: Toy, values: list[Array], device: str) -> Any:
    """Of one node, which no other provider may take."""
    options = settings(threads=1)
    if device == "cpu":
        return make_session(_model(toy, values), options, precision=None)
    from latentrt.backends.onnxruntime.device import check_started, open_cuda

    open_cuda()  # loads CUDA's libraries, or says which one is missing
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = Provider(device=device, channels_last=True)
    session = make_session(_model(toy, values), options, precision=None, provider=provider)
    check_started(session)
    return session


def _model(toy: Toy, values: list[Array]) -> bytes:
    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
    names = ["x", *(f"weight_{index}" for index in range(len(toy.others)))]
    node = helper.make_node(toy.operator, names, ["y"], domain=toy.domain, **toy.attributes)
    graph = helper.make_graph(
        [node],
        toy.operator,
        [helper.make_tensor_value_info("x", kinds[toy.dtype], toy.shape)],
        [helper.make_tensor_value_info("y", kinds[toy.dtype], None)],
        [numpy_helper.from_array(value, name) for name, value in zip(names[1:], values[1:], strict=True)],
    )
    opsets = [helper.make_opsetid("", OPSET), *([helper.make_opsetid(toy.domain, 1)] if toy.domain else [])]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


_HINT = "a provider that was packed for one architecture may lack it: pack again with --all-kernels, or whole"
