"""What is quantised and what stays in float, by the names that exported graphs have."""

import numpy as np
import pytest
from small_graphs import Builder, attention_front

from latentrt.bundle import Bundle
from latentrt.calibration.formats import INT8
from latentrt.calibration.placement import operators
from latentrt.calibration.quantize import Scales, quantize
from latentrt.errors import BundleError
from latentrt.export.passes.storage import load_graph

# Modules of U-Nets and MMDiTs: True where the operator is quantised.
MODULES = {
    "conv_in": False,
    "conv_out": False,
    "down_blocks.0.resnets.0.conv1": True,
    "down_blocks.0.resnets.0.conv2": True,
    "down_blocks.1.resnets.0.conv_shortcut": False,
    "down_blocks.0.resnets.0.time_emb_proj": False,
    "time_embedding.linear_1": False,
    "add_embedding.linear_2": False,
    "time_text_embed.timestep_embedder.linear_1": False,
    "pos_embed.proj": False,
    "context_embedder": False,
    "x_embedder": False,
    "norm_out.linear": False,
    "transformer_blocks.3.norm1.linear": False,
    "transformer_blocks.3.attn.to_q": True,
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": True,
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": True,
    "mid_block.attentions.0.proj_in": True,
    "mid_block.attentions.0.proj_out": True,
    "up_blocks.1.upsamplers.0.conv": True,
    "post_quant_conv": False,
}


@pytest.mark.parametrize("module", MODULES)
def test_the_float_table_knows_the_modules(module: str):
    make = Builder(("B", 4, "h", "w"))
    out = make.node(f"{module}/Conv", make.input, make.weight("w", np.ones((4, 4, 1, 1))), dims=("B", 4, "h", "w"))
    (operator,) = operators(make.model(out))
    assert operator.module == module
    assert (operator.float_reason is None) == MODULES[module]


def test_axes_follow_the_kind_of_operator():
    make = Builder(("B", 6))
    gemm = make.node("a/Gemm", make.input, make.weight("wa", np.ones((5, 6))), dims=("B", 5), transB=1)
    plain = make.node("b/Gemm", gemm, make.weight("wb", np.ones((5, 4))), dims=("B", 4))
    product = make.node("c/MatMul", plain, make.weight("wc", np.ones((4, 3))), dims=("B", 3))
    found = {o.name: (o.out_axis, o.in_axis, o.channel_axis) for o in operators(make.model(product))}
    assert found == {"a/Gemm": (0, 1, -1), "b/Gemm": (1, 0, -1), "c/MatMul": (1, 0, -1)}


def test_operators_without_constant_weights_in_float_are_left_out():
    make = Builder(("B", 4, 4))
    product = make.node("scores/MatMul", make.input, make.input, dims=("B", 4, 4))
    left = make.node("left/MatMul", make.weight("w", np.ones((4, 4))), product, dims=("B", 4, 4))
    turned = make.node("turned/Gemm", left, make.weight("v", np.ones((4, 4))), dims=(4, 4), transA=1)
    assert operators(make.model(turned)) == []


def test_grouped_convolutions_are_left_out():
    make = Builder(("B", 4, "h", "w"))
    weight = make.weight("w", np.ones((4, 2, 1, 1)))
    out = make.node("depthwise/Conv", make.input, weight, dims=("B", 4, "h", "w"), group=2)
    assert operators(make.model(out)) == []


def test_a_quantised_graph_is_refused():
    model = attention_front()
    found = operators(model)
    quantize(model, found, Scales(form=INT8, ranges={o.activation: 1.0 for o in found}, factors={}))
    with pytest.raises(BundleError, match="quantised already"):
        operators(model)


def test_most_of_the_work_of_the_example_is_quantised(shapes_bundle):
    model = load_graph(Bundle.open(shapes_bundle).component("step").graph.path)
    found = operators(model)
    quantised = sum(operator.size for operator in found if operator.float_reason is None)
    total = sum(operator.size for operator in found)
    assert quantised / total > 0.9
    assert all(operator.float_reason != "" for operator in found)
