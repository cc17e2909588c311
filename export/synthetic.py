"""Checkpoints in real architectures with random weights: for tests, benchmarks and machines without a model hub.

python -m latentrt.export.synthetic sd15 -o build/checkpoints/sd15
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of one Stable Diffusion 1.x checkpoint. Widths in channels, `sample_size` in latent pixels."""

    unet_channels: tuple[int, ...]
    unet_attention: tuple[bool, ...]
    unet_layers: int
    unet_heads: int
    norm_groups: int
    text_width: int
    text_layers: int
    text_heads: int
    vocabulary: int
    vae_channels: tuple[int, ...]
    vae_layers: int
    sample_size: int


ARCHITECTURES = {
    "tiny-sd15": Architecture(
        unet_channels=(32, 64, 64),
        unet_attention=(True, True, False),
        unet_layers=1,
        unet_heads=2,
        norm_groups=16,
        text_width=32,
        text_layers=3,
        text_heads=2,
        vocabulary=600,
        vae_channels=(16, 16, 32, 32),
        vae_layers=1,
        sample_size=16,
    ),
    # The published configuration of Stable Diffusion 1.5: 860 M, 123 M and 84 M parameters.
    "sd15": Architecture(
        unet_channels=(320, 640, 1280, 1280),
        unet_attention=(True, True, True, False),
        unet_layers=2,
        unet_heads=8,
        norm_groups=32,
        text_width=768,
        text_layers=12,
        text_heads=12,
        vocabulary=49408,
        vae_channels=(128, 256, 512, 512),
        vae_layers=2,
        sample_size=64,
    ),
}


def make_checkpoint(architecture: str, folder: Path, *, seed: int = 0) -> Path:
    """Writes a diffusers folder with seeded random weights in float32 and returns it."""
    sizes = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    tokenizer = _byte_tokenizer(folder / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=_vae(sizes),
        text_encoder=_text_encoder(sizes, tokenizer),
        tokenizer=tokenizer,
        unet=_unet(sizes),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def _unet(sizes: Architecture) -> UNet2DConditionModel:
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in sizes.unet_attention)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(sizes.unet_attention))
    return UNet2DConditionModel(
        sample_size=sizes.sample_size,
        block_out_channels=sizes.unet_channels,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=sizes.unet_layers,
        attention_head_dim=sizes.unet_heads,
        norm_num_groups=sizes.norm_groups,
        cross_attention_dim=sizes.text_width,
    )


def _vae(sizes: Architecture) -> AutoencoderKL:
    levels = len(sizes.vae_channels)
    return AutoencoderKL(
        block_out_channels=sizes.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=sizes.vae_layers,
        norm_num_groups=min(32, sizes.vae_channels[0] // 2),
        latent_channels=4,
        sample_size=8 * sizes.sample_size,
    )


def _text_encoder(sizes: Architecture, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.text_width,
            intermediate_size=4 * sizes.text_width,
            num_hidden_layers=sizes.text_layers,
            num_attention_heads=sizes.text_heads,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _byte_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP-format tokenizer without merges: one token a byte, so every text encodes."""
    symbols = _byte_symbols()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        pad_token="<|endoftext|>",
        model_max_length=77,
    )


def _byte_symbols() -> list[str]:
    """The printable stand-ins of the 256 bytes in byte-level BPE (Radford et al. 2019, GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint with random weights in a real architecture.")
    parser.add_argument("architecture", choices=sorted(ARCHITECTURES))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    folder = make_checkpoint(options.architecture, options.output, seed=options.seed)
    print(f"{options.architecture} with random weights: {folder}")


if __name__ == "__main__":
    main()
