"""ControlNets, and the step with their residuals, in torch: what `controlnet-NAME` and `step-control` should be."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import diffusers
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from latentrt.bundle import STEP_CONTROL, Bundle
from latentrt.export.controlnets import ControlNet
from latentrt.export.modules.step import Step
from latentrt.export.modules.unet import UNet
from latentrt.export.parity.components import Input
from latentrt.export.parity.yardstick import example_inputs
from latentrt.export.quiet import quiet
from latentrt.family import Family


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
        step: makes the module of `step`; None leaves `step-control` out.
    """
    family, graphs = bundle.family, bundle.root
    for net in nets:
        inputs = example_inputs(bundle.component(net.component), family)
        yield net.component, TorchSide(partial(_controlnet, net, family, graphs), inputs)
    if step is None:
        return
    inputs = example_inputs(bundle.component(STEP_CONTROL), bundle.family)
    yield STEP_CONTROL, TorchSide(lambda: ControlledStep(cast(Step, step())), inputs)


def _controlnet(net: ControlNet, family: Family, graphs: Path) -> nn.Module:
    return net.kind.module(net.load(), family, graphs)


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


class ControlledStep(nn.Module):
    """A step whose network also takes `residual_0` to `residual_{R-1}`, [K, B, c, h', w']. It shares its weights."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.network = _ControlledNetwork(cast(UNet, step.network))
        self.step = Step(self.network)

    def forward(self, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        count = sum(name.startswith("residual_") for name in inputs)
        self.network.residuals = tuple(inputs.pop(f"residual_{number}").flatten(0, 1) for number in range(count))
        state, denoised = self.step(**inputs)
        return state, denoised


class _ControlledNetwork(nn.Module):
    """As `UNet`, by the forward pass of diffusers itself, which knows residuals."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network
        self.residuals: tuple[Tensor, ...] = ()

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        *,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
        guidance_embed: Tensor | None = None,
    ) -> Tensor:
        *skips, middle = self.residuals
        angles = None if guidance_embed is None else self.network.guidance_angles(guidance_embed)
        prediction: Tensor = self.network.unet(
            sample,
            timestep,
            context,
            timestep_cond=angles,
            added_cond_kwargs=None if pooled is None else {"text_embeds": pooled, "time_ids": time_ids},
            down_block_additional_residuals=tuple(skips),
            mid_block_additional_residual=middle,
        ).sample
        return prediction
