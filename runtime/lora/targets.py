"""The weights of a bundle by their names in the checkpoint, and which of them a LoRA layer means.

Names are compared with every `.` written as `_`, so that what kohya flattened needs no table to be split again: the
names that are there are known (`*.keys.json` in the bundle).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from latentrt.bundle import Bundle
from latentrt.errors import BundleError
from latentrt.initializers import Initializer, read_initializers

STEP = "step"
_QUANTISED = ("int8", "fp8")
_WRAPPERS = ("base_model_model_", "model_diffusion_model_", "diffusion_model_")  # PEFT's own and the original's


@dataclass(frozen=True, slots=True)
class Scaling:
    """How calibration made a stored weight from the checkpoint's: it multiplied the input channels, then rounded.

    Args:
        axis: of the stored weight, along its output channels.
        factors: what the input channels were multiplied by (SmoothQuant); None without.
        scales: the initializer with the scale of each output channel, and its name; None: it was not rounded.
    """

    axis: int
    factors: tuple[float, ...] | None
    scales: tuple[str, Initializer] | None


@dataclass(frozen=True, slots=True)
class Site:
    """One initializer that holds a checkpoint's weight.

    Args:
        component: whose graph it is in.
        name: of the initializer.
        stored: its format and place.
        transposed: it holds the weight's transpose.
        scaling: what else was done to it; None: nothing.
    """

    component: str
    name: str
    stored: Initializer
    transposed: bool
    scaling: Scaling | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A weight of the checkpoint: its key within the part, its shape, and every initializer that holds it."""

    key: str
    shape: tuple[int, ...]
    sites: tuple[Site, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the checkpoint that a LoRA can change.

    Args:
        name: its folder, such as `unet`.
        prefixes: with which layers of it begin, flattened.
        targets: its weights by flattened name.
    """

    name: str
    prefixes: tuple[str, ...]
    targets: Mapping[str, Target]

    def find(self, layer: str) -> Target | None:
        """The weight that a layer means by its name in the file, if it is one of this part."""
        flat = flatten(layer)
        for prefix in self.prefixes:
            if flat.startswith(prefix):
                names = (name for name in _spellings(flat.removeprefix(prefix)) if name in self.targets)
                if (name := next(names, None)) is not None:
                    return self.targets[name]
        return None


def bundle_parts(bundle: Bundle) -> tuple[Part, ...]:
    """The denoiser's part of the checkpoint and each text tower's, with their weights.

    Raises:
        BundleError: the bundle has no map from its weights to the checkpoint's.
    """
    rows: Mapping[str, Mapping[str, Any]] = bundle.manifest["components"]
    denoiser = rows[STEP]["checkpoint_part"]
    prefixes = {denoiser: (f"{denoiser}_", "lora_unet_", "lora_transformer_", "unet_", "")}
    for number, tower in enumerate(bundle.family.towers, start=1):
        part = rows[tower.component]["checkpoint_part"]
        prefixes[part] = (f"{part}_", f"lora_te{number}_", *(("lora_te_",) if number == 1 else ()))
    return tuple(Part(part, starts, _targets(bundle, rows, part)) for part, starts in prefixes.items())


def flatten(name: str) -> str:
    """A layer's name as names are compared: without wrappers, `.` as `_`."""
    flat = name.replace(".", "_").replace("_processor_", "_")
    for wrapper in _WRAPPERS:
        flat = flat.removeprefix(wrapper)
    return flat


def _spellings(name: str) -> Iterator[str]:
    """The name, and what older versions of diffusers call the same layer."""
    name = name.removeprefix("text_model_")
    yield name
    yield f"{name}_0"  # to_out, the first of a sequence
    if (projection := re.fullmatch(r"(.*_self_attn)_to_(q|k|v|out)", name)) is not None:
        yield f"{projection[1]}_{projection[2]}_proj"


def _targets(bundle: Bundle, rows: Mapping[str, Mapping[str, Any]], part: str) -> dict[str, Target]:
    sites: dict[str, list[Site]] = {}
    for component, row in rows.items():
        if row.get("checkpoint_part") == part:
            for key, site in _sites(bundle, component, row):
                sites.setdefault(key, []).append(site)
    found = {}
    for key, places in sites.items():
        shape = places[0].stored.shape
        shape = shape[::-1] if places[0].transposed else shape
        if key.endswith(".weight") and len(shape) in (2, 4):
            name = flatten(key.removesuffix(".weight")).removeprefix("text_model_")
            found[name] = Target(key, shape, tuple(places))
    return found


def _sites(bundle: Bundle, component: str, row: Mapping[str, Any]) -> Iterable[tuple[str, Site]]:
    if "keys" not in row:
        raise BundleError(
            f"{component} of {bundle.root} has no map from its weights to the checkpoint's",
            expected="a file of keys, as every export writes it",
            hint="export the bundle again",
        )
    keys = json.loads((bundle.root / row["keys"]).read_text(encoding="utf-8"))
    if row["precision"] in _QUANTISED and not any(entry.get("scale") for entry in keys.values()):
        raise BundleError(
            f"{component} of {bundle.root} is {row['precision']} and does not say how its weights were rounded",
            expected="a bundle with the scales and factors in its file of keys",
            hint="calibrate it again with this version, or use a float bundle",
        )
    stored = read_initializers(bundle.root / row["graph"])
    for name, entry in keys.items():
        if name in stored:
            yield entry["key"], Site(component, name, stored[name], entry["transposed"], _scaling(entry, stored))


def _scaling(entry: Mapping[str, Any], stored: Mapping[str, Initializer]) -> Scaling | None:
    if "axis" not in entry:
        return None
    scale, factors = entry["scale"], entry["factors"]
    return Scaling(
        entry["axis"],
        factors=None if factors is None else tuple(factors),
        scales=None if scale is None else (scale, stored[scale]),
    )
