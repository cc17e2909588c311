"""The checkpoint as what a bundle is compared with: its modules in torch, and diffusers' pipeline."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from diffusers import DiffusionPipeline
from torch import nn

from latentrt.arrays import Array, Shape, Value, to_host
from latentrt.backends.base import GraphEngine
from latentrt.bundle import SHALLOW, STEP_CONTROL, Bundle
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.controlnets.controlnet import ControlNet
from latentrt.export.graphs.components import component_specs
from latentrt.export.parity.cases import Case
from latentrt.export.parity.components import ComponentRun, reference_runs
from latentrt.export.parity.torch.controls import TorchSide, control_sides, controlled_kind, controlled_pipeline
from latentrt.export.parity.torch.pipeline import comparable, reference_images, reference_pipeline
from latentrt.graph import GraphFile
from latentrt.output.result import Images
from latentrt.pipeline import Pipeline


class TorchReference:
    """A checkpoint in float32 on `device`, `cpu` or `cuda`; None is the CPU. See `Reference`.

    Args:
        controlled: the bundle whose ControlNets are `controlnets`, or some of these; None: it knows of none. Of a
            transformer it runs these alone, no step with their residuals.
    """

    name = "torch"
    reads_long = False
    pooled: tuple[str, ...] = ()

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        controlled: Bundle | None = None,
        controlnets: Sequence[ControlNet] = (),
        device: str | None = None,
    ) -> None:
        self._checkpoint = checkpoint
        self._device = "cpu" if device is None else device
        self.family = read_family(checkpoint)
        self._controlnets = {net.name: net for net in controlnets}
        specs = component_specs(checkpoint, self.family)
        self._sides = {spec.name: TorchSide(spec.reference, spec.inputs) for spec in specs}
        unet = checkpoint.network == "unet"
        if controlled is not None and controlled.controls:
            self._sides |= control_sides(controlled, controlnets, self._sides["step"].build if unet else None)
        self._controlled = controlled_kind(str(checkpoint.index["_class_name"])) if unet else None
        self.controls = () if self._controlled is None else tuple(self._controlnets)
        self.components = tuple(self._sides)

    def runs(self, component: str) -> list[ComponentRun]:
        side = self._sides[component]
        return reference_runs(side.build(), side.inputs, device=self._device)

    def comparable(self, samplers: Sequence[str]) -> list[str]:
        return comparable(self._pipeline, samplers)

    def images(self, case: Case) -> Images:
        """By diffusers' own loop."""
        pipeline = self._pipeline
        if case.control is not None and self._controlled is not None:
            pipeline = controlled_pipeline(pipeline, self._controlled, self._controlnets[case.control])
        return reference_images(pipeline, self._checkpoint, case)

    def pipeline(self, bundle: Bundle) -> Pipeline:
        """The runtime's loop over diffusers' own modules."""
        nets = [self._controlnets[name].component for name in self.controls]
        vae = ["decoder", "encoder"] if self.family.extra_channels else ["decoder"]
        names = [*bundle.text_encoders, "step", *vae, *nets]
        modules = {name: self._sides[name].build().to(self._device) for name in names}
        if nets:
            modules[STEP_CONTROL] = modules["step"]  # it takes residuals too
        engines = {name: TorchEngine(_plain(bundle.component(name).graph), module) for name, module in modules.items()}
        return Pipeline(bundle, engines)

    def close(self) -> None:
        self.__dict__.pop("_pipeline", None)

    @cached_property
    def _pipeline(self) -> DiffusionPipeline:
        return reference_pipeline(self._checkpoint, device=self._device)


def _plain(graph: GraphFile) -> GraphFile:
    """A step without the outputs that only shallow calls need: torch gives none of them."""
    if graph.component not in SHALLOW:
        return graph
    return replace(graph, outputs={name: graph.outputs[name] for name in ("next_state", "denoised")})


class TorchEngine(GraphEngine):
    """A torch module with the inputs and outputs of `graph`."""

    backend = "torch"

    def __init__(self, graph: GraphFile, module: nn.Module) -> None:
        super().__init__(graph)
        self._module = module

    def _prepare(self, dims: Mapping[str, Shape]) -> None:
        """torch takes every size."""

    def _run(self, feed: Mapping[str, Value], into: Mapping[str, Array], keep: Collection[str]) -> Mapping[str, Value]:
        device = next(self._module.parameters()).device
        with torch.no_grad():
            outputs = self._module(**{name: torch.tensor(to_host(feed[name]), device=device) for name in self.inputs})
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        found = {name: tensor.cpu().numpy() for name, tensor in zip(self.outputs, tensors, strict=True)}
        for name, destination in into.items():
            destination[...] = found[name]
        return found

    def _release(self) -> None:
        """The module goes with the engine."""
