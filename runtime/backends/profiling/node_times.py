"""A node's time in one run, and the arithmetic of products, counted from shapes.

A multiplication and an addition are two operations. What is no product (norms, activations, layouts) counts as none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

from latentrt.arrays import Shape

Product: TypeAlias = Literal["convolution", "matmul"]


@dataclass(frozen=True, slots=True)
class Work:
    """Operations of a node, and which kind of product they are mostly."""

    product: Product
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTime:
    """One node in one run.

    Args:
        name, type: as the backend calls it, which may have fused several nodes of the graph into one.
        precision: that it computes in, such as `bf16`; of other values than these formats, their name.
        ms: that it took.
        work: None of a node without products.
    """

    name: str
    type: str
    precision: str
    ms: float
    work: Work | None = None


@dataclass(frozen=True, slots=True)
class ProfiledRun:
    """A run of a graph: its nodes, and what it took by the clock."""

    nodes: tuple[NodeTime, ...]
    ms: float


def convolution(weights: Shape, output: Shape) -> Work:
    """Of weights [M, C / groups, *kernel] that give [B, M, *size]."""
    return Work("convolution", 2 * prod(output) * prod(weights[1:]))


def transposed_convolution(weights: Shape, data: Shape) -> Work:
    """Of weights [C, M / groups, *kernel] for [B, C, *size]."""
    return Work("convolution", 2 * prod(data) * prod(weights[1:]))


def matmul(left: Shape, output: Shape) -> Work:
    """Of [..., m, k], or its transpose, or a vector [k]: what of it are no rows is k. Of the right one nothing is
    needed: backends do not tell the shapes of weights that they have packed."""
    by_vector = len(output) < len(left)
    rows = 1 if len(left) == 1 else output[-1] if by_vector else output[-2]
    return Work("matmul", 2 * prod(output) * (prod(left[-2:]) // max(1, rows)))


def attention(query: Shape, key: Shape, output: Shape) -> Work:
    """Queries by keys, then weights by values, for every head; masked products count.

    Args:
        query, output: [B, length, heads * width] or [B, heads, length, width].
        key: likewise.
    """
    return Work("matmul", 2 * key[-2] * (prod(query) + prod(output)))


def joined(works: Sequence[Work]) -> Work | None:
    """Of several nodes that are computed as one; the kind is that of the largest."""
    if not works:
        return None
    return Work(max(works, key=lambda work: work.flops).product, sum(work.flops for work in works))
