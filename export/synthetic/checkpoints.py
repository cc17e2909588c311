"""Checkpoints in real architectures with random weights: for tests, benchmarks and machines without a model hub.

python -m latentrt.export.synthetic.checkpoints sd15 -o build/checkpoints/sd15
"""

import argparse
import inspect
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from latentrt.export.checkpoint.folder import tokenizer_of
from latentrt.export.synthetic.architectures import ARCHITECTURES, Architecture, TextEncoderSizes
from latentrt.export.synthetic.parts import make_vae, write_parts
from latentrt.export.synthetic.sd3 import SD3_ARCHITECTURES, make_sd3_checkpoint

_Module = TypeVar("_Module", bound=nn.Module)

# Parts of a U-Net's names that carry conditions: text, time, sizes, guidance, and what joins the latent.
_CARRIERS = ("attn2.to_v", "attn2.to_out", "time_emb_proj", "time_embedding", "add_embedding", "conv_in")
_TOKEN_GAIN = (
    25.0  # CLIP starts its embeddings at 0.02, and a text encoder that is read before its final norm stays there
)


def make_checkpoint(architecture: str, folder: Path, *, seed: int = 0) -> Path:
    """Writes a diffusers folder with seeded random weights and returns it."""
    torch.manual_seed(seed)
    if architecture in SD3_ARCHITECTURES:
        return make_sd3_checkpoint(SD3_ARCHITECTURES[architecture], folder, _byte_tokenizer(folder / "tokenizer"))
    sizes = ARCHITECTURES[architecture]
    tokenizers = {
        tokenizer_of(part): _byte_tokenizer(folder / tokenizer_of(part), pads=text_encoder.pads)
        for part, text_encoder in sizes.text_encoders.items()
    }
    kind = getattr(diffusers, sizes.pipeline)
    taken = inspect.signature(kind.__init__).parameters
    left_out = {name for name in ("text_encoder", "tokenizer", "safety_checker", "feature_extractor") if name in taken}
    parts: dict[str, Callable[[], object]] = {
        "vae": lambda: _vae(sizes),
        **{
            part: partial(_text_encoder, sizes, text_encoder, tokenizers[tokenizer_of(part)])
            for part, text_encoder in sizes.text_encoders.items()
        },
        **{name: partial(tokenizers.__getitem__, name) for name in tokenizers},
        "unet": lambda: _amplified(_unet(sizes), sizes.gain),
        "scheduler": lambda: getattr(diffusers, sizes.scheduler)(**sizes.schedule),
    }
    settings: dict[str, Any] = {"requires_safety_checker": False} if "requires_safety_checker" in taken else {}
    settings |= {**dict.fromkeys(left_out - parts.keys()), **sizes.index}
    return write_parts(kind, folder, parts=parts, settings=settings, dtype=sizes.dtype)


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
        cross_attention_dim=sizes.context_width,
        **sizes.unet,
    )


def _vae(sizes: Architecture) -> AutoencoderKL:
    return make_vae(
        sizes.vae_channels, layers=sizes.vae_layers, latent_channels=4, sample_size=sizes.sample_size, **sizes.vae
    )


def _text_encoder(
    sizes: Architecture, text_encoder: TextEncoderSizes, tokenizer: CLIPTokenizer
) -> CLIPTextModel | CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=text_encoder.width,
        projection_dim=text_encoder.width,
        intermediate_size=4 * text_encoder.width,
        num_hidden_layers=text_encoder.layers,
        num_attention_heads=text_encoder.heads,
        hidden_act=text_encoder.activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if text_encoder.eos_id is None else text_encoder.eos_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = CLIPTextModelWithProjection if text_encoder.projects else CLIPTextModel
    return _amplified(kind(config), sizes.gain)


@torch.no_grad()
def _amplified(module: _Module, gain: float) -> _Module:
    """Lets conditions matter: with weights as they are initialised a change of the prompt is lost in the image."""
    if gain == 1:
        return module
    if isinstance(module, UNet2DConditionModel):
        for name, weight in module.named_parameters():
            if name.endswith("weight") and any(carrier in name for carrier in _CARRIERS):
                weight.mul_(gain)
    else:
        cast(Any, module).get_input_embeddings().weight.mul_(_TOKEN_GAIN)
    return module


def _byte_tokenizer(folder: Path, *, pads: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIP-format tokenizer without merges: one token a byte, so every text encodes."""
    symbols = _byte_symbols()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        pad_token=pads,
        model_max_length=77,
    )


def _byte_symbols() -> list[str]:
    """The printable stand-ins of the 256 bytes in byte-level BPE (Radford et al. 2019, GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint with random weights in a real architecture.")
    parser.add_argument("architecture", choices=sorted({**ARCHITECTURES, **SD3_ARCHITECTURES}))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    folder = make_checkpoint(options.architecture, options.output, seed=options.seed)
    print(f"{options.architecture} with random weights: {folder}")


if __name__ == "__main__":
    main()
