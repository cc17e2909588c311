"""The graphs of a bundle: which module each one is, what goes in and what comes out."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from latentrt.errors import CheckpointError
from latentrt.export.checkpoint.family import normed, projects
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.graphs.modules.mmdit import MMDiT
from latentrt.export.graphs.modules.step import Step
from latentrt.export.graphs.modules.t5 import T5Encoder
from latentrt.export.graphs.modules.text import TextEncoder
from latentrt.export.graphs.modules.tiny_vae import TinyDecoder, TinyEncoder
from latentrt.export.graphs.modules.unet import UNet
from latentrt.export.graphs.modules.vae import Decoder, Encoder
from latentrt.export.graphs.onnx_from_torch import Dims, GraphInput
from latentrt.export.references.modules import DecoderReference, EncoderReference, StepReference, TextReference
from latentrt.family import Family, TextEncoderSpec

_AUTOENCODERS: Mapping[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "AutoencoderKL": (Decoder, Encoder),
    "AutoencoderTiny": (TinyDecoder, TinyEncoder),
}
_NETWORKS: Mapping[str, Callable[[nn.Module], nn.Module]] = {"unet": UNet, "transformer": MMDiT}


@dataclass(frozen=True, slots=True)
class ComponentSpec:
    """One graph to be.

    Args:
        load: gives that part as diffusers or transformers has it.
        wrap: makes the module that is traced of it.
        refer: makes what the module must equal of it, by diffusers alone.
        inputs: an example and the axes' names of each input. Sizes are unlike and odd, so that the trace
            binds no axis to another or to a number.
        outputs: the axes' names of each output.
        prefix: of the part's parameters within the module.
    """

    name: str
    part: str
    load: Callable[[], nn.Module]
    wrap: Callable[[nn.Module], nn.Module]
    refer: Callable[[nn.Module], nn.Module]
    inputs: Mapping[str, GraphInput]
    outputs: Mapping[str, Dims]
    prefix: str

    def build(self) -> nn.Module:
        """The module that is traced, with its weights."""
        return self.wrap(self.load())

    def reference(self) -> nn.Module:
        """What it must equal, with its weights."""
        return self.refer(self.load())


def component_specs(checkpoint: Checkpoint, family: Family) -> tuple[ComponentSpec, ...]:
    """Every graph of a checkpoint."""
    channels = family.latent_channels
    return (
        *(_text_spec(checkpoint, each) for each in family.text_encoders if each.component in checkpoint.parts),
        ComponentSpec(
            name="step",
            part=checkpoint.network,
            load=lambda: checkpoint.load(checkpoint.network),
            wrap=lambda network: Step(_NETWORKS[checkpoint.network](network)),
            refer=StepReference,
            inputs=_step_inputs(family),
            outputs={"next_state": ("B", 4, channels, "h", "w"), "denoised": ("B", channels, "h", "w")},
            prefix=f"network.{checkpoint.network}.",
        ),
        *_vae_specs(checkpoint, channels, family.vae_factor),
    )


def _vae_specs(checkpoint: Checkpoint, channels: int, factor: int) -> tuple[ComponentSpec, ComponentSpec]:
    kind = str(checkpoint.index["vae"][1])
    if kind not in _AUTOENCODERS:
        raise CheckpointError(f"{checkpoint.root / 'vae'} is a {kind}", expected=" or ".join(_AUTOENCODERS))
    decoder, encoder = _AUTOENCODERS[kind]
    pipeline = str(checkpoint.index["_class_name"])
    inputs = {
        "image": GraphInput(torch.zeros(2, 9 * factor, 13 * factor, 3, dtype=torch.uint8), ("B", "H", "W", 3)),
        "keep": GraphInput(torch.ones(2, 9 * factor, 13 * factor, 1), ("B", "H", "W", 1)),
        "noise": GraphInput(torch.zeros(2, channels, 9, 13), ("B", channels, "h", "w")),
    }
    taken = inspect.signature(encoder.forward).parameters
    return (
        ComponentSpec(
            name="decoder",
            part="vae",
            load=checkpoint.vae,
            wrap=decoder,
            refer=partial(DecoderReference, pipeline=pipeline),
            inputs={"latent": GraphInput(torch.zeros(2, channels, 9, 13), ("B", channels, "h", "w"))},
            outputs={"image": ("B", f"{factor}*h", f"{factor}*w", 3)},
            prefix="",
        ),
        ComponentSpec(
            name="encoder",
            part="vae",
            load=checkpoint.vae,
            wrap=encoder,
            refer=partial(EncoderReference, pipeline=pipeline),
            inputs={name: value for name, value in inputs.items() if name in taken},
            outputs={"latent": ("B", channels, "h", "w")},
            prefix="",
        ),
    )


def _text_spec(checkpoint: Checkpoint, text_encoder: TextEncoderSpec) -> ComponentSpec:
    config = checkpoint.config(text_encoder.component)
    ids = torch.full((3, text_encoder.length), text_encoder.eos_id)
    pipeline = str(checkpoint.index["_class_name"])
    refer = partial(TextReference, pipeline=pipeline, part=text_encoder.component, eos_id=text_encoder.eos_id)
    if str(checkpoint.index[text_encoder.component][1]) == "T5EncoderModel":
        ids[0, 1] = text_encoder.vocabulary - 1
        return ComponentSpec(
            name=text_encoder.component,
            part=text_encoder.component,
            load=lambda: checkpoint.load(text_encoder.component),
            wrap=partial(T5Encoder, length=text_encoder.length),
            refer=refer,
            inputs={"ids": GraphInput(ids, ("N", text_encoder.length))},
            outputs={"hidden": ("N", text_encoder.length, text_encoder.width)},
            prefix="",
        )
    ids[0, 1] = text_encoder.vocabulary  # the first id that reads `extra_embeddings`
    pooled = config["projection_dim"] if projects(checkpoint, text_encoder.component) else text_encoder.width
    return ComponentSpec(
        name=text_encoder.component,
        part=text_encoder.component,
        load=lambda: checkpoint.text_encoder(text_encoder.component),
        wrap=partial(TextEncoder, eos_id=text_encoder.eos_id, normed=normed(checkpoint)),
        refer=refer,
        inputs={
            "ids": GraphInput(ids, ("N", text_encoder.length)),
            "skip": GraphInput(torch.zeros(1, dtype=torch.int64), (1,)),
            "extra_embeddings": GraphInput(torch.zeros(2, text_encoder.width), ("E", text_encoder.width)),
        },
        outputs={"hidden": ("N", text_encoder.length, text_encoder.width), "pooled": ("N", pooled)},
        prefix="model.",
    )


def _step_inputs(family: Family) -> dict[str, GraphInput]:
    """What the step of a family takes; an input that others have and this one does not is left out."""
    channels = family.latent_channels
    patch = family.multiple_px // family.vae_factor
    h, w = (9, 13) if patch == 1 else (5 * patch, 7 * patch)
    lengths = {"K": 2, "B": 3, "h": h, "w": w, "L": 77}
    dims: dict[str, Dims] = {
        "state": ("B", 4, channels, "h", "w"),
        "noise": ("B", channels, "h", "w"),
        "known": ("B", channels, "h", "w"),
        "mask": ("B", 1, "h", "w"),
        "timestep": ("B",),
        "scalings": ("B", 3),
        "transition": ("B", 4, 6),
        "context": ("K", "B", "L", family.width),
        "guidance": ("K", "B"),
        "rescale": ("B",),
    }
    if family.pooled_width:
        dims["pooled"] = ("K", "B", family.pooled_width)
    if family.time_ids:
        dims["time_ids"] = ("K", "B", len(family.time_ids))
    if family.guidance_embedding:
        dims["guidance_embed"] = ("B",)
    if family.extra_channels:
        dims["extra"] = ("B", family.extra_channels, "h", "w")
    if family.blocks:
        dims["block_gate"] = ("K", family.blocks)

    def example(axes: Dims) -> Tensor:
        return torch.ones([axis if isinstance(axis, int) else lengths[axis] for axis in axes])

    return {name: GraphInput(example(axes), axes) for name, axes in dims.items()}
