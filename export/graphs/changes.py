"""What an export changes of the step's graph before it is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import onnx_ir as ir

from latentrt.export.passes.features import add_features
from latentrt.export.passes.pooling import pool_attention, pooled_attentions


@dataclass(frozen=True, slots=True)
class StepChanges:
    """Each is a field of the component's row of the manifest, absent where it is not asked for.

    Args:
        shallow_layers: for step caching, as `add_features` takes them.
        pooled: keys and values of the largest self-attentions.
    """

    shallow_layers: int | None = None
    pooled: bool = False

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Those of a step, by its row."""
        return cls(row.get("shallow_layers"), "pooled_attention" in row)

    def apply(self, model: ir.Model) -> None:
        """Changes the graph."""
        if self.pooled:
            pool_attention(model)
        if self.shallow_layers is not None:
            add_features(model, layers=self.shallow_layers)

    def row(self, graph: Path) -> dict[str, Any]:
        """The fields, of the graph that was written."""
        fields: dict[str, Any] = {} if self.shallow_layers is None else {"shallow_layers": self.shallow_layers}
        return fields | ({"pooled_attention": pooled_attentions(ir.load(graph))} if self.pooled else {})
