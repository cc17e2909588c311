"""LoRAs into a bundle's weights: always from the pristine ones, in float32, rounded once to the bundle's precision."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from latentrt.arrays import Array, FloatArray
from latentrt.bundle import Bundle
from latentrt.graph import GraphFile, Override
from latentrt.lora.delta import add_difference
from latentrt.lora.file import Layer, Lora, LoraLike, as_loras, read_lora
from latentrt.lora.matching import match
from latentrt.lora.targets import Scaling, Site, Target, bundle_parts
from latentrt.weights.dtypes import FLOAT8, Weight

# The rule of calibration/quantize.py and formats.py: the largest magnitude of an output channel becomes that of the
# format, and no scale is below what float16 holds.
LARGEST = {"int8": 127.0, FLOAT8: 448.0}
SMALLEST_SCALE = 2.0**-24

Changes = Mapping[Target, Sequence[tuple[Layer, float]]]


@dataclass(frozen=True, slots=True)
class Merged:
    """LoRAs, and the graphs that they change by component: the bundle's own with overrides of weights."""

    loras: tuple[Lora, ...] = ()
    graphs: Mapping[str, GraphFile] = field(default_factory=dict)

    def over(self, bundle: Bundle) -> dict[str, GraphFile]:
        """The graph of every component, with the LoRAs where they change it."""
        return {name: part.graph for name, part in bundle.components.items()} | dict(self.graphs)


def merge(bundle: Bundle, given: Sequence[LoraLike]) -> Merged:
    """The bundle's graphs with LoRAs added to their weights. Files are read and checked now, weights when a
    graph loads.

    Args:
        bundle: whose weights they are added to. The files of the bundle stay as they are.

    Raises:
        RequestError: a file that cannot be read or is no LoRA, or layers that belong to no weight of the bundle.
        BundleError: an int8 or fp8 bundle that does not say how its weights were smoothed, or one without keys.
    """
    loras = as_loras(given)
    if not loras:
        return Merged()
    parts = bundle_parts(bundle)
    files = [read_lora(Path(lora.path), strict=lora.strict) for lora in loras]
    changes: dict[Target, list[tuple[Layer, float]]] = {}
    digests: dict[str, list[str]] = {}
    for lora, file in zip(loras, files, strict=True):
        for found in match(file, parts, model=bundle.name, family=bundle.family.name, strict=lora.strict):
            if lora.scale != 0:
                changes.setdefault(found.target, []).append((found.layer, lora.scale))
                line = f"{file.sha256} {float(lora.scale)!r} {found.layer.name}"
                for site in found.target.sites:
                    digests.setdefault(site.component, []).append(line)
    graphs = {name: _overridden(bundle, name, changes, lines) for name, lines in digests.items()}
    named = tuple(f"{lora.path}:{float(lora.scale)!r}" for lora in loras if lora.scale != 0)
    return Merged(loras, {name: replace(graph, loras=named) for name, graph in graphs.items()})


def _overridden(bundle: Bundle, component: str, changes: Changes, lines: Sequence[str]) -> GraphFile:
    graph = bundle.component(component).graph
    digest = hashlib.sha256("\n".join([str(graph.digest), *lines]).encode()).hexdigest()
    sites = [(site, target) for target in changes for site in target.sites if site.component == component]
    return replace(graph, digest=digest, overrides=tuple(_override(site, changes[target]) for site, target in sites))


def _override(site: Site, layers: Sequence[tuple[Layer, float]]) -> Override:
    initializers = {site.name: site.stored}
    if site.scaling is not None and site.scaling.scales is not None:
        name, scales = site.scaling.scales
        initializers[name] = scales
    return Override(initializers, partial(_fill, site, layers))


def _fill(site: Site, layers: Sequence[tuple[Layer, float]], into: Mapping[str, Array]) -> None:
    """Writes the site's merged weight, and its scales if it has any."""
    if site.scaling is None and site.stored.read_dtype == "float32":  # summed where it will lie
        into[site.name][...] = site.stored.read().float32()
        _add(layers, into[site.name].T if site.transposed else into[site.name])
        return
    merged = _pristine(site)
    _add(layers, merged)
    for name, weight in _stored(site, merged):
        into[name][...] = weight.values


def _add(layers: Sequence[tuple[Layer, float]], weight: FloatArray) -> None:
    pristine = weight if all(layer.magnitude is None for layer, _ in layers) else weight.copy("K")
    for layer, scale in layers:
        add_difference(layer, scale, to=weight, pristine=pristine)


def _pristine(site: Site) -> FloatArray:
    """The bundle's weight in float32 and in the checkpoint's orientation."""
    weight = site.stored.read().float32()
    if (scaling := site.scaling) is not None:
        if scaling.scales is not None:
            weight = weight * _along(scaling.scales[1].read().float32(), scaling.axis, weight.ndim)
        weight = weight / _factors(scaling, weight.ndim)
    return weight.T if site.transposed else weight


def _stored(site: Site, weight: FloatArray) -> Iterator[tuple[str, Weight]]:
    """The weight as the graph holds it, one in int8 or fp8 with its scales."""
    weight = np.ascontiguousarray(weight.T if site.transposed else weight)
    scaling = site.scaling
    if scaling is not None:
        weight = weight * _factors(scaling, weight.ndim)
    if scaling is None or scaling.scales is None:
        yield site.name, Weight.of(weight, site.stored.read_dtype)
        return
    name, old = scaling.scales
    form, others = site.stored.dtype, tuple(i for i in range(weight.ndim) if i != scaling.axis)
    largest = np.abs(weight).max(axis=others) / np.float32(LARGEST[form])
    scales = Weight.of(np.maximum(largest, np.float32(SMALLEST_SCALE)), old.dtype)
    bounded = np.clip(weight / _along(scales.float32(), scaling.axis, weight.ndim), -LARGEST[form], LARGEST[form])
    yield site.name, Weight.of(np.rint(bounded) if form == "int8" else bounded, form)
    yield name, scales


def _along(values: FloatArray, axis: int, rank: int) -> FloatArray:
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])


def _factors(scaling: Scaling, rank: int) -> FloatArray:
    if scaling.factors is None:
        return np.ones([1] * rank, np.float32)
    return _along(np.array(scaling.factors, np.float32), 1 - scaling.axis, rank)
