"""What each graph of a bundle takes and gives (docs/bundle.md); what the manifest says is held against the family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from latentrt.family import Family, TextEncoderSpec
from latentrt.graph import GraphFile, TensorSpec
from latentrt.manifest.json_rules import below, broken

STEP, STEP_CONTROL, CONTROLNET = "step", "step-control", "controlnet-"
SHALLOW = {STEP: "step-shallow", STEP_CONTROL: "step-control-shallow"}
"""The graph of shallow calls, by that of deep ones (docs/step-caching.md)."""
FEATURES = "features"
"""Output of a step and input of its shallow graph: what deep calls compute for shallow ones."""
IMAGE_LATENT = "image_latent"
"""Input of a ControlNet that reads the picture as the VAE encodes it, not its pixels (`image`)."""

Axes: TypeAlias = tuple[int | None, ...]
"""A length that the family fixes, or None where it does not; a graph may fix it all the same."""
Tensors: TypeAlias = Mapping[str, tuple[str, Axes]]

# [K, B, C, h, w] of a U-Net, [K, B, rows, columns, width] of a transformer
_FEATURES: Tensors = {FEATURES: ("float32", (None,) * 5)}
_RESIDUAL = re.compile(r"(next_)?residual_\d+")


@dataclass(frozen=True, slots=True)
class _Contract:
    needs: Tensors
    gives: Tensors
    may_take: Tensors = field(default_factory=dict)
    may_give: Tensors = field(default_factory=dict)
    residuals: bool = False


def check_io(graph: GraphFile, family: Family, path: Path) -> None:
    """Checks names, types, ranks and fixed lengths of a graph's inputs and outputs; of a graph that no family's table
    names, nothing.

    Raises:
        BundleError: the manifest at `path` says otherwise, or names an input that this runtime cannot feed.
    """
    contract = _contract(graph.component, family)
    if contract is None:
        return
    where = below("components", graph.component)
    sides = (
        ("inputs", graph.inputs, contract.needs, contract.may_take),
        ("outputs", graph.outputs, contract.gives, contract.may_give),
    )
    for side, found, needed, allowed in sides:
        known = {**needed, **allowed}
        for name in needed:
            if name not in found:
                raise broken(path, below(f"{where}.{side}", name), "is missing", _said(*needed[name]))
        for name, spec in found.items():
            place = below(f"{where}.{side}", name)
            if name in known:
                if not _agrees(spec, *known[name]):
                    raise broken(path, place, f"is {spec}", _said(*known[name]))
            elif side == "inputs" and not (contract.residuals and _RESIDUAL.fullmatch(name)):
                raise broken(path, place, "is no input that this version knows", f"some of {', '.join(known)}")


def _agrees(spec: TensorSpec, dtype: str, axes: Axes) -> bool:
    if spec.dtype != dtype or len(spec.dims) != len(axes):
        return False
    return all(None in pair or pair[0] == pair[1] for pair in zip(spec.dims, axes, strict=True))


def _said(dtype: str, axes: Axes) -> str:
    return str(TensorSpec(dtype, axes))


def _contract(component: str, family: Family) -> _Contract | None:
    text_encoder = next(
        (text_encoder for text_encoder in family.text_encoders if text_encoder.component == component), None
    )
    if text_encoder is not None:
        return _text(text_encoder)
    latent: tuple[str, Axes] = ("float32", (None, family.latent_channels, None, None))
    picture: tuple[str, Axes] = ("uint8", (None, None, None, 3))
    if component == "decoder":
        return _Contract({"latent": latent}, {"image": picture})
    if component == "encoder":
        needs: Tensors = {"image": picture, "keep": ("float32", (None, None, None, 1))}
        return _Contract(needs, {"latent": latent}, may_take={"noise": latent})
    if component in (STEP, STEP_CONTROL):
        taken, given = _step(family)
        return _Contract(taken, given, may_give=_FEATURES, residuals=component == STEP_CONTROL)
    if component in SHALLOW.values():
        return _shallow(family, residuals=component == SHALLOW[STEP_CONTROL])
    if component.startswith(CONTROLNET):
        return _controlnet(family)
    return None


def _text(text_encoder: TextEncoderSpec) -> _Contract:
    pooled: Tensors = {"pooled": ("float32", (None, text_encoder.pooled_width if text_encoder.pooled_width else None))}
    hidden: Tensors = {"hidden": ("float32", (None, text_encoder.length, text_encoder.width))}
    return _Contract(
        {"ids": ("int64", (None, text_encoder.length))},
        {**hidden, **pooled} if text_encoder.pooled_width else hidden,
        may_take={"skip": ("int64", (1,)), "extra_embeddings": ("float32", (None, text_encoder.width))},
        may_give=pooled,
    )


def _step(family: Family) -> tuple[Tensors, Tensors]:
    channels = family.latent_channels
    latent = ("float32", (None, channels, None, None))
    state = ("float32", (None, 4, channels, None, None))
    needs: dict[str, tuple[str, Axes]] = {
        "state": state,
        "noise": latent,
        "known": latent,
        "mask": ("float32", (None, 1, None, None)),
        "timestep": ("float32", (None,)),
        "scalings": ("float32", (None, 3)),
        "transition": ("float32", (None, 4, 6)),
        "context": ("float32", (None, None, None, family.width)),
        "guidance": ("float32", (None, None)),
        "rescale": ("float32", (None,)),
    }
    if family.pooled_width:
        needs["pooled"] = ("float32", (None, None, family.pooled_width))
    if family.time_ids:
        needs["time_ids"] = ("float32", (None, None, len(family.time_ids)))
    if family.guidance_embedding:
        needs["guidance_embed"] = ("float32", (None,))
    if family.extra_channels:
        needs["extra"] = ("float32", (None, family.extra_channels, None, None))
    if family.blocks:
        needs["block_gate"] = ("float32", (None, family.blocks))
    return needs, {"next_state": state, "denoised": latent}


def _shallow(family: Family, *, residuals: bool) -> _Contract:
    """A step that takes features in the place of most of its network, and leaves out the inputs of that."""
    taken, given = _step(family)
    network = ("context", "pooled", "time_ids", "guidance_embed", "extra", "block_gate")
    needs = {name: value for name, value in taken.items() if name not in network}
    may_take = {name: value for name, value in taken.items() if name in network}
    return _Contract({**needs, **_FEATURES}, given, may_take=may_take, residuals=residuals)


def _controlnet(family: Family) -> _Contract:
    step, _ = _step(family)
    needs = {name: step[name] for name in ("state", "timestep", "scalings")} | {
        "scale": ("float32", (None, None, None))
    }
    may = {name: step[name] for name in ("context", "pooled", "time_ids") if name in step}
    pictures: Tensors = {
        "image": ("uint8", (None, None, None, 3)),
        "image_latent": ("float32", (None, family.latent_channels, None, None)),
    }
    return _Contract(needs, {}, may_take={**may, **pictures}, residuals=True)
