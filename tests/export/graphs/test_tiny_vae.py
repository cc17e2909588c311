"""A tiny autoencoder in the place of a checkpoint's own: `--vae` or `--decoder` with its folder."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor

from latentrt.backends import open_engine
from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.checkpoint.sources import SourceOptions, open_source
from latentrt.export.cli.checkpoint_options import add_checkpoint_options
from latentrt.export.graphs.components import component_specs
from latentrt.export.graphs.onnx_from_torch import export_graph
from latentrt.export.parity.components import compare, reference_runs

H, W = 40, 64


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, with a scale of its own so that leaving it out shows."""
    torch.manual_seed(3)
    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    depth = {"num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1)}
    vae = AutoencoderTiny(**blocks, **depth, scaling_factor=0.7)
    folder = tmp_path_factory.mktemp("tiny")
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def graphs(tiny: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """Decoder and encoder as files, with torch's answers."""
    folder = tmp_path_factory.mktemp("graphs")
    made = {}
    with open_source(str(tiny_checkpoint), options=SourceOptions(vae=tiny)) as checkpoint:
        for spec in component_specs(checkpoint, read_family(checkpoint))[-2:]:
            module = spec.build()
            path = folder / f"{spec.name}.onnx"
            graph = export_graph(module, inputs=spec.inputs, outputs=spec.outputs, path=path, prefix=spec.prefix)
            made[spec.name] = graph, path, reference_runs(spec.reference(), spec.inputs)
    return made


def run(graphs, name: str, **feed: np.ndarray) -> dict[str, np.ndarray]:
    graph, path, _ = graphs[name]
    with open_engine(graph.file(name, path), backend="onnxruntime") as engine:
        return dict(engine.run(feed))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["decoder", "encoder"])
def test_both_halves_equal_torch(name: str, backend: str, graphs):
    graph, path, runs = graphs[name]
    results = compare(name, graph.file(name, path), runs, backend=backend)
    assert len(results) == len(runs) > 1
    assert [result for result in results if not result.passed] == []


def test_bytes_are_those_of_diffusers(tiny: Path, graphs):
    vae = AutoencoderTiny.from_pretrained(tiny)
    latent = np.random.default_rng(1).standard_normal((2, 4, H // 8, W // 8), np.float32)
    with torch.no_grad():
        image = vae.decode(torch.from_numpy(latent) / vae.config.scaling_factor + vae.config.shift_factor).sample
    levels = (255 * VaeImageProcessor().postprocess(image, output_type="np")).round()
    ours = run(graphs, "decoder", latent=latent)["image"]
    assert ours.shape == levels.shape == (2, H, W, 3)
    assert levels.std() > 5  # a picture, not a colour
    assert np.abs(ours - levels).max() <= 1


def test_latents_are_those_of_diffusers(tiny: Path, graphs):
    vae = AutoencoderTiny.from_pretrained(tiny)
    photo = np.random.default_rng(2).integers(0, 256, (1, H, W, 3), np.uint8)
    pixels = torch.from_numpy(photo).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latent = vae.encode(pixels).latents
    theirs = ((latent - vae.config.shift_factor) * vae.config.scaling_factor).numpy()
    ours = run(graphs, "encoder", image=photo, keep=np.ones((1, H, W, 1), np.float32))["latent"]
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    grey = run(graphs, "encoder", image=photo, keep=np.zeros((1, H, W, 1), np.float32))["latent"]
    assert np.abs(ours - grey).max() > 0.01 * np.abs(theirs).max()


def test_the_encoder_takes_no_noise(graphs):
    assert graphs["encoder"][0].inputs.keys() == {"image", "keep"}


def test_the_option_has_two_names(tiny: Path):
    parser = argparse.ArgumentParser()
    add_checkpoint_options(parser)
    for name in ("--vae", "--decoder"):
        assert parser.parse_args([name, str(tiny)]).vae == tiny


def test_one_for_other_latents_is_refused(tiny_checkpoint: Path, tmp_path: Path):
    AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=16
    ).save_pretrained(tmp_path)
    with (
        pytest.raises(CheckpointError, match="the VAE has 16 latent channels; expected 4"),
        open_source(str(tiny_checkpoint), options=SourceOptions(vae=tmp_path)),
    ):
        pass


def test_a_vae_of_another_kind_is_refused(tiny_checkpoint: Path):
    checkpoint = Checkpoint.open(tiny_checkpoint)
    family = read_family(checkpoint)
    index = json.loads(json.dumps(dict(checkpoint.index))) | {"vae": ["diffusers", "VQModel"]}
    odd = Checkpoint(checkpoint.root, checkpoint.source, index)
    with pytest.raises(CheckpointError, match="vae is a VQModel; expected AutoencoderKL or AutoencoderTiny"):
        component_specs(odd, family)
