"""How much GPU memory a bundle's engines need, from their records alone (docs/gpus.md states the formula)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from latentrt.arrays import Shape
from latentrt.backends.tensorrt.records import EngineRecord
from latentrt.bundle import CONTROLNET, SHALLOW, STEP_CONTROL, Bundle, Component
from latentrt.manifest.axes import axis_lengths, tensor_shape
from latentrt.manifest.contract import IMAGE_LATENT

ALLOWANCE_BYTES = 500_000_000  # an assumption: the CUDA context, TensorRT's own code and its compiled kernels

RESIDENT = "all resident"
BY_TURNS = "text encoder and VAE loaded by turns"
STREAMED = "by turns, weights of the step streamed"


@dataclass(frozen=True, slots=True)
class LoadingPlan:
    """One way to run: its name, and the device memory in bytes that it needs."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one set of engines needs for one size and batch, all in bytes.

    Args:
        engines: the record of each component, the one of its engines that needs least.
        weights: of each component.
        activation: of the engine that needs most; the others use the same memory.
        buffers: inputs and outputs of all engines, and the noise of all steps.
        allowance: for what no record says.
        plans: the ways to run, the fastest first.
    """

    engines: Mapping[str, EngineRecord]
    weights: Mapping[str, int]
    activation: int
    buffers: int
    allowance: int
    plans: tuple[LoadingPlan, ...]

    def plan_for(self, vram_bytes: int) -> LoadingPlan | None:
        """The fastest way to run that so much memory holds."""
        return next((plan for plan in self.plans if plan.bytes <= vram_bytes), None)


def estimate(
    bundle: Bundle,
    records: Iterable[EngineRecord],
    *,
    size: tuple[int, int],
    batch: int,
    controls: Sequence[str] = (),
    cached: bool = False,
) -> Estimate | str:
    """The memory that text to image needs with guidance and one chunk of text.

    Args:
        records: engines of one variant, version and set of GPUs.
        size: (width, height) in pixels.
        controls: names of the ControlNets in use; `step-control` then runs in the place of `step`.
        cached: with step caching, whose shallow graph is loaded beside the step.

    Returns:
        The estimate, or in words what is missing for one.
    """
    family, steps = bundle.family, bundle.family.defaults.steps
    lengths = axis_lengths(family, size=size, batch=batch, branches=2, context=family.context_length(1))
    pool = list(records)
    nets = [CONTROLNET + name for name in controls]
    loop = [STEP_CONTROL, *nets] if controls else ["step"]
    loop += [SHALLOW[loop[0]]] if cached else []
    encoder = ["encoder"] if any(IMAGE_LATENT in bundle.component(name).dims for name in nets) else []
    engines: dict[str, EngineRecord] = {}
    buffers = 0
    for name in (*bundle.text_encoders, *encoder, *loop, "decoder"):
        component = bundle.component(name)
        shapes = {tensor: _shape(component, tensor, lengths) for tensor in component.dims}
        found = smallest(component, pool, {tensor: shapes[tensor] for tensor in component.graph.inputs})
        if isinstance(found, str):
            return found
        engines[name] = found
        buffers += sum(_bytes(component, tensor, shape) for tensor, shape in shapes.items())
        if name == "step":
            buffers += (steps - 1) * _bytes(component, "noise", shapes["noise"])
    activation = max(int(record.activation_bytes or 0) for record in engines.values())
    weights = {name: int(record.weights_bytes or 0) for name, record in engines.items()}
    rest = buffers + activation + ALLOWANCE_BYTES
    return Estimate(
        engines=engines,
        weights=weights,
        activation=activation,
        buffers=buffers,
        allowance=ALLOWANCE_BYTES,
        plans=tuple(_plans(weights, rest, loop=loop, streams="weight_streaming" in engines[loop[0]].options)),
    )


def smallest(component: Component, records: Sequence[EngineRecord], shapes: Mapping[str, Shape]) -> EngineRecord | str:
    """Of the engines of a component that serve these shapes the one that needs least; else what is missing."""
    own = [r for r in records if (r.component, r.graph) == (component.name, component.graph.digest)]
    if not own:
        return f"no engine of {component.name}"
    serving = [record for record in own if record.profile.covers(shapes)]
    if not serving:
        return f"no engine of {component.name} for this size and batch"
    known = [r for r in serving if r.activation_bytes is not None and r.weights_bytes is not None]
    if not known:
        return f"the builder did not report the memory of {component.name}"
    return min(known, key=lambda record: int(record.activation_bytes or 0))


def _plans(weights: Mapping[str, int], rest: int, *, loop: Sequence[str], streams: bool) -> list[LoadingPlan]:
    """`loop` names the step and what is beside it, ControlNets and a shallow graph, all of which stay while it runs."""
    step, *others_of_loop = (weights[name] for name in loop)
    others = max(size for name, size in weights.items() if name not in loop)
    beside = sum(others_of_loop)
    plans = [LoadingPlan(RESIDENT, rest + sum(weights.values())), LoadingPlan(BY_TURNS, rest + step + beside + others)]
    return [*plans, LoadingPlan(STREAMED, rest + max(others, beside))] if streams else plans


def _shape(component: Component, tensor: str, lengths: Mapping[str, int]) -> Shape:
    return tensor_shape(component.dims[tensor], lengths)


def _bytes(component: Component, tensor: str, shape: Shape) -> int:
    spec = {**component.graph.inputs, **component.graph.outputs}[tensor]
    return prod(shape) * np.dtype(spec.dtype).itemsize
