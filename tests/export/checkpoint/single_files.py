"""Checkpoints of diffusers' layout written as single files in the original ones: the inverse of what is under test.

Key names as in the published code: CompVis/stable-diffusion (`openaimodel.py`, `model.py`), open_clip
(`transformer.py`), Stability-AI/sd3.5 (`mmditx.py`).
"""

import re
from collections.abc import Mapping

import torch

Tensors = dict[str, torch.Tensor]

_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
_UNET_ENDS = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
_VAE = {
    "group_norm.": "norm.",
    "to_q.": "q.",
    "to_k.": "k.",
    "to_v.": "v.",
    "to_out.0.": "proj_out.",
    "conv_shortcut.": "nin_shortcut.",
    "conv_norm_out.": "norm_out.",
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "mid_block.attentions.0.": "mid.attn_1.",
}
_OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.",
    "self_attn.": "attn.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
    "final_layer_norm.": "ln_final.",
    "embeddings.token_embedding.": "token_embedding.",
    "embeddings.position_embedding.weight": "positional_embedding",
}
_MMDIT = {
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj.": "x_embedder.proj.",
    "time_text_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.",
    "time_text_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
    "time_text_embed.text_embedder.linear_1.": "y_embedder.mlp.0.",
    "time_text_embed.text_embedder.linear_2.": "y_embedder.mlp.2.",
    "norm_out.linear.": "final_layer.adaLN_modulation.1.",
    "proj_out.": "final_layer.linear.",
    "transformer_blocks.": "joint_blocks.",
    "attn.norm_q.": "x_block.attn.ln_q.",
    "attn.norm_k.": "x_block.attn.ln_k.",
    "attn.norm_added_q.": "context_block.attn.ln_q.",
    "attn.norm_added_k.": "context_block.attn.ln_k.",
    "attn2.norm_q.": "x_block.attn2.ln_q.",
    "attn2.norm_k.": "x_block.attn2.ln_k.",
    "attn.to_out.0.": "x_block.attn.proj.",
    "attn2.to_out.0.": "x_block.attn2.proj.",
    "attn.to_add_out.": "context_block.attn.proj.",
    "norm1.linear.": "x_block.adaLN_modulation.1.",
    "norm1_context.linear.": "context_block.adaLN_modulation.1.",
    "ff.net.0.proj.": "x_block.mlp.fc1.",
    "ff.net.2.": "x_block.mlp.fc2.",
    "ff_context.net.0.proj.": "context_block.mlp.fc1.",
    "ff_context.net.2.": "context_block.mlp.fc2.",
}
_MMDIT_QKV = {
    "attn.to_{}.": ("q", "k", "v", "x_block.attn.qkv."),
    "attn.add_{}_proj.": ("q", "k", "v", "context_block.attn.qkv."),
    "attn2.to_{}.": ("q", "k", "v", "x_block.attn2.qkv."),
}


