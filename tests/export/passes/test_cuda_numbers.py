"""Every graph of three families as the passes for ONNX Runtime's CUDA provider leave it: the operators that were meant,
and the same numbers. No provider is asked: onnx's reference evaluator computes both."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from contrib import Array, evaluate, loaded
from families.chain import Chain, chain_name, make_chain
from families.rows import ROWS

from latentrt.bundle import Bundle
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.graphs.components import component_specs
from latentrt.export.parity.components import component_feeds
from latentrt.export.passes.cuda import for_cuda
from latentrt.export.passes.residuals import add_step_residuals
from latentrt.manifest.axes import tensor_shape

TOLERANCE = 1e-5  # of the largest value
FAMILIES = ("shapes", "tiny-sdxl-inpaint", "tiny-sd3")
GRAPHS = ("text_encoder", "text_encoder_2", "text_encoder_3", "step", "step-control", "encoder", "decoder")


@dataclass(frozen=True, slots=True)
class Case:
    """A graph on disk and inputs of it."""

    path: Path
    feed: dict[str, Array]


@pytest.fixture(scope="module", params=FAMILIES)
def cases(request: pytest.FixtureRequest, once: Any, export_once: Any) -> dict[str, Case]:
    """By name, the graphs of a family that a run up to the last latent needs, and all of `shapes`: the autoencoders of
    the others have the same operators."""
    if request.param == "shapes":
        bundle = Bundle.open(request.getfixturevalue("controlled_bundle"))
        checkpoint = Checkpoint.open(request.getfixturevalue("shapes_checkpoint"))
        paths = {name: part.graph.path for name, part in bundle.components.items()}
    else:
        row = next(row for row in ROWS if row.architecture == request.param and row.quick)
        chain: Chain = once(chain_name(row), lambda folder: make_chain(row, folder, export_once))
        checkpoint = chain.opened()
        paths = {name: part.graph.path for name, part in chain.graphs.items()}
    found = {}
    for spec in component_specs(checkpoint, read_family(checkpoint)):
        if spec.name in paths:
            feeds = component_feeds(spec.inputs)
            feed = dict(feeds[3 if spec.name == "step" else 1][1])  # odd sizes, every input used
            found[spec.name] = Case(paths[spec.name], feed)
    return found


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_for_cuda_gives_the_numbers_of_the_plain_one(cases: dict[str, Case], name: str):
    if name.removesuffix("-control") not in cases:
        pytest.skip("the family has no such text encoder, or its run up to the last latent needs no autoencoder")
    case = cases[name.removesuffix("-control")]
    plain, changed = (_model(case, controlled=name == "step-control") for _ in range(2))
    feed = case.feed | _residuals(plain, case.feed)
    counts = for_cuda(changed)
    assert _expensive(changed) == {}
    assert counts["Attention"] == sum(node.op_type == "Attention" for node in plain.graph)
    assert all("q_num_heads" in node.attributes for node in changed.graph if node.op_type == "Attention")
    for found, expected in zip(evaluate(changed, feed), evaluate(plain, feed), strict=True):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        if expected.dtype == np.float32:
            assert np.abs(expected).max() > 0
            assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("attribute", ["activation", "epsilon", "groups"])
def test_an_attribute_that_is_wrong_is_seen(cases: dict[str, Case], attribute: str):
    if "encoder" not in cases:
        pytest.skip("its run begins with no photo")
    case = cases["encoder"]
    plain, changed = (_model(case) for _ in range(2))
    for_cuda(changed)
    wrong = {"activation": ir.AttrInt64("activation", 0), "epsilon": ir.AttrFloat32("epsilon", 0.1)}
    for node in changed.graph:
        if node.op_type == "GroupNorm":
            halved = ir.AttrInt64("groups", node.attributes["groups"].as_int() // 2)
            node.attributes[attribute] = {**wrong, "groups": halved}[attribute]
    (found, *_), (expected, *_) = evaluate(changed, case.feed), evaluate(plain, case.feed)
    assert np.abs(found - expected).max() > 10 * TOLERANCE * np.abs(expected).max()


def test_weights_of_the_file_are_not_copied(cases: dict[str, Case], tmp_path: Path):
    model = ir.load(cases["step"].path)
    for_cuda(model)
    ir.save(model, tmp_path / "step.onnx")
    saved = ir.load(tmp_path / "step.onnx")
    external = {tensor.location for tensor in _tensors(saved) if isinstance(tensor, ir.ExternalTensor)}
    assert external == {cases["step"].path.with_suffix(".weights").name}
    assert sum(tensor.nbytes for tensor in _tensors(saved) if not isinstance(tensor, ir.ExternalTensor)) < 100_000


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    return (value.const_value for value in model.graph.initializers.values() if value.const_value is not None)


def _model(case: Case, *, controlled: bool = False) -> ir.Model:
    """The graph; of one that makes bytes, what it rounds is an output too."""
    model = ir.load(case.path)
    if controlled:
        add_step_residuals(model)
    rounded = [node.inputs[0] for node in model.graph if node.op_type == "Round"]
    model.graph.outputs.extend(value for value in rounded if value is not None)
    return loaded(model)


def _residuals(model: ir.Model, others: dict[str, Array]) -> dict[str, Array]:
    """Of a step that takes some."""
    if "state" not in others:
        return {}
    batch, (h, w) = len(others["state"]), others["state"].shape[3:]
    sizes = {f"{axis}{n}": -(-size // n) for axis, size in (("h", h), ("w", w)) for n in (2, 4, 8)}
    rng = np.random.default_rng(6)
    feed = {}
    for value in model.graph.inputs:
        if str(value.name).startswith("residual_"):
            dims = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ())
            shape = tensor_shape(dims, {"K": 2, "B": batch, "h": h, "w": w, **sizes})
            feed[str(value.name)] = rng.standard_normal(shape).astype(np.float32)
    return feed


def _expensive(model: ir.Model) -> Counter[str]:
    """What the CUDA provider takes apart or hands to the CPU."""
    slow = {"GroupNormalization", "ArgMax"}
    heads = (0, 2, 1, 3)
    return Counter(
        node.op_type
        for node in model.graph
        if node.op_type in slow or (node.op_type == "Transpose" and tuple(node.attributes["perm"].as_ints()) == heads)
    )
