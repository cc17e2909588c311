"""What the original networks call the weights of a denoiser, which some trainers' files keep.

- the U-Net of latent-diffusion and generative-models: `input_blocks.4.1.transformer_blocks.0.attn2.to_k`
  (diffusers, `loaders/single_file_utils.py`, `convert_ldm_unet_checkpoint`)
- the transformer of sd3-ref: `joint_blocks.0.x_block.attn.qkv`, three weights in one
  (the same file, `convert_sd3_transformer_checkpoint_to_diffusers`)

Names are made from those of the checkpoint at hand, so that nothing has to be parsed out of flattened names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_BLOCK = re.compile(r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.([a-z]+)\.(\d+)\.(.+)")

_MMDIT = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_MMDIT_LAYER = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_add_out": "context_block.attn.proj",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_MMDIT_FUSED = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_MMDIT_BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that a weight takes of one in the original network: of `count` equal blocks those in `order`."""

    count: int
    order: tuple[int, ...]


WHOLE = Rows(1, (0,))
_SWAPPED = Rows(2, (1, 0))  # shift and scale there are scale and shift here


def original_names(modules: Iterable[str]) -> Iterator[tuple[str, str, Rows]]:
    """The modules of a denoiser as diffusers names them, those that have another name in the original network:
    (module, original name, which rows of the original's weight it has)."""
    modules = tuple(modules)
    yield from ((module, name, WHOLE) for module, name in _unet(modules))
    yield from _mmdit(modules)


def _unet(modules: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    blocks = [(module, match) for module in modules if (match := _UNET_BLOCK.fullmatch(module)) is not None]
    held: dict[tuple[str, int], dict[str, int]] = {}  # how many of each kind a block has
    for _, match in blocks:
        counts = held.setdefault((match[1], int(match[2] or 0)), {})
        counts[match[3]] = max(counts.get(match[3], 0), int(match[4]) + 1)
    start = {}  # of each block, in the numbering of the original
    for side in ("down_blocks", "up_blocks"):
        at = 1 if side == "down_blocks" else 0
        for key in sorted(key for key in held if key[0] == side):
            start[key] = at
            at += held[key].get("resnets", 0) + held[key].get("downsamplers", 0)
    for module, match in blocks:
        side, level, kind, number, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
        counts = held[side, level]
        rest = _RESNET.get(rest, rest) if kind == "resnets" else rest
        if side == "mid_block":
            yield module, f"middle_block.{2 * number + (kind == 'attentions')}.{rest}"
        elif side == "down_blocks":
            at = start[side, level] + (counts.get("resnets", 0) if kind == "downsamplers" else number)
            yield module, f"input_blocks.{at}.{int(kind == 'attentions')}.{'op' if kind == 'downsamplers' else rest}"
        else:
            at = start[side, level] + (counts.get("resnets", 0) - 1 if kind == "upsamplers" else number)
            place = 1 + ("attentions" in counts) if kind == "upsamplers" else int(kind == "attentions")
            yield module, f"output_blocks.{at}.{place}.{rest}"
    yield from ((module, _UNET[module]) for module in modules if module in _UNET)


def _mmdit(modules: tuple[str, ...]) -> Iterator[tuple[str, str, Rows]]:
    blocks = [(module, match) for module in modules if (match := _MMDIT_BLOCK.fullmatch(module)) is not None]
    fused = {
        module: (name, Rows(3, (number,)))
        for name, three in _MMDIT_FUSED.items()
        for number, module in enumerate(three)
    }
    last = max((int(match[1]) for _, match in blocks), default=0)
    for module, match in blocks:
        name, rows = fused.get(match[2], (_MMDIT_LAYER.get(match[2]), WHOLE))
        if match[2] == "norm1_context.linear" and int(match[1]) == last:
            rows = _SWAPPED
        if name is not None:
            yield module, f"joint_blocks.{match[1]}.{name}", rows
    for module in modules:
        if module in _MMDIT:
            yield module, _MMDIT[module], _SWAPPED if module == "norm_out.linear" else WHOLE
