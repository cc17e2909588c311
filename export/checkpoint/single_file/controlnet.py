"""A ControlNet in a single file, in the original layout or in diffusers' own, to a folder in diffusers' layout."""

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Any

from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.single_file.architectures import PartRow
from latentrt.export.checkpoint.single_file.convert import group_keys
from latentrt.export.checkpoint.single_file.layouts import Layout, Tensors, as_it_is, indices
from latentrt.export.checkpoint.single_file.parts import find_part, write_part
from latentrt.export.checkpoint.single_file.sizes import Shapes, unet_sizes
from latentrt.export.checkpoint.single_file.weights import Weights

_HEADS = 8  # of Stable Diffusion 1; the later ones have heads of 64 features
_OWN = "a ControlNet in the original layout (control_model.) or in diffusers' own"
# What their keys contain, and what they are: the first that fits.
_OTHERS = (
    ("task_embedding", "a ControlNet Union, which is of another architecture"),
    ("control_add_embedding", "a ControlNet Union, which is of another architecture"),
    ("lora_controlnet", "a Control-LoRA, which changes a ControlNet and is none"),
    ("lllite_", "a ControlNet-LLLite, which is of another architecture"),
    ("lora_", "a LoRA, which load(lora=...) takes"),
    ("adapter.body.", "a T2I-Adapter, which cannot be exported"),
    ("body.0.block1.", "a T2I-Adapter, which cannot be exported"),
    ("ip_adapter.", "an IP-Adapter, which cannot be exported"),
    ("image_proj.", "an IP-Adapter, which cannot be exported"),
)


def controlnet_folder(path: Path, *, allow_pickle: bool = False) -> Path:
    """Converts a file into a temporary folder, which is removed when the process ends.

    Raises:
        CheckpointError: it is missing, damaged, a pickle that is not allowed, or none of a ControlNet.
    """
    weights = Weights.open(path, allow_pickle=allow_pickle)
    for mark, what in _OTHERS:
        if any(mark in key for key in weights.shapes):
            raise CheckpointError(f"{path} is {what}", expected=_OWN)
    part = find_part(_ROW, weights)
    if part is None:
        raise CheckpointError(
            f"{path} has no ControlNet that is known; it holds {group_keys(weights.shapes)}",
            expected=_OWN,
            hint="for another kind, take the folder in diffusers' layout, if there is one",
        )
    folder = Path(tempfile.mkdtemp(prefix="latentrt-controlnet-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_part(part, part.config, folder / "controlnet")
    return folder / "controlnet"


def _from_original(tensors: Tensors) -> Tensors:
    """The names of the first ControlNets (`cldm.ControlNet`), and of those for SDXL in the same layout."""
    downsamplers = indices(tensors, r"input_blocks\.(\d+)\.0\.op\.weight")
    last = max(indices(tensors, r"input_blocks\.(\d+)\."))
    layers = min(downsamplers, default=last + 1) - 1
    converted: Tensors = convert_controlnet_checkpoint(dict(tensors), {"layers_per_block": layers})
    for number, name in (("0", "linear_1"), ("2", "linear_2")):  # which diffusers leaves out
        for kind in ("weight", "bias"):
            if (key := f"label_emb.0.{number}.{kind}") in tensors:
                converted[f"add_embedding.{name}.{kind}"] = tensors[key]
    return {key: value for key, value in converted.items() if value is not None}


def _sizes(shapes: Shapes) -> dict[str, Any]:
    """Of a ControlNetModel: those of the U-Net whose first half it copies, and of what reads the picture."""
    whole = unet_sizes({**shapes, "conv_out.weight": (shapes["conv_in.weight"][1],)})
    widths, linear = whole["block_out_channels"], whole["use_linear_projection"]
    blocks = range(0, 1 + max(indices(shapes, r"controlnet_cond_embedding\.blocks\.(\d+)\.")), 2)
    read = [shapes[f"controlnet_cond_embedding.blocks.{number}.weight"][0] for number in blocks]
    last = shapes["controlnet_cond_embedding.conv_out.weight"][1]
    sized = whole["addition_embed_type"] is not None
    kept = (
        "in_channels", "block_out_channels", "down_block_types", "layers_per_block", "transformer_layers_per_block",
        "cross_attention_dim", "use_linear_projection", "addition_embed_type", "projection_class_embeddings_input_dim",
    )  # fmt: skip
    return {
        **{name: whole[name] for name in kept},
        "attention_head_dim": tuple(max(1, width // 64) for width in widths) if linear else _HEADS,
        "addition_time_embed_dim": 256 if sized else None,
        "conditioning_channels": shapes["controlnet_cond_embedding.conv_in.weight"][1],
        "conditioning_embedding_out_channels": (*read, last),
    }


_ROW = PartRow(
    part="ControlNet",
    kind=ControlNetModel,
    prefixes=("control_model.", ""),
    layouts=(
        Layout("zero_convs.0.0.weight", _from_original),
        Layout("controlnet_cond_embedding.conv_in.weight", as_it_is),
    ),
    sizes=_sizes,
)
