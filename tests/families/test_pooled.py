"""Pooled attention of every kind of U-Net, beside diffusers' own network that pools through hooks."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from families import chain as chains
from families.chain import Chain, chain_name, expected, found, in_fp16, make_chain
from families.rows import ROWS, Row

from latentrt import Pipeline
from latentrt.backends import open_engine, open_engines
from latentrt.bundle import Component
from latentrt.export.cli.build import sizes
from latentrt.export.engines.build import build_engines
from latentrt.export.engines.ranges import Ranges
from latentrt.export.engines.variants import variant
from latentrt.export.graphs.modules.unet import UNet
from latentrt.export.graphs.onnx_from_torch import GraphInput, export_graph
from latentrt.export.passes.pooling import pool_attention, pooled_attentions
from latentrt.export.passes.storage import load_graph, save_graph
from latentrt.export.references.pooling import pooled_attention

TOLERANCE = 1e-4  # of the largest value of the final latent
EFFECT = 1e-3  # by which pooling must change it
MADE = (
    "tiny-sd15",
    "tiny-sd15-inpaint",
    "tiny-lcm",
    "tiny-sd21",
    "tiny-sdxl",
    "tiny-sdxl-inpaint",
    "tiny-sdxl-refiner",
)


pytestmark = pytest.mark.families


@pytest.fixture(
    scope="module", params=[next(row for row in ROWS if row.architecture == name) for name in MADE], ids=str
)
def chain(request: pytest.FixtureRequest, once, export_once) -> Chain:
    row: Row = request.param
    return once(chain_name(row), lambda folder: make_chain(row, folder, export_once))


def with_pooling(step: Component, folder: Path) -> Component:
    """The step with pooled attention."""
    folder.mkdir()
    model, path = load_graph(step.graph.path), folder / "step.onnx"
    pool_attention(model)
    save_graph(model, path)
    graph = replace(step.graph, path=path, weights=(path.with_suffix(".weights"),), digest="pooled")
    return replace(step, graph=graph)


def latent(chain: Chain, step: Component, backend: str) -> np.ndarray:
    parts = {**chain.graphs, "step": step}
    engines = open_engines([part.graph for part in parts.values()], backend=backend)
    with Pipeline(chain.bundle(parts), engines) as pipe:
        return found(pipe, chain.row, chain.row.guidance)


@pytest.mark.parametrize("size", [(104, 72), (96, 128)], ids=["odd sides", "even sides"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_pooled_run_equals_that_of_diffusers(
    chain: Chain, backend: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(chains, "SIZE", size)
    step = with_pooling(chain.graphs["step"], tmp_path / "pooled")
    ours, plain = latent(chain, step, backend), latent(chain, chain.graphs["step"], backend)
    theirs = expected(chain, chain.row.guidance, within=lambda pipe: pooled_attention(pipe.unet))
    assert ours.shape == theirs.shape
    largest = np.abs(theirs).max()
    effect = np.abs(ours - plain).max() / largest
    assert effect >= EFFECT
    assert np.abs(ours - theirs).max() / largest <= min(TOLERANCE, effect / 10)


@pytest.mark.skipif(
    not variant("tensorrt-rtx").installed(), reason="TensorRT for RTX has wheels for x86-64 Linux and Windows"
)
def test_it_becomes_an_engine_in_fp16(chain: Chain, tmp_path: Path):
    step = in_fp16(with_pooling(chain.graphs["step"], tmp_path / "pooled"), tmp_path)
    bundle = chain.bundle({"step": step})
    ranges = Ranges.of(bundle.family, size=sizes("72x104..96x128"))
    assert build_engines(bundle, backend="tensorrt-rtx", folder=tmp_path, ranges=ranges, gpus=["sm89"])


@pytest.mark.parametrize(
    ("settings", "pooled"),
    [
        ({"only_cross_attention": [True, False]}, ["down_blocks.1", "mid_block", "up_blocks.0"]),
        ({"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}, ["up_blocks.1"]),
        ({"mid_block_type": None, "transformer_layers_per_block": 2}, ["down_blocks.0", "up_blocks.1"]),
    ],
)
def test_which_layers_are_pooled(settings: dict[str, Any], pooled: list[str], tmp_path: Path):
    """Those of the largest level that has any that attend to themselves, wherever a network has these."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2}
    unet = UNet2DConditionModel(
        **{**blocks, "block_out_channels": [16, 24], "layers_per_block": 1, "cross_attention_dim": 12}
        | {"attention_head_dim": 2, "norm_num_groups": 4, **settings}
    ).eval()
    inputs = {
        "sample": GraphInput(torch.randn(2, 4, 9, 13), ("N", 4, "h", "w")),
        "timestep": GraphInput(torch.tensor([500.0, 20.0]), ("N",)),
        "context": GraphInput(torch.randn(2, 5, 12), ("N", "L", 12)),
    }
    path = tmp_path / "unet.onnx"
    graph = export_graph(
        UNet(unet), inputs=inputs, outputs={"out": ("N", 4, "h", "w")}, path=path, prefix="unet.", finish=pool_attention
    )
    found = pooled_attentions(load_graph(path))
    assert list(dict.fromkeys(".".join(name.split(".")[:2]).removesuffix(".attentions") for name in found)) == pooled
    feed = {"sample": torch.randn(2, 4, 11, 8), **{name: inputs[name].example for name in ("timestep", "context")}}
    with torch.no_grad(), pooled_attention(unet):
        expected = unet(*feed.values()).sample.numpy()
    with closing(open_engine(graph.file("unet", path), backend="onnxruntime")) as engine:
        ours = engine.run({name: value.numpy() for name, value in feed.items()})["out"]
    assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()
