"""LoRA files made of seeded random matrices, in every layout, for tests."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
TEXT_ENCODER = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
CONVOLUTIONS = ("conv1", "conv2", "proj_in", "proj_out", "conv_shortcut", "downsamplers.0.conv")


@dataclass(frozen=True)
class Matrices:
    """One layer's: down [r, in, ...], up [out, r, ...], and alpha."""

    down: Tensor
    up: Tensor
    alpha: float


Layers = Mapping[tuple[str, str], Matrices]  # by (part, module)


def random_layers(
    pipeline: StableDiffusionPipeline,
    *,
    unet: tuple[str, ...] = ATTENTION,
    text_encoder: tuple[str, ...] = (),
    rank: int = 4,
    alpha: float = 2.0,
    strength: float = 0.6,
    seed: int = 0,
) -> dict[tuple[str, str], Matrices]:
    """Matrices for all layers whose names end so; the difference has `strength` times its weight's magnitude."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    asked = {part: endings for part, endings in (("unet", unet), ("text_encoder", text_encoder)) if endings}
    for part, endings in asked.items():
        for name, weight in _weights(getattr(pipeline, part), endings):
            down = torch.randn(rank, *weight.shape[1:], generator=generator)
            up = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator)
            size = (up.flatten(1) @ down.flatten(1)).norm() * alpha / rank
            found[part, name] = Matrices(down, up * strength * weight.norm() / size, alpha)
    return found


def _weights(module: nn.Module, endings: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear | nn.Conv2d) and any(f".{name}".endswith(f".{ending}") for ending in endings):
            yield name, child.weight.detach()


def kohya(layers: Layers) -> dict[str, Tensor]:
    tensors = {}
    for (part, module), matrices in layers.items():
        prefix = "lora_unet" if part == "unet" else "lora_te_text_model"
        name = f"{prefix}_{module.replace('.', '_')}"
        tensors |= {
            f"{name}.lora_down.weight": matrices.down,
            f"{name}.lora_up.weight": matrices.up,
            f"{name}.alpha": torch.tensor(matrices.alpha),
        }
    return tensors


def _dotted(unet: str, down: str, up: str, *, text_encoder: str) -> Callable[[Layers], dict[str, Tensor]]:
    """A layout without alphas: they go into the matrices."""

    def write(layers: Layers) -> dict[str, Tensor]:
        tensors = {}
        for (part, module), matrices in layers.items():
            owner, _, leaf = module.removesuffix(".0").rpartition(".")
            names = {"module": module, "owner": owner, "leaf": leaf}
            name = (
                f"unet.{unet.format(**names)}" if part == "unet" else f"text_encoder.text_model.{module}{text_encoder}"
            )
            tensors[f"{name}{down}.weight"] = matrices.down * matrices.alpha / len(matrices.down)
            tensors[f"{name}{up}.weight"] = matrices.up
        return tensors

    return write


LAYOUTS = {
    "kohya": kohya,
    "peft": _dotted("{module}", ".lora_A", ".lora_B", text_encoder=""),
    "diffusers": _dotted("{module}.lora", ".down", ".up", text_encoder=".lora_linear_layer"),
    "old diffusers": _dotted("{owner}.processor.{leaf}_lora", ".down", ".up", text_encoder=".lora_linear_layer"),
}


def write_lora(path: Path, layers: Layers, *, layout: str = "kohya", dtype: torch.dtype = torch.float32) -> Path:
    """Saves layers in a layout and a number format."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in LAYOUTS[layout](layers).items()}
    save_file(tensors, path)
    return path
