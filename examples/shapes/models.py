"""The parts of the example checkpoint, in diffusers' and transformers' own classes and file formats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

CONTEXT = 77  # tokens
WIDTH = 128  # of the text encoder, and so of the U-Net's cross-attention
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
# CLIP's word pattern: openai/CLIP, clip/simple_tokenizer.py
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def build_vae() -> AutoencoderKL:
    """A KL autoencoder: 128x128 RGB in [-1, 1] to 4 x 16x16 latents and back."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=2,  # more would leave two channels to a group and wash the colours out
        sample_size=128,
        mid_block_add_attention=False,
    )


@torch.no_grad()
def standardise(vae: AutoencoderKL, *, shift: Tensor, spread: Tensor) -> None:
    """Give every latent channel mean 0 and standard deviation 1 / scaling_factor, with unchanged pictures.

    `shift` and `spread` [4] are the channels' mean and standard deviation now. The two 1x1 convolutions
    around the latent absorb the change.
    """
    ratio = 1 / (vae.config.scaling_factor * spread)
    means, logvars = vae.quant_conv.weight[:4], vae.quant_conv.bias[4:]
    means *= ratio.view(4, 1, 1, 1)
    vae.quant_conv.bias[:4] = (vae.quant_conv.bias[:4] - shift) * ratio
    logvars += 2 * ratio.log()
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ shift
    vae.post_quant_conv.weight /= ratio.view(1, 4, 1, 1)


def build_unet() -> UNet2DConditionModel:
    """Stable Diffusion 1.x's U-Net, small: three levels, one layer each."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 192),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        cross_attention_dim=WIDTH,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text encoder, small: three layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's noise schedule, epsilon prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train_tokenizer(captions: Iterable[str], folder: Path) -> CLIPTokenizer:
    """Learn the merges of a CLIP-format byte-level BPE and write its files into `folder`.

    The vocabulary is laid out as CLIP's: 256 byte symbols, the same at a word's end, one token for each
    merge, then start and end of text. Any text encodes, since every byte has a token.
    """
    learner = Tokenizer(BPE(end_of_word_suffix=WORD_END))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    learner.train_from_iterator(captions, BpeTrainer(vocab_size=2000, end_of_word_suffix=WORD_END, show_progress=False))
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*symbols, *(symbol + WORD_END for symbol in symbols), *map("".join, merges), BOS, EOS]
    _write_tokenizer(folder, {token: index for index, token in enumerate(tokens)}, merges)
    return CLIPTokenizer.from_pretrained(folder)


def _write_tokenizer(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
    config = special | {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": CONTEXT,
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("vocab", vocabulary), ("tokenizer_config", config), ("special_tokens_map", special)):
        (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


class Denoiser(nn.Module):
    """U-Net and text encoder as one network, so that they train and average together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.unet = build_unet()

    def forward(self, x: Tensor, timestep: Tensor, ids: Tensor) -> Tensor:
        """Predict the noise in latents x [B, 4, h, w] for token ids [B, 77]."""
        # No attention mask: pipelines show the padding to the network too.
        context = self.text_encoder(ids).last_hidden_state
        predicted: Tensor = self.unet(x, timestep, context).sample
        return predicted


def fill(network: nn.Module, folder: Path) -> None:
    """Take the weights of the same architecture, of diffusers or transformers, from its folder in a checkpoint."""
    kind: Any = type(network)
    stored = kind.from_pretrained(folder, torch_dtype=torch.float32)
    network.load_state_dict(stored.state_dict())


def write_checkpoint(folder: Path, *, tokenizer: Path, vae: AutoencoderKL, denoiser: Denoiser) -> None:
    """Write a half-precision diffusers folder; an older one gives way only once the new one is whole."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        unet=denoiser.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16)
    beside, before = folder.with_suffix(".part"), folder.with_suffix(".old")
    for leftover in (beside, before):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(beside)
    shutil.rmtree(beside / "tokenizer")  # transformers' own rewrite of it drops the vocabulary's plain files
    shutil.copytree(tokenizer, beside / "tokenizer")
    if folder.exists():
        folder.rename(before)
    beside.rename(folder)
    shutil.rmtree(before, ignore_errors=True)
