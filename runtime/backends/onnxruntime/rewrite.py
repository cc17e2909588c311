"""What ONNX Runtime's CPU computes better in other words: long self-attention in blocks, and normalised groups.

- Its kernel of ONNX's `Attention` holds the scores of every query with every key twice: 2.1 GB for a guided step of
  Stable Diffusion 1.5 at 512x512. Its own `MultiHeadAttention` is the same sum in the order of FlashAttention (Dao et
  al. 2022, algorithm 1), and takes [B, L, heads * d] as the projections around it have it: four Transposes go.
- It has no kernel of `GroupNormalization`, and takes more time to make some twenty nodes of one than for all others.
  A group of channels is a channel of `InstanceNormalization`.

Values differ in the order of sums.
"""

from __future__ import annotations

import re
from collections import Counter

from latentrt.weights.onnx_nodes import FLOAT, Graph, Node, floats, integers, node, rewritten

_CONTRIB = "com.microsoft"
_SCALE_BY_CHANNEL = 21  # the opset; before, a group has one scale
_SWAP = (0, 2, 1, 3)
_AXIS = re.compile(r"[A-Za-z_]\w*")  # in the name of a length, such as h*w


def for_cpu(model: bytes) -> bytes:
    """The model as the CPU is to run it; the same object if nothing in it changes, or if it is damaged, of which a
    session says more."""
    if b"Attention" not in model and b"GroupNormalization" not in model:
        return model
    try:
        return rewritten(model, lambda graph: _in_blocks(graph) | _by_instance(graph), opsets={_CONTRIB: 1})
    except (IndexError, UnicodeDecodeError, ValueError):
        return model


def _in_blocks(graph: Graph) -> dict[int, bytes]:
    """`MultiHeadAttention` for each self-attention in float32 that has no mask and lies between Transposes."""
    read = Counter([name for node in graph.nodes for name in node.inputs])
    read.update(graph.kept)
    swaps = {n.outputs[0]: n for n in graph.nodes if n.op == "Transpose" and n.attributes().get("perm") == _SWAP}
    behind = {swap.inputs[0]: swap for swap in swaps.values()}
    new: dict[int, bytes] = {}
    for each in graph.nodes:
        out = behind.get(each.outputs[0])
        if out is None or read[each.outputs[0]] != 1 or not _is_plain(each) or not _is_long(each, graph):
            continue
        if not all(name in swaps for name in each.inputs):
            continue
        before = [swaps[name] for name in each.inputs]
        new |= {swap.place: b"" for swap in before if read[swap.outputs[0]] == 1} | {out.place: b""}
        new[each.place] = _blocks(each, before, out, heads=graph.tensor(each.inputs[0]).dims[1])
    return new


def _is_plain(attention: Node) -> bool:
    """Whether it is an `Attention` of queries, keys and values alone."""
    others = [value for name, value in attention.attributes().items() if name not in ("scale", "qk_matmul_output_mode")]
    outputs = [name for name in attention.outputs if name]
    return attention.op == "Attention" and len(attention.inputs) == 3 and len(outputs) == 1 and not any(others)


def _is_long(attention: Node, graph: Graph) -> bool:
    """Whether the keys are of the same axes as the queries, whose lengths are chosen per call: as many, or a part of
    them where attention is pooled. Scores grow with the square of both."""
    queries, keys = (graph.tensor(name) for name in attention.inputs[:2])
    if queries.dtype != FLOAT or keys.dtype != FLOAT or len(queries.dims) != 4 or len(keys.dims) != 4:
        return False
    lengths = queries.dims[2], keys.dims[2]
    known = isinstance(queries.dims[1], int) and all(isinstance(length, str) for length in lengths)
    return known and len({frozenset(_AXIS.findall(str(length))) for length in lengths}) == 1


def _blocks(attention: Node, before: list[Node], out: Node, *, heads: int | str) -> bytes:
    """Nodes and constants in the place of an `Attention` and of the Transposes around it."""
    made = attention.outputs[0]
    flat, apart = f"{made}/flat", f"{made}/heads"
    reads = [f"{flat}/{place}" for place in "qkv"]
    scale = attention.attributes().get("scale")
    attributes = {"num_heads": int(heads), **({"scale": float(scale)} if isinstance(scale, float) else {})}
    return b"".join(
        [
            *(
                node("Reshape", [swap.inputs[0], flat], read, name=f"{attention.name}/{read[-1]}")
                for swap, read in zip(before, reads, strict=True)
            ),
            node(
                "MultiHeadAttention",
                reads,
                f"{made}/blocks",
                name=attention.name,
                domain=_CONTRIB,
                attributes=attributes,
            ),
            node("Reshape", [f"{made}/blocks", apart], out.outputs[0], name=out.name),
            integers(flat, (0, 0, -1)),
            integers(apart, (0, 0, int(heads), -1)),
        ]
    )


def _by_instance(graph: Graph) -> dict[int, bytes]:
    """`InstanceNormalization` for each `GroupNormalization` in float32."""
    found: dict[int, bytes] = {}
    if graph.opset < _SCALE_BY_CHANNEL:
        return found
    for each in graph.nodes:
        if each.op == "GroupNormalization":
            given = graph.tensor(each.inputs[0])
            if given.dtype == FLOAT and len(given.dims) > 2:
                found[each.place] = _instances(each, rank=len(given.dims))
    return found


def _instances(norm: Node, *, rank: int) -> bytes:
    """Nodes and constants in the place of a `GroupNormalization`: what is normalised by group, times the scale of a
    channel, plus its bias."""
    made, (given, scale, bias) = norm.outputs[0], norm.inputs
    about = norm.attributes()
    groups, epsilon = about.get("num_groups"), about.get("epsilon", 1e-5)
    if not isinstance(groups, int) or not isinstance(epsilon, float):
        raise ValueError(f"{norm.name} has no groups")

    def made_by(op: str, inputs: list[str], part: str, **attributes: float) -> bytes:
        return node(op, inputs, f"{made}/{part}", name=f"{norm.name}/{part}", attributes=attributes)

    one, zero, flat, axes = (f"{made}/{part}" for part in ("one", "zero", "flat", "axes"))
    return b"".join(
        [
            made_by("Shape", [given], "shape"),
            made_by("Reshape", [given, flat], "groups"),
            made_by("InstanceNormalization", [f"{made}/groups", one, zero], "even", epsilon=epsilon),
            made_by("Reshape", [f"{made}/even", f"{made}/shape"], "normal"),
            made_by("Unsqueeze", [scale, axes], "scale"),
            made_by("Unsqueeze", [bias, axes], "bias"),
            made_by("Mul", [f"{made}/normal", f"{made}/scale"], "scaled"),
            node("Add", [f"{made}/scaled", f"{made}/bias"], made, name=norm.name),
            integers(flat, (0, groups, -1)),
            integers(axes, range(1, rank - 1)),
            floats(one, [1.0] * groups),
            floats(zero, [0.0] * groups),
        ]
    )
