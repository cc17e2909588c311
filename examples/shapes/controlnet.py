"""Train a small ControlNet for the example checkpoint: edges to shapes. It goes on where it was stopped.

python examples/shapes/controlnet.py --minutes 20
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from fit import Plan, fit, load_average
from models import CONTEXT
from scenes import draw_scenes, render
from torch import Tensor
from torch.nn import functional

from latentrt import canny

SEED = 31
HERE = Path(__file__).resolve().parent
EMPTY_CAPTIONS = 0.3  # the edges are to lead without a caption, too
EARLY = 1.5  # exponent below 1 / EARLY: timesteps are drawn towards the noisy end, where outlines are decided


def build_controlnet(pipeline: StableDiffusionPipeline) -> ControlNetModel:
    """As the U-Net's encoder but without attention, which edges do not need, begun from the encoder's weights."""
    config = pipeline.unet.config
    net = ControlNetModel(
        block_out_channels=config.block_out_channels,
        down_block_types=("DownBlock2D",) * len(config.block_out_channels),
        mid_block_type="UNetMidBlock2D",
        layers_per_block=config.layers_per_block,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.attention_head_dim,
        conditioning_embedding_out_channels=(8, 16, 32, 64),
    )
    own, theirs = net.state_dict(), pipeline.unet.state_dict()
    alike = {name: value for name, value in theirs.items() if name in own and own[name].shape == value.shape}
    net.load_state_dict(alike, strict=False)
    return net


@torch.no_grad()
def make_data(pipeline: StableDiffusionPipeline, count: int, cache: Path) -> dict[str, Tensor]:
    """latents [N, 4, 16, 16], edges uint8 [N, 128, 128], ids [N, 77], empty [77]."""
    if cache.exists():
        return cast("dict[str, Tensor]", torch.load(cache, weights_only=True))
    rng = np.random.default_rng(SEED)
    scenes = draw_scenes(count, rng, evaluator=False)
    images = np.stack([render(scene, rng) for scene in scenes])
    edges = np.stack([canny(image)[..., 0] for image in images])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    latents = [pipeline.vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in torch.split(pixels, 50)]
    captions = ["", *(scene.caption for scene in scenes)]
    ids = pipeline.tokenizer(captions, padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids
    scaled = torch.cat(latents) * pipeline.vae.config.scaling_factor
    data = {"latents": scaled, "edges": torch.from_numpy(edges), "ids": ids[1:], "empty": ids[0]}
    beside = cache.with_suffix(".part")
    torch.save(data, beside)
    beside.replace(cache)
    return data


def noise_loss(
    pipeline: StableDiffusionPipeline, net: ControlNetModel, data: dict[str, Tensor], batch: int
) -> Callable[[int], Tensor]:
    """What is left of the noise with the ControlNet's help; the rest of the model stays as it is."""
    alphas = pipeline.scheduler.alphas_cumprod

    def loss_at(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(SEED * 1_000_000 + step)
        rows = torch.randint(len(data["latents"]), (batch,), generator=rng)
        t = (torch.rand(batch, generator=rng) ** (1 / EARLY) * len(alphas)).long()
        noise = torch.randn((batch, *data["latents"].shape[1:]), generator=rng)
        dropped = torch.rand((batch, 1), generator=rng) < EMPTY_CAPTIONS
        alpha = alphas[t].view(-1, 1, 1, 1)
        x = alpha.sqrt() * data["latents"][rows] + (1 - alpha).sqrt() * noise
        edges = (data["edges"][rows].float() / 255)[:, None].expand(-1, 3, -1, -1)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                context = pipeline.text_encoder(torch.where(dropped, data["empty"], data["ids"][rows]))[0]
            down, middle = net(x, t, context, edges, return_dict=False)
            found = pipeline.unet(
                x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
            ).sample
        errors = functional.mse_loss(found.float(), noise, reduction="none").mean((1, 2, 3))
        return cast(Tensor, (alphas[t].rsqrt().clamp(max=20) * errors).mean())

    return loss_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint")
    parser.add_argument("--build", type=Path, default=HERE.parents[1] / "build" / "shapes-controlnet")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "controlnet")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    options = parser.parse_args()
    options.build.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    pipeline = StableDiffusionPipeline.from_pretrained(options.checkpoint, dtype=torch.float32, safety_checker=None)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.requires_grad_(False)
    pipeline.unet.set_attn_processor(AttnProcessor())  # the fused one's backward pass is slow on a CPU
    data = make_data(pipeline, options.images, options.build / "data.pt")
    net = build_controlnet(pipeline)
    state = options.build / "controlnet.pt"
    fit(
        net,
        noise_loss(pipeline, net, data, options.batch),
        plan=Plan(state, steps=options.steps, minutes=options.minutes, learning_rate=options.rate, average=0.99),
    )
    load_average(state, net).half().save_pretrained(options.output)
    size = sum(file.stat().st_size for file in options.output.iterdir())
    print(f"{options.output}: {sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
