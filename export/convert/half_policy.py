"""What of a component is computed in 16 bit and what stays float32, with the reason."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import onnx_ir as ir

from latentrt.export.passes.half import HalfFormat, allows_half, largest_weight
from latentrt.export.passes.network import float_nodes, network_nodes
from latentrt.export.passes.stated import stated


@dataclass(frozen=True, slots=True)
class Float32Rule:
    """A row of the table: nodes whose name matches `pattern` are float32 because of `reason`."""

    pattern: str
    reason: str


FLOAT32_RULES = (
    Float32Rule("network/Expand*", "the timestep: near 1000 float16 is off by up to 0.25, bfloat16 by up to 2"),
    Float32Rule(
        "*.DenseReluDense.wo/*", "T5: transformers keeps it float32, since published weights overflow float16 there"
    ),
    Float32Rule("encoder.block.*.layer.?/Add*", "T5: the sum of what those overflow into"),
    Float32Rule("*layer_norm/RMSNormalization*", "T5: it reads that sum"),
    Float32Rule("*time_proj/*", "angles of the timestep embedding: near 1000 radians float16 is off by up to 0.25"),
)

ALGEBRA = "algebra before and behind the network, on inputs and outputs that are float32"
UNDEFINED = "ONNX does not define the operator in this format"
WEIGHTS = "a weight beyond the largest value of the format"
RANGE = "beyond the limit in the range check"


@dataclass(frozen=True, slots=True)
class Placement:
    """Names of the nodes in 16 bit, and the reason of each node that touches float32 and is not among them."""

    half: frozenset[str]
    float32: Mapping[str, str]

    def share(self, *reasons: str) -> float:
        """Of all nodes that would be 16 bit but for these reasons, the part that is not."""
        kept = sum(reason in reasons for reason in self.float32.values())
        return kept / max(1, kept + len(self.half))

    def by_reason(self) -> list[dict[str, object]]:
        """For the manifest: each reason with its nodes, in execution order."""
        groups: dict[str, list[str]] = {}
        for name, reason in self.float32.items():
            groups.setdefault(reason, []).append(name)
        return [{"reason": reason, "nodes": names} for reason, names in groups.items()]


def place(model: ir.Model, half: HalfFormat, *, beyond: Collection[str] = ()) -> Placement:
    """Decides for each node of a float32 graph.

    Args:
        model: as exported, its nodes named after their modules.
        beyond: nodes that a range check found too large for it.

    Raises:
        BundleError: a graph without names of modules, or with graphs inside.
    """
    network = {node.name for node in network_nodes(model.graph)}
    heavy = _heavy_readers(model.graph, half)
    chosen: set[str] = set()
    float32: dict[str, str] = {}
    for node in float_nodes(model.graph):
        name = str(node.name)
        row = next((row for row in FLOAT32_RULES if fnmatchcase(name, row.pattern)), None)
        if name not in network:
            float32[name] = ALGEBRA
        elif row is not None:
            float32[name] = row.reason
        elif not allows_half(node, half, model.opset_imports[""]):
            float32[name] = UNDEFINED
        elif name in heavy:
            float32[name] = WEIGHTS
        elif name in beyond:
            float32[name] = RANGE
        else:
            chosen.add(name)
    return Placement(frozenset(chosen), float32)


def _heavy_readers(graph: ir.Graph, half: HalfFormat) -> set[str]:
    """Nodes with a weight that the format would make infinite."""
    return {
        str(reader.name)
        for value in graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT and largest_weight(stated(value.const_value)) > half.largest
        for reader in value.consumers()
    }
