"""The layers of a file and the weights that they mean, or why there are none."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from latentrt.errors import RequestError
from latentrt.lora.delta import fits
from latentrt.lora.file import Layer, LoraFile, shorten
from latentrt.lora.targets import AdaptedNetwork, Place, Target

log = logging.getLogger(__name__)

# What the features of the prompt that a cross-attention reads say about where a LoRA comes from; for messages only.
_ORIGINS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL", 1280: "the SDXL refiner"}


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A weight, the layer that changes it, and the part of the checkpoint that it is in."""

    target: Target
    layer: Layer
    part: str


def match(
    file: LoraFile, parts: Sequence[AdaptedNetwork], *, model: str, family: str, strict: bool = True
) -> list[Match]:
    """Each layer with its weights; what has none is refused, or left out with a warning.

    Args:
        parts: of the bundle, the denoiser first.
        strict: refuse the file for a single layer without a weight.

    Raises:
        RequestError: layers that belong to no weight, or two that belong to the same.
    """
    found: dict[Target, tuple[Match, bool]] = {}  # and whether the file has the original network's name for it
    problems: list[str] = []
    twice: list[str] = []
    for layer in file.layers.values():
        candidates = [(part, places) for part in parts if (places := part.find(layer.name))]
        fitting = [(part, places) for part, places in candidates if all(_fits(layer, place) for place in places)]
        if len(fitting) != 1:
            problems.append(_problem(layer, [places for _, places in candidates], [part.name for part, _ in fitting]))
            continue
        part, places = fitting[0]
        for place in places:
            known = found.get(place.target)
            if known is not None and known[1] == place.original:
                raise RequestError(
                    f"layers {known[0].layer.name} and {layer.name} of {file.path} are for one weight, "
                    f"{place.target.key}",
                    expected="one layer for each weight",
                    hint="the file is damaged",
                )
            if known is not None:
                twice.append(layer.name if place.original else known[0].layer.name)
            if known is None or known[1]:
                taken = Match(place.target, layer.taking(place.rows), part.name)
                found[place.target] = (taken, place.original)
    matches = [taken for taken, _ in found.values()]
    if problems and (strict or not found):
        drawn = any(taken.part == parts[0].name for taken in matches)
        raise RequestError(
            f"{file.path} does not belong to {model}: {len(problems)} of {len(file.layers)} layers have no weight of "
            f"their name and shape: {shorten(problems)}",
            expected=f"a LoRA for {family}{_origin(file)}",
            hint="latentrt.Lora(path, scale, strict=False) applies the other layers" if drawn else None,
        )
    for left_out, why in ((problems, "without a weight"), (twice, "that it has under another name as well")):
        if left_out:
            log.warning("%s: left out %d layers %s: %s", file.path, len(left_out), why, ", ".join(left_out))
    log.info("%s: %d layers", file.path, len(matches))
    return matches


def _fits(layer: Layer, place: Place) -> bool:
    whole = layer.up.shape[0] % place.rows.count == 0
    return whole and fits(layer.taking(place.rows), place.target.shape)


def _problem(layer: Layer, candidates: Sequence[Sequence[Place]], fitting: Sequence[str]) -> str:
    """What to call a layer that has no weight, or weights in several parts."""
    if fitting:
        return f"{layer.name} (of {' or '.join(fitting)}?)"
    if not candidates:
        return layer.name
    place = candidates[0][0]
    shape = f"[{layer.up.shape[0]}, {layer.down.shape[1]}{''.join(f', {n}' for n in layer.down.shape[2:])}]"
    return f"{layer.name} ({shape}, and {place.target.key} is {list(place.target.shape)})"


def _origin(file: LoraFile) -> str:
    known = [_ORIGINS[width] for width in sorted(set(_context_widths(file))) if width in _ORIGINS]
    return f"; this one looks like one for {' or '.join(known)}" if known else ""


def _context_widths(file: LoraFile) -> Iterator[int]:
    for name, layer in file.layers.items():
        if name.endswith(("attn2_to_k", "attn2.to_k")):
            yield layer.down.shape[1]