def ldm_unet(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A UNet2DConditionModel under `model.diffusion_model.`."""
    per_block = 2 + max(int(key.split(".")[3]) for key in state if key.startswith("down_blocks.0.resnets."))

    def place(match: re.Match[str]) -> str:
        side, block, kind, number = match[1], int(match[2]), match[3], int(match[4])
        if side == "down":
            at = per_block * (block + 1) if kind == "downsamplers" else 1 + per_block * block + number
            return f"input_blocks.{at}." + {"resnets": "0.", "attentions": "1.", "downsamplers": "0.op."}[kind]
        at = per_block * (block + 1) - 1 if kind == "upsamplers" else per_block * block + number
        attends = f"up_blocks.{block}.attentions.0.proj_in.weight" in state
        after = {"resnets": "0.", "attentions": "1.", "upsamplers": "2.conv." if attends else "1.conv."}
        return f"output_blocks.{at}." + after[kind]

    renamed = {}
    for key, value in state.items():
        name = re.sub(r"^(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(?:conv\.(?=\w+$))?", place, key)
        name = re.sub(r"^mid_block\.resnets\.(\d)\.", lambda match: f"middle_block.{2 * int(match[1])}.", name)
        name = name.replace("mid_block.attentions.0.", "middle_block.1.")
        resnet = ".resnets." in key
        renamed["model.diffusion_model." + _replaced(name, _RESNET if resnet else {}, _UNET_ENDS)] = value
    return renamed


def ldm_vae(state: Mapping[str, torch.Tensor], prefix: str = "first_stage_model.") -> Tensors:
    """An AutoencoderKL; the projections of its attention are convolutions there."""
    last = max(int(key.split(".")[2]) for key in state if key.startswith("decoder.up_blocks."))
    renamed = {}
    for key, value in state.items():
        name = re.sub(r"down_blocks\.(\d+)\.", r"down.\1.", key)
        name = re.sub(r"up_blocks\.(\d+)\.", lambda match: f"up.{last - int(match[1])}.", name)
        name = re.sub(r"(down|up)samplers\.0\.", r"\1sample.", name)
        if ".mid_block." not in key:
            name = name.replace("resnets.", "block.")
        matrix = "attentions" in key and value.ndim == 2
        renamed[prefix + _replaced(name, _VAE)] = value[:, :, None, None] if matrix else value
    return renamed


def hf_clip(state: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    """A CLIP text encoder under transformers' own names, with the buffer that old files have."""
    inner = ("text_model.", "text_projection.")
    text_encoder = {
        prefix + (key if key.startswith(inner) else f"text_model.{key}"): value for key, value in state.items()
    }
    return text_encoder | {prefix + "text_model.embeddings.position_ids": torch.arange(77)[None]}


def open_clip(state: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    """A CLIP text encoder under open_clip's names: one matrix of queries, keys and values; transposed projection."""
    state = {key.removeprefix("text_model."): value for key, value in state.items()}
    renamed = {"logit_scale": torch.tensor(4.6)}
    for key, value in state.items():
        if key == "text_projection.weight":
            renamed["text_projection"] = value.T.contiguous()
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)", key):
            joined = torch.cat([state[key.replace("q_proj", f"{which}_proj")] for which in "qkv"])
            renamed[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = joined
        elif not re.search(r"self_attn\.[kv]_proj", key):
            renamed[_replaced(key, _OPEN_CLIP)] = value
    return {prefix + key: value for key, value in renamed.items()}


def mmdit(state: Mapping[str, torch.Tensor]) -> Tensors:
    """An SD3Transformer2DModel: joined projections; the modulations of the last layers have shift before scale."""
    last = max(int(key.split(".")[1]) for key in state if key.startswith("transformer_blocks."))
    swapped = ("norm_out.linear.", f"transformer_blocks.{last}.norm1_context.linear.")
    renamed = {}
    for key, value in state.items():
        parts = re.match(r"transformer_blocks\.\d+\.", key)
        inner = key[parts.end() :] if parts else key
        joined = next((row for row in _MMDIT_QKV.items() if _is_one_of(inner, row)), None)
        if joined is None:
            name = _replaced(key[: len(key) - len(inner)], _MMDIT) + _replaced(inner, _MMDIT)
            renamed[name] = torch.cat(value.chunk(2)[::-1]) if key.startswith(swapped) else value
        elif inner.startswith(joined[0].format("q")):
            block = _replaced(key[: len(key) - len(inner)], _MMDIT)
            three = [state[key.replace(joined[0].format("q"), joined[0].format(which))] for which in "qkv"]
            renamed[block + joined[1][3] + key.rsplit(".", 1)[1]] = torch.cat(three)
    return {"model.diffusion_model." + key: value for key, value in renamed.items()}


def _is_one_of(inner: str, row: tuple[str, tuple[str, ...]]) -> bool:
    return inner.startswith(tuple(row[0].format(which) for which in "qkv"))


def _replaced(name: str, *tables: Mapping[str, str]) -> str:
    """A name with the first entry of each table that stands at its beginning or after a dot replaced, each once."""
    for table in tables:
        for old, new in table.items():
            name = re.sub(rf"(^|(?<=\.)){re.escape(old)}", new, name, count=1)
    return name
