"""Train the example LoRA: shapes in outline, with a nearly white inside.

`python examples/shapes/lora.py` goes on where it was stopped, and writes lora/outlined.safetensors. It is seen in
docs/lora.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from fit import Plan, fit
from models import CONTEXT, Denoiser, fill
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from scenes import draw_scenes, render
from torch import Tensor
from train import noise_loss, pixels
from transformers import CLIPTokenizer

SEED = 30
HERE = Path(__file__).resolve().parent
OUTLINE_PX = 5
RANK = 3  # as trained
KEPT = 0.95  # of the squares of what was trained: fewer ranks do, and draw the same style
# Edges are decided where the picture is finest. Convolutions see their neighbours, which attention hardly does.
LAYERS = r".*up_blocks\.[12]\..*\.(conv1|conv2|to_q|to_k|to_v|to_out\.0|proj_in|proj_out)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=HERE.parents[1] / "build" / "shapes")
    parser.add_argument("--checkpoint", type=Path, default=HERE / "checkpoint")
    parser.add_argument("--output", type=Path, default=HERE / "lora")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    options.build.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    tokenizer = CLIPTokenizer.from_pretrained(options.checkpoint / "tokenizer")
    denoiser = adapted(options.checkpoint, tokenizer)
    data = latents(options.checkpoint, tokenizer, options.build / "lora-latents.pt", count=options.images)
    average = fit(
        denoiser,
        noise_loss(denoiser, data, batch=options.batch, device=torch.device("cpu")),
        plan=Plan(
            options.build / "lora.pt",
            steps=options.steps,
            minutes=options.minutes,
            learning_rate=2e-3,
            weight_decay=0.0,
            average=0.99,
        ),
    )
    write(average, options.output)


def adapted(checkpoint: Path, tokenizer: CLIPTokenizer) -> Denoiser:
    """The checkpoint's network, of which nothing but a LoRA in the U-Net trains."""
    denoiser = Denoiser(tokenizer)
    fill(denoiser.unet, checkpoint / "unet")
    fill(denoiser.text_encoder, checkpoint / "text_encoder")
    denoiser.requires_grad_(False)
    denoiser.unet.set_attn_processor(AttnProcessor())  # the fused one's backward pass is slow on a CPU
    denoiser.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS))
    return denoiser


@torch.no_grad()
def latents(checkpoint: Path, tokenizer: CLIPTokenizer, cache: Path, *, count: int) -> dict[str, Tensor]:
    """Scenes in the style and their captions, as `train.noise_loss` takes them.

    mean [N, 4, 16, 16], std [4, 1, 1], ids [N, 77], empty [77].
    """
    if cache.exists():
        return cast("dict[str, Tensor]", torch.load(cache, weights_only=True))
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32)
    rng = np.random.default_rng(SEED)
    scenes = draw_scenes(count, rng, evaluator=False)
    means, deviations = [], []
    for first in range(0, count, 50):
        images = np.stack([render(scene, rng, outline=OUTLINE_PX) for scene in scenes[first : first + 50]])
        posterior = vae.encode(pixels(images)).latent_dist
        means.append(posterior.mean * vae.config.scaling_factor)
        deviations.append(posterior.std.mean((0, 2, 3)) * vae.config.scaling_factor)
    captions = ["", *(scene.caption for scene in scenes)]
    ids = tokenizer(captions, padding="max_length", max_length=CONTEXT, return_tensors="pt").input_ids
    std = torch.stack(deviations).mean(0).view(-1, 1, 1)
    data = {"ids": ids[1:], "empty": ids[0], "mean": torch.cat(means), "std": std}
    beside = cache.with_suffix(".part")
    torch.save(data, beside)
    beside.replace(cache)
    return data


def write(denoiser: Denoiser, folder: Path) -> None:
    """Saves the LoRA as diffusers does, shortened and in half precision."""
    layers = shortened(get_peft_model_state_dict(denoiser.unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, weight_name="outlined.safetensors")
    size = (folder / "outlined.safetensors").stat().st_size
    print(f"{folder / 'outlined.safetensors'}: {len(layers) // 2} layers of rank 1 to {RANK}, {size / 1e3:.0f} kB")


def shortened(layers: Mapping[str, Tensor], *, kept: float = KEPT) -> dict[str, Tensor]:
    """Each layer's product B A by its largest singular values, in half precision.

    Args:
        layers: A [rank, in, ...] and B [out, rank, ...] of each layer.
        kept: what the singular values that stay have of the sum of all layers' squares.
    """
    downs = {name: down for name, down in layers.items() if "lora_A" in name}
    ups = {name: layers[name.replace("lora_A", "lora_B")] for name in downs}
    parts = {
        name: torch.linalg.svd(ups[name].flatten(1).double() @ downs[name].flatten(1).double(), False) for name in downs
    }
    values = torch.cat([parts[name].S[: len(down)] for name, down in downs.items()]).sort(descending=True).values
    squares = values.square().cumsum(0)
    least = values[int((squares < kept * squares[-1]).sum())]
    found = {}
    for name, (left, sizes, right) in parts.items():
        rank = max(1, int((sizes >= least).sum()))
        found[name] = (sizes[:rank, None].sqrt() * right[:rank]).reshape(rank, *downs[name].shape[1:])
        up = left[:, :rank] * sizes[:rank].sqrt()
        found[name.replace("lora_A", "lora_B")] = up.reshape(len(up), rank, *ups[name].shape[2:])
    return {name: value.half().contiguous() for name, value in found.items()}


if __name__ == "__main__":
    main()
