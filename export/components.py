"""The graphs of a bundle: which module each one is, what goes in and what comes out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from latentrt.export.checkpoint import Checkpoint
from latentrt.export.modules.step import Step
from latentrt.export.modules.text import TextEncoder
from latentrt.export.modules.unet import UNet
from latentrt.export.modules.vae import Decoder, Encoder
from latentrt.export.onnx_from_torch import Dims, GraphInput
from latentrt.family import Family


@dataclass(frozen=True, slots=True)
class ComponentSpec:
    """One graph to be.

    Args:
        name: of the component and its files.
        part: the checkpoint's folder that its weights come from.
        build: makes the module, loading that part.
        inputs: an example and the axes' names of each input. Sizes are unlike and odd, so that the trace
            binds no axis to another or to a number.
        outputs: the axes' names of each output.
        prefix: of the part's parameters within the module.
    """

    name: str
    part: str
    build: Callable[[], nn.Module]
    inputs: Mapping[str, GraphInput]
    outputs: Mapping[str, Dims]
    prefix: str


def component_specs(checkpoint: Checkpoint, family: Family) -> tuple[ComponentSpec, ...]:
    """Every graph of a U-Net checkpoint with CLIP towers."""
    tower = family.towers[0]
    ids = torch.full((3, tower.length), tower.eos_id)
    ids[0, 1] = tower.vocabulary  # the first id that reads `extra_embeddings`
    channels = family.latent_channels
    factor = family.vae_factor
    return (
        ComponentSpec(
            name=tower.component,
            part="text_encoder",
            build=lambda: TextEncoder(checkpoint.text_encoder(), eos_id=tower.eos_id),
            inputs={
                "ids": GraphInput(ids, ("N", tower.length)),
                "skip": GraphInput(torch.zeros(1, dtype=torch.int64), (1,)),
                "extra_embeddings": GraphInput(torch.zeros(2, tower.width), ("E", tower.width)),
            },
            outputs={"hidden": ("N", tower.length, tower.width), "pooled": ("N", tower.width)},
            prefix="model.",
        ),
        ComponentSpec(
            name="step",
            part="unet",
            build=lambda: Step(UNet(checkpoint.unet())),
            inputs=_step_inputs(channels, sum(tower.width for tower in family.towers)),
            outputs={"next_state": ("B", 4, channels, "h", "w"), "denoised": ("B", channels, "h", "w")},
            prefix="network.unet.",
        ),
        ComponentSpec(
            name="decoder",
            part="vae",
            build=lambda: Decoder(checkpoint.vae()),
            inputs={"latent": GraphInput(torch.zeros(2, channels, 9, 13), ("B", channels, "h", "w"))},
            outputs={"image": ("B", f"{factor}*h", f"{factor}*w", 3)},
            prefix="",
        ),
        ComponentSpec(
            name="encoder",
            part="vae",
            build=lambda: Encoder(checkpoint.vae()),
            inputs={
                "image": GraphInput(torch.zeros(2, 9 * factor, 13 * factor, 3, dtype=torch.uint8), ("B", "H", "W", 3)),
                "keep": GraphInput(torch.ones(2, 9 * factor, 13 * factor, 1), ("B", "H", "W", 1)),
                "noise": GraphInput(torch.zeros(2, channels, 9, 13), ("B", channels, "h", "w")),
            },
            outputs={"latent": ("B", channels, "h", "w")},
            prefix="",
        ),
    )


def _step_inputs(channels: int, width: int) -> dict[str, GraphInput]:
    k, b, h, w, length = 2, 3, 9, 13, 77
    return {
        "state": GraphInput(torch.ones(b, 4, channels, h, w), ("B", 4, channels, "h", "w")),
        "noise": GraphInput(torch.zeros(b, channels, h, w), ("B", channels, "h", "w")),
        "known": GraphInput(torch.zeros(b, channels, h, w), ("B", channels, "h", "w")),
        "mask": GraphInput(torch.ones(b, 1, h, w), ("B", 1, "h", "w")),
        "timestep": GraphInput(torch.ones(b), ("B",)),
        "scalings": GraphInput(torch.ones(b, 3), ("B", 3)),
        "transition": GraphInput(torch.ones(b, 4, 6), ("B", 4, 6)),
        "context": GraphInput(torch.ones(k, b, length, width), ("K", "B", "L", width)),
        "guidance": GraphInput(torch.ones(k, b), ("K", "B")),
        "rescale": GraphInput(torch.zeros(b), ("B",)),
    }
