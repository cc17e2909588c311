"""Each graph against the torch module that it came from, in float32. Torch is imported where it runs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from latentrt.arrays import to_host
from latentrt.backends import open_engine
from latentrt.export.parity.measurement import Measurement
from latentrt.graph import GraphFile
from latentrt.manifest.axes import tensor_shape

if TYPE_CHECKING:
    from torch import nn

RELATIVE_LIMIT = 1e-4  # of max(1, max|reference|)
OFF_BY_ONE_LIMIT = 1e-3  # share of uint8 values that may differ, by 1 and no more

# (width, height, batch): the trained scale, and one that no power of two divides.
SIZES = ((64, 64, 1), (104, 72, 3), (128, 128, 1), (128, 128, 3))

Array = npt.NDArray[np.generic]


class Input(Protocol):
    """An example of an input, a torch tensor or an array, with each axis' name or length: sizes and special ids are
    read off them."""

    @property
    def example(self) -> Any: ...

    @property
    def dims(self) -> tuple[str | int, ...]: ...


@dataclass(frozen=True, slots=True)
class ComponentRun:
    """Inputs and what torch makes of them."""

    case: str
    feed: Mapping[str, Array]
    outputs: Mapping[str, Array]


def reference_runs(
    module: "nn.Module",
    inputs: Mapping[str, Input],
    *,
    device: str = "cpu",
    cases: Sequence[tuple[str, Mapping[str, Array]]] | None = None,
) -> list[ComponentRun]:
    """Runs torch on `device` on seeded inputs of every case; the results are small, so that the module can be freed.

    `cases`, (name, inputs) each, replaces those of `SIZES`.
    """
    import torch

    runs = []
    module = module.to(device)
    for case, feed in component_feeds(inputs) if cases is None else cases:
        with torch.no_grad():
            outputs = module(**{name: torch.from_numpy(value).to(device) for name, value in feed.items()})
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        names = _output_names(inputs)
        runs.append(
            ComponentRun(case, feed, {n: t.cpu().numpy() for n, t in zip(names[: len(tensors)], tensors, strict=True)})
        )
    return runs


def compare(
    component: str,
    graph: GraphFile,
    runs: Sequence[ComponentRun],
    *,
    backend: str = "onnxruntime",
    device: str | None = None,
    cache_dir: Path | None = None,
) -> list[Measurement]:
    """Runs a graph on the same inputs."""
    results = []
    with closing(open_engine(graph, backend=backend, device=device, cache_dir=cache_dir)) as engine:
        for run in runs:
            found = engine.run(run.feed)
            differences = [difference(to_host(found[name]), value) for name, value in run.outputs.items()]
            worst, limit = max(differences, key=lambda pair: pair[0] / pair[1])
            unit = "share of values off by 1" if component == "decoder" else "relative"
            row = partial(Measurement, subject=f"component {component}", case=run.case, backend=backend, unit=unit)
            results.append(row(value=worst, limit=limit))
    return results


def difference(found: Array, reference: Array) -> tuple[float, float]:
    """(worst, limit): relative to max(1, max|reference|) for floats, share of values off by 1 for uint8."""
    if found.shape != reference.shape or found.dtype != reference.dtype:
        return float("inf"), RELATIVE_LIMIT
    if reference.dtype == np.uint8:
        off = np.abs(found.astype(np.int16) - reference.astype(np.int16))
        return (float("inf") if off.max() > 1 else float((off > 0).mean())), OFF_BY_ONE_LIMIT
    worst = np.abs(np.subtract(found, reference)).max() / max(1.0, float(np.abs(reference).max()))
    return (float(worst) if np.isfinite(worst) else float("inf")), RELATIVE_LIMIT


# The outputs of a graph, by an input that only its kind has.
_OUTPUTS = {
    "ids": ("hidden", "pooled"),
    "state": ("next_state", "denoised"),
    "latent": ("image",),
    "image": ("latent",),
}


def _output_names(inputs: Mapping[str, Input]) -> tuple[str, ...]:
    if "scale" in inputs:
        return tuple(f"next_residual_{number}" for number in range(sum(map(_is_residual, inputs))))
    return next(names for tensor, names in _OUTPUTS.items() if tensor in inputs)


def component_feeds(inputs: Mapping[str, Input]) -> list[tuple[str, dict[str, Array]]]:
    """(case, seeded inputs) of every case of `SIZES`; a text encoder has its own."""
    if "ids" in inputs:
        return [(f"batch {n}, skip {skip}", text_feed(inputs, n, skip)) for n, skip in ((1, 0), (3, 1))]
    if "state" in inputs:
        patch = gcd(*inputs["state"].example.shape[3:])  # 1 unless sizes are bound to multiples
        if "scale" in inputs:
            sizes = [(w - w % (8 * patch), h - h % (8 * patch), batch) for w, h, batch in SIZES[:2]]
            return [
                (f"{name} {w}x{h}, batch {batch}", control_feed(inputs, (h, w), batch, branches=branches))
                for (name, branches), (w, h, batch) in zip((("one branch", 1), ("two branches", 2)), sizes, strict=True)
            ]
        return [
            (f"{name} {w}x{h}, batch {batch}", step_feed(inputs, (h, w), batch, guided=guided))
            for w, h, batch in ((w - w % (8 * patch), h - h % (8 * patch), batch) for w, h, batch in SIZES)
            for name, guided in (("bare network", False), ("guided step", True))
        ]
    return [(f"{w}x{h}, batch {batch}", vae_feed(inputs, (h, w), batch)) for w, h, batch in SIZES]


def text_feed(inputs: Mapping[str, Input], batch: int, skip: int) -> dict[str, Array]:
    """Random ids; where there are `extra_embeddings`, closed and padded, and one of them reads a row of it."""
    rng = np.random.default_rng(0)
    example = inputs["ids"].example
    if "extra_embeddings" not in inputs:
        return {"ids": rng.integers(0, int(example.max()) + 1, (batch, example.shape[1]))}
    vocabulary, eos, length = int(example.max()), int(example[0, -1]), example.shape[1]
    ids = rng.integers(0, eos, (batch, length))
    ids[:, length // 2 :] = eos
    ids[0, 3] = vocabulary
    extra = rng.standard_normal((1, inputs["extra_embeddings"].example.shape[1]), np.float32)
    return {"ids": ids, "skip": np.array([skip]), "extra_embeddings": 0.02 * extra}


def step_feed(inputs: Mapping[str, Input], size: tuple[int, int], batch: int, *, guided: bool) -> dict[str, Array]:
    """The bare network (one branch, c_in = c_out = 1, c_skip = 0), or a step that uses every input."""
    rng = np.random.default_rng(1)
    channels, width = inputs["noise"].example.shape[1], inputs["context"].example.shape[3]
    h, w = (pixels // 8 for pixels in size)
    branches = 2 if guided else 1
    feed: dict[str, Array] = {
        "state": rng.standard_normal((batch, 4, channels, h, w), np.float32),
        "noise": rng.standard_normal((batch, channels, h, w), np.float32),
        "known": rng.standard_normal((batch, channels, h, w), np.float32),
        "mask": np.ones((batch, 1, h, w), np.float32),
        "timestep": np.linspace(500, 20, batch).astype(np.float32),
        "scalings": np.tile(np.array([1, 0, 1], np.float32), (batch, 1)),
        "transition": np.tile(np.eye(4, 6, dtype=np.float32), (batch, 1, 1)),
        "context": rng.standard_normal((branches, batch, 77 * branches, width), np.float32),
        "guidance": np.ones((branches, batch), np.float32),
        "rescale": np.zeros(batch, np.float32),
    }
    lengths = _lengths(branches, batch, h, w)
    for name in [name for name in inputs if name not in feed]:
        draw = _normal if _is_residual(name) else ADDED[name]
        feed[name] = draw(np.random.default_rng(3), tensor_shape(inputs[name].dims, lengths)).astype(np.float32)
    if guided:
        feed |= {
            "mask": rng.random((batch, 1, h, w), np.float32),
            "scalings": np.array([0.9, 0.5, -0.8], np.float32) + 0.1 * rng.standard_normal((batch, 3), np.float32),
            "transition": rng.standard_normal((batch, 4, 6), np.float32),
            "guidance": np.tile(np.array([[-2], [4]], np.float32), (1, batch)),
            "rescale": rng.random(batch, np.float32),
        }
    return feed


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.standard_normal(shape)


Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]

# Values of the inputs that only some families have, by shape.
ADDED: Mapping[str, Draw] = {
    "pooled": _normal,
    "time_ids": lambda rng, shape: rng.integers(0, 1024, shape),
    "guidance_embed": lambda rng, shape: rng.uniform(1, 9, shape),
    "extra": _normal,
    "block_gate": lambda rng, shape: rng.integers(0, 2, shape),
}
# Of a ControlNet, those that are not normal.
CONTROL: Mapping[str, Draw] = {
    **ADDED,
    "timestep": lambda rng, shape: rng.uniform(20, 500, shape),
    "scale": lambda rng, shape: rng.uniform(0.5, 1.5, shape),
}


def _is_residual(name: str) -> bool:
    return name.startswith("residual_")


def _lengths(branches: int, batch: int, h: int, w: int) -> dict[str, int]:
    """Of the axes of docs/bundle.md and docs/controlnet.md, with a chunk of text a branch."""
    sizes = {f"{axis}{n}": -(-size // n) for axis, size in (("h", h), ("w", w)) for n in (2, 4, 8)}
    return {"K": branches, "B": batch, "L": 77 * branches, "h": h, "w": w, "H": 8 * h, "W": 8 * w, **sizes}


def control_feed(inputs: Mapping[str, Input], size: tuple[int, int], batch: int, *, branches: int) -> dict[str, Array]:
    """Of a ControlNet, what others have added before it included."""
    lengths = _lengths(branches, batch, *(pixels // 8 for pixels in size))
    feed: dict[str, Array] = {}
    for number, (name, given) in enumerate(sorted(inputs.items())):
        rng, shape = np.random.default_rng([4, number]), tensor_shape(given.dims, lengths)
        if name == "image":
            feed[name] = rng.integers(0, 256, shape, np.uint8)
        else:
            feed[name] = CONTROL.get(name, _normal)(rng, shape).astype(np.float32)
    return feed


def vae_feed(inputs: Mapping[str, Input], size: tuple[int, int], batch: int) -> dict[str, Array]:
    rng = np.random.default_rng(2)
    named = inputs.get("latent", inputs.get("noise"))
    channels = 4 if named is None else named.example.shape[1]
    latent = rng.standard_normal((batch, channels, size[0] // 8, size[1] // 8), np.float32)
    if "latent" in inputs:
        return {"latent": latent}
    image = rng.integers(0, 256, (batch, *size, 3), np.uint8)
    feed = {"image": image, "keep": rng.random((batch, *size, 1), np.float32).round(), "noise": latent}
    return {name: value for name, value in feed.items() if name in inputs}
