"""Train the example checkpoint from nothing: tokenizer, autoencoder, U-Net with text encoder, diffusers folder.

`python examples/shapes/train.py` runs every stage and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from fit import Plan, fit, load_average
from models import (
    CONTEXT,
    Denoiser,
    build_scheduler,
    build_vae,
    fill,
    standardise,
    train_tokenizer,
    write_checkpoint,
)
from numpy.typing import NDArray
from scenes import draw_scenes, render, single_scenes
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTokenizer

SEED = 20
HERE = Path(__file__).resolve().parent
LATENT_NOISE = 0.05
SLOPE_GAIN = 4.0
ENCODER_EVERY = 3  # steps; the decoder is the harder part
ENCODER_WEIGHT = 1e-3
EMPTY_CAPTIONS = 0.1  # share, for classifier-free guidance (Ho and Salimans 2022)
SNR_CAP = 5.0  # min-SNR weighting (Hang et al. 2023)


@dataclass(frozen=True, slots=True)
class Config:
    """What a run is made of; every field is an option of the command line."""

    build: Path = HERE.parents[1] / "build" / "shapes"
    checkpoint: Path = HERE / "checkpoint"
    start: Path | None = None  # a checkpoint whose U-Net and text encoder a run without a state begins from
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    vae_steps: int = 2500
    vae_minutes: float = math.inf
    vae_batch: int = 4
    vae_rate: float = 1.5e-3
    images: int = 28_000
    unet_steps: int = 5000
    unet_minutes: float = math.inf
    unet_batch: int = 32
    unet_rate: float = 1.2e-3


def tokenizer_stage(config: Config) -> None:
    """Learn the merges from captions of both kinds; every word of the grammar becomes one token.

    The learner breaks ties at random, so a run that starts from a checkpoint takes that one's tokenizer.
    """
    if config.start is not None:
        shutil.copytree(config.start / "tokenizer", config.build / "tokenizer", dirs_exist_ok=True)
        return
    pairs = draw_scenes(3000, np.random.default_rng(SEED), evaluator=False, pairs=1.0)
    captions = [scene.caption for scene in (*single_scenes(), *pairs)]
    tokenizer = train_tokenizer(captions, config.build / "tokenizer")
    print(f"tokenizer: {len(tokenizer)} tokens")


def vae_stage(config: Config) -> None:
    """Fit encoder and decoder to the two sides of `latent_targets`.

    The decoder draws from noisy targets, L1 plus squared error; the encoder's posterior comes to
    N(target, LATENT_NOISE), by their KL divergence. Learning a code from nothing took far longer on a CPU.
    """
    torch.manual_seed(SEED)
    vae = build_vae().to(config.device)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng((SEED, 0, step))
        x = pixels(_images(config.vae_batch, rng)[0]).to(config.device)
        target = latent_targets(x)
        with torch.autocast(torch.device(config.device).type, torch.bfloat16):
            y = vae.decode(target + LATENT_NOISE * torch.randn_like(target)).sample
        difference = y.float() - x
        loss = difference.abs().mean() + difference.square().mean()
        if step % ENCODER_EVERY:
            return cast(Tensor, loss)
        with torch.autocast(torch.device(config.device).type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
        ratio = posterior.std.float() / LATENT_NOISE
        miss = (posterior.mean.float() - target) / LATENT_NOISE
        excess = (ratio.square() + miss.square() - 1) / 2 - ratio.log()
        return cast(Tensor, loss + ENCODER_WEIGHT * excess.mean())

    fit(
        vae,
        loss_at,
        plan=Plan(
            config.build / "vae.pt",
            steps=config.vae_steps,
            minutes=config.vae_minutes,
            learning_rate=config.vae_rate,
        ),
    )


def latent_targets(x: Tensor) -> Tensor:
    """What the latents of pictures x [N, 3, H, W] in [-1, 1] are meant to be: [N, 4, H/8, W/8].

    Three channels are the mean colour of an 8x8 cell; the fourth is the slope of its brightness along the diagonal.
    """
    ramp = torch.linspace(-1, 1, 8, device=x.device)
    ramp = (ramp[:, None] + ramp).repeat(x.shape[2] // 8, x.shape[3] // 8)
    slope = functional.avg_pool2d(x.mean(1, keepdim=True) * ramp, 8)
    return torch.cat([functional.avg_pool2d(x, 8), SLOPE_GAIN * slope], dim=1)


def unet_stage(config: Config) -> None:
    """Epsilon prediction on cached latents, the text encoder trained along."""
    torch.manual_seed(SEED)
    data = _latents(config)
    denoiser = Denoiser(CLIPTokenizer.from_pretrained(config.build / "tokenizer"))
    if config.start is not None:
        fill(denoiser.unet, config.start / "unet")
        fill(denoiser.text_encoder, config.start / "text_encoder")
    denoiser.to(config.device)
    if config.device == "cpu":  # the fused attention's backward pass takes as long there as all the rest
        denoiser.unet.set_attn_processor(AttnProcessor())
    loss_at = noise_loss(denoiser, data, batch=config.unet_batch, device=torch.device(config.device))
    fit(
        denoiser,
        loss_at,
        plan=Plan(
            config.build / "unet.pt",
            steps=config.unet_steps,
            minutes=config.unet_minutes,
            learning_rate=config.unet_rate,
        ),
    )


def package_stage(config: Config) -> None:
    """Write the averaged weights, of finished stages or of running ones, as a diffusers folder.

    A checkpoint that is there already keeps its autoencoder if none was trained in this build folder.
    """
    tokenizer = config.build / "tokenizer"
    if (config.build / "vae.pt").exists():
        vae = load_average(config.build / "vae.pt", build_vae())
        data = _latents(config)
        standardise(vae, shift=data["shift"], spread=data["spread"])
    else:
        vae = build_vae()
        fill(vae, config.checkpoint / "vae")
    denoiser = load_average(config.build / "unet.pt", Denoiser(CLIPTokenizer.from_pretrained(tokenizer)))
    write_checkpoint(config.checkpoint, tokenizer=tokenizer, vae=vae, denoiser=denoiser)
    size = sum(file.stat().st_size for file in config.checkpoint.rglob("*") if file.is_file())
    print(f"checkpoint: {config.checkpoint}, {size / 1e6:.1f} MB")


def noise_loss(
    denoiser: Denoiser,
    data: dict[str, Tensor],
    *,
    batch: int,
    device: torch.device,
) -> Callable[[int], Tensor]:
    """The loss of a step, of rows of `data` (see `_latents`) with noise; it depends on the step's number alone."""
    alphas = build_scheduler().alphas_cumprod
    snr = alphas / (1 - alphas)
    often = (SNR_CAP / snr).clamp(max=1)  # min(snr, cap) / snr, as the frequency of a timestep
    weights = (1 + 1 / snr).sqrt().clamp(max=20)  # the noisy end, where the caption decides, counts more

    def loss_at(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(SEED * 1_000_000 + step)
        rows = torch.randint(len(data["mean"]), (batch,), generator=rng)
        t = torch.multinomial(often, batch, replacement=True, generator=rng)
        noise, jitter = torch.randn((2, batch, *data["mean"].shape[1:]), generator=rng)
        dropped = torch.rand((batch, 1), generator=rng) < EMPTY_CAPTIONS
        ids = torch.where(dropped, data["empty"], data["ids"][rows])
        x = data["mean"][rows] + data["std"] * jitter
        alpha = alphas[t].view(-1, 1, 1, 1)
        x = (alpha.sqrt() * x + (1 - alpha).sqrt() * noise).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            prediction = denoiser(x, t.to(device), ids.to(device))
        errors = functional.mse_loss(prediction.float(), noise.to(device), reduction="none").mean((1, 2, 3))
        return cast(Tensor, (weights[t].to(device) * errors).mean())

    return loss_at


@torch.no_grad()
def _latents(config: Config) -> dict[str, Tensor]:
    """Rendered scenes as the autoencoder is to see them, each channel brought to mean 0 and deviation 1.

    mean [N, 4, 16, 16], std [4, 1, 1], ids [N, 77], empty [77]; shift and spread [4] undo the change.
    """
    cache = config.build / "latents.pt"
    if cache.exists():
        return cast("dict[str, Tensor]", torch.load(cache, weights_only=True))
    tokenizer = CLIPTokenizer.from_pretrained(config.build / "tokenizer")
    rng = np.random.default_rng((SEED, 1))
    means, captions = [], []
    for _ in range(math.ceil(config.images / 100)):
        images, batch_captions = _images(100, rng)
        means.append(latent_targets(pixels(images)))
        captions += batch_captions
    mean = torch.cat(means)
    ids = tokenizer(["", *captions], padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids
    shift = mean.mean((0, 2, 3))
    spread = (mean.var((0, 2, 3)) + LATENT_NOISE**2).sqrt()
    data = {"ids": ids[1:], "empty": ids[0], "shift": shift, "spread": spread}
    data["mean"] = (mean - shift.view(-1, 1, 1)) / spread.view(-1, 1, 1)
    data["std"] = LATENT_NOISE / spread.view(-1, 1, 1)
    beside = cache.with_suffix(".part")
    torch.save(data, beside)
    beside.replace(cache)
    return data


def _images(count: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[str]]:
    """Training scenes, drawn: uint8 [count, 128, 128, 3], and their captions."""
    scenes = draw_scenes(count, rng, evaluator=False)
    return np.stack([render(scene, rng) for scene in scenes]), [scene.caption for scene in scenes]


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, H, W, 3] to float32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


STAGES: dict[str, Callable[[Config], None]] = {
    "tokenizer": tokenizer_stage,
    "vae": vae_stage,
    "unet": unet_stage,
    "package": package_stage,
}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)}; all of them if none is named")
    defaults = Config()
    for field in fields(Config):
        default = getattr(defaults, field.name)
        kind = Path if default is None else type(default)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=default)
    options = vars(parser.parse_args(arguments))
    stages = options.pop("stages") or list(STAGES)
    if unknown := set(stages) - set(STAGES):
        parser.error(f"found stage {', '.join(sorted(unknown))}; expected {', '.join(STAGES)}")
    config = Config(**options)
    config.build.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        STAGES[stage](config)


if __name__ == "__main__":
    main(sys.argv[1:])
