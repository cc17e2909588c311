"""The weights of a bundle by their names in the checkpoint, and which of them a LoRA layer means.

Names are compared with every `.` written as `_`, so that what kohya flattened needs no table to be split again: the
names that are there are known (`*.keys.json` in the bundle), and those of the original networks follow from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentrt.bundle import Bundle
from latentrt.errors import BundleError
from latentrt.lora.original_names import WHOLE, Rows, original_names
from latentrt.weights.onnx_initializers import Initializer, read_initializers

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


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a layer goes: a weight, which of the layer's rows it takes, and whether the name is the original's."""

    target: Target
    rows: Rows = WHOLE
    original: bool = False


@dataclass(frozen=True, slots=True)
class AdaptedNetwork:
    """A part of the checkpoint that a LoRA can change.

    Args:
        prefixes: with which layers of it begin, flattened.
        targets: its weights by flattened name.
        originals: the same by what the original network calls them, which may have several weights in one.
    """

    name: str
    prefixes: tuple[str, ...]
    targets: Mapping[str, Target]
    originals: Mapping[str, tuple[Place, ...]]

    @classmethod
    def of(cls, name: str, prefixes: tuple[str, ...], weights: Iterable[Target]) -> AdaptedNetwork:
        """The part with these weights."""
        targets, by_module = {}, {}
        for target in weights:
            module = target.key.removesuffix(".weight")
            by_module[module] = targets[flatten(module).removeprefix("text_model_")] = target
        originals: dict[str, tuple[Place, ...]] = {}
        for module, original, rows in original_names(by_module):
            place = Place(by_module[module], rows, original=True)
            originals[flatten(original)] = (*originals.get(flatten(original), ()), place)
        return cls(name, prefixes, targets, originals)

    def find(self, layer: str) -> tuple[Place, ...]:
        """Where a layer goes by its name in the file: one weight, several, or none of this part."""
        flat = flatten(layer)
        for prefix in self.prefixes:
            if flat.startswith(prefix):
                bare = flat.removeprefix(prefix)
                for name in _spellings(bare):
                    if name in self.targets:
                        return (Place(self.targets[name]),)
                if bare in self.originals:
                    return self.originals[bare]
        return ()


def bundle_parts(bundle: Bundle) -> tuple[AdaptedNetwork, ...]:
    """The denoiser's part of the checkpoint and each text encoder's, with their weights."""
    rows: Mapping[str, Mapping[str, Any]] = bundle.manifest["components"]
    denoiser = checkpoint_part(bundle, STEP)
    text_encoders = [checkpoint_part(bundle, name) for name in bundle.text_encoders]
    prefixes = {denoiser: denoiser_prefixes(denoiser)} | {
        part: text_encoder_prefixes(part, among=text_encoders) for part in text_encoders
    }
    return tuple(AdaptedNetwork.of(part, starts, _targets(bundle, rows, part)) for part, starts in prefixes.items())


def checkpoint_part(bundle: Bundle, component: str) -> str:
    """The folder of the checkpoint that a component's weights come from, such as `unet`."""
    part = bundle.manifest["components"].get(component, {}).get("checkpoint_part")
    if part is None:
        raise BundleError(
            f"the manifest of {bundle.root} does not say which part of the checkpoint {component} comes from",
            expected="its checkpoint_part, as every export writes it",
            hint="export the bundle again",
        )
    return str(part)


def denoiser_prefixes(part: str) -> tuple[str, ...]:
    """With what layers of the denoiser begin; in PEFT's and in some other files, with nothing."""
    return (f"{part}_", "lora_unet_", "lora_transformer_", "lycoris_", "unet_", "transformer_", "")


def text_encoder_prefixes(part: str, *, among: Sequence[str]) -> tuple[str, ...]:
    """With what layers begin of a text encoder, `text_encoder` or `text_encoder_2`, which trainers number; without a
    number it is the first, or the only one."""
    number = int(part.rpartition("_")[2]) if part[-1:].isdigit() else 1
    numbers = {number, 1} if len(among) == 1 else {number}
    original = {1: "clip_l", 2: "clip_g", 3: "t5xxl"}.get(number, part)
    numbered = [f"lora_te{n}_" for n in sorted(numbers)] + ["lora_te_"] * (1 in numbers)
    return (f"{part}_", *numbered, f"text_encoders_{original}_transformer_", f"{original}_transformer_", "")


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


def _targets(bundle: Bundle, rows: Mapping[str, Mapping[str, Any]], part: str) -> list[Target]:
    sites: dict[str, list[Site]] = {}
    for component, row in rows.items():
        if row.get("checkpoint_part") == part:
            for key, site in _sites(bundle, component, row):
                sites.setdefault(key, []).append(site)
    found = []
    for key, places in sites.items():
        shape = places[0].stored.shape
        shape = shape[::-1] if places[0].transposed else shape
        if key.endswith(".weight") and len(shape) in (2, 4):
            found.append(Target(key, shape, tuple(places)))
    return found


def _sites(bundle: Bundle, component: str, row: Mapping[str, Any]) -> Iterable[tuple[str, Site]]:
    keys = bundle.keys(component)
    if keys is None:
        raise BundleError(
            f"{component} of {bundle.root} has no map from its weights to the checkpoint's",
            expected="a file of keys, as every export writes it",
            hint="export the bundle again",
        )
    if row["precision"] in _QUANTISED and not any(entry.get("scale") for entry in keys.values()):
        raise BundleError(
            f"{component} of {bundle.root} is {row['precision']} and does not say how its weights were rounded",
            expected="a bundle with the scales and factors in its file of keys",
            hint="calibrate it again with this version, or use a float bundle",
        )
    stored = read_initializers(bundle.root / row["graph"])
    for name, entry in keys.items():
        if name in stored:
            scale = entry.get("scale")
            if scale is not None and scale not in stored:
                raise BundleError(
                    f"{bundle.root / row['keys']} names a scale that the graph lacks: {scale[:80]!r}",
                    expected="an initializer of the graph",
                    hint="copy or export the bundle again",
                )
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
