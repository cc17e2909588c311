"""The ControlNet that ships with the example checkpoint: it fits, it is small, and its edges help."""

import sys
from pathlib import Path

import numpy as np
import torch

from latentrt import canny
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.controlnets.controlnet import ControlNet
from latentrt.export.controlnets.kinds import PLACES
from latentrt.export.parity.torch.pipeline import reference_pipeline

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "shapes"))

from scenes import draw_scenes, render

SHIPPED = Path(__file__).resolve().parents[2] / "examples" / "shapes" / "controlnet"
NOISY = 800  # a timestep at which the picture itself hardly shows
COUNT = 8


def test_it_belongs_to_the_checkpoint_and_is_small(shapes_checkpoint: Path):
    checkpoint = Checkpoint.open(shapes_checkpoint)
    net = ControlNet.open("edges", SHIPPED)
    net.check(read_family(checkpoint), checkpoint.network, PLACES["unet"](checkpoint.config("unet")))
    assert net.weights.stat().st_size < 6_000_000


@torch.no_grad()
def test_edges_of_evaluator_scenes_help_to_find_the_noise(shapes_checkpoint: Path):
    """The error of the predicted noise, without a caption, with the edges of each picture and with another one's."""
    pipeline = reference_pipeline(Checkpoint.open(shapes_checkpoint))
    net = ControlNet.open("edges", SHIPPED).load()
    rng = np.random.default_rng(3)
    images = np.stack([render(scene, rng) for scene in draw_scenes(COUNT, rng, evaluator=True)])
    edges = torch.from_numpy(np.stack([canny(image) for image in images])).permute(0, 3, 1, 2) / 255
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    clean = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    alpha = pipeline.scheduler.alphas_cumprod[NOISY]
    x, t = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, torch.full((COUNT,), NOISY)
    empty, _ = pipeline.encode_prompt("", "cpu", 1, False)
    context = empty.expand(COUNT, -1, -1)

    def error(shown: torch.Tensor | None) -> float:
        down, middle = (None, None) if shown is None else net(x, t, context, shown, return_dict=False)
        found = pipeline.unet(
            x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        return float((found - noise).square().mean())

    own, others, none = error(edges), error(edges.roll(1, 0)), error(None)
    assert own < 0.8 * none, (own, others, none)
    assert own < 0.8 * others, (own, others, none)
