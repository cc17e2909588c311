"""What a ControlNet takes from the graphs of its bundle, on small ones."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from latentrt.errors import BundleError
from latentrt.export.controlnets.parts import latent_shift, patch_embedding


def written(path: Path, nodes: list[tuple[str, float]], weights: dict[str, np.ndarray]) -> Path:
    """A graph that applies operators with a constant one after the other, and has these initializers."""
    value = first = ir.Value(name="image", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    made, constants = [], [ir.Value(name=name, const_value=ir.tensor(array)) for name, array in weights.items()]
    for index, (kind, number) in enumerate(nodes):
        constants.append(ir.Value(name=f"constant_{index}", const_value=ir.tensor(np.float32(number))))
        made.append(ir.Node("", kind, [value, constants[-1]], name=f"/{index}"))
        value = made[-1].outputs[0]
        value.name = f"value_{index}"
    graph = ir.Graph([first], [value], nodes=made, initializers=constants, opset_imports={"": 23})
    ir.save(ir.Model(graph, ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("Add", 3.0), ("Sub", 0.5), ("Mul", 4.0)], 2.0),
        ([("Add", 3.0), ("Mul", 4.0)], 0.0),
        ([("Mul", 4.0), ("Sub", 0.5)], 0.5),
    ],
)
def test_the_shift_is_read_from_the_end_of_the_encoder(nodes: list, expected: float, tmp_path: Path):
    assert latent_shift(written(tmp_path / "encoder.onnx", nodes, {})) == expected


@pytest.mark.parametrize("nodes", [[("Add", 3.0)], [("Sub", 0.0), ("Mul", 1.0)]])
def test_an_encoder_that_tells_no_shift_is_refused(nodes: list, tmp_path: Path):
    with pytest.raises(BundleError, match="neither shifts nor scales"):
        latent_shift(written(tmp_path / "encoder.onnx", nodes, {}))


def test_the_embedding_of_patches_is_read_in_float32(tmp_path: Path):
    random = np.random.default_rng(0)
    weights = {
        "pos_embed.proj.weight": random.standard_normal((8, 4, 2, 2)).astype(np.float16),
        "pos_embed.proj.bias": random.standard_normal(8).astype(np.float32),
        "network.transformer.pos_embed.pos_embed": random.standard_normal((1, 9, 8)).astype(np.float32),
    }
    step = written(tmp_path / "step.onnx", [("Add", 1.0)], weights)
    for found, expected in zip(patch_embedding(step), weights.values(), strict=True):
        assert found.dtype == np.float32 and np.array_equal(found, expected)
    del weights["pos_embed.proj.bias"]
    with pytest.raises(BundleError, match=r"has no pos_embed.proj.bias"):
        patch_embedding(written(tmp_path / "other.onnx", [("Add", 1.0)], weights))
