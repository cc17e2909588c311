"""ControlNets, and the step with their residuals, in torch: what `controlnet-NAME` and `step-control` should be."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import diffusers
from diffusers import DiffusionPipeline
from torch import nn

from latentrt.bundle import STEP_CONTROL, Bundle
from latentrt.export.controlnets.controlnet import ControlNet
from latentrt.export.parity.components import Input
from latentrt.export.parity.reference import example_inputs
from latentrt.export.quiet import quiet


@dataclass(frozen=True, slots=True)
class TorchSide:
    """A component in torch: what makes its module, and an example of each input."""

    build: Callable[[], nn.Module]
    inputs: Mapping[str, Input]


def control_sides(
    bundle: Bundle, nets: Iterable[ControlNet], step: Callable[[], nn.Module] | None
) -> Iterator[tuple[str, TorchSide]]:
    """(component, side) of the ControlNets and, of a U-Net, of `step-control`, whose inputs are those of the bundle.

    Args:
        step: makes what `step` must equal, and `step-control` with it; None leaves that out.
    """
    family, graphs = bundle.family, bundle.root
    for net in nets:
        inputs = example_inputs(bundle.component(net.component), family)
        yield net.component, TorchSide(partial(net.reference, family, graphs), inputs)
    if step is None:
        return
    inputs = example_inputs(bundle.component(STEP_CONTROL), bundle.family)
    yield STEP_CONTROL, TorchSide(step, inputs)


def controlled_kind(pipeline: str) -> type[DiffusionPipeline] | None:
    """The class of diffusers that makes images of texts and a control, by the name of the one without; None where
    there is none."""
    kind = getattr(diffusers, f"{pipeline.removesuffix('Pipeline')}ControlNetPipeline", None)
    return kind if isinstance(kind, type) else None


def controlled_pipeline(
    pipeline: DiffusionPipeline, kind: type[DiffusionPipeline], net: ControlNet
) -> DiffusionPipeline:
    """The same parts in a pipeline of `controlled_kind`."""
    with quiet():
        controlled = kind.from_pipe(pipeline, controlnet=net.load().to(pipeline.device))
    controlled.set_progress_bar_config(disable=True)
    return controlled
