"""The checkpoint as what a bundle is compared with: its modules in torch, and diffusers' pipeline."""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import torch
from diffusers import DiffusionPipeline
from torch import nn

from latentrt.backends.base import GraphEngine
from latentrt.bundle import Bundle
from latentrt.engine import Array, GraphFile, Shape, Value, to_host
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.components import component_specs
from latentrt.export.family import read_family
from latentrt.export.parity.cases import Case
from latentrt.export.parity.components import Run, reference_runs
from latentrt.export.parity.pipeline import comparable, reference_images, reference_pipeline
from latentrt.pipeline import Images, Pipeline


class TorchYardstick:
    """A checkpoint in float32 on `device`, `cpu` or `cuda`; None is the CPU. See `Yardstick`.

    Raises:
        CheckpointError: a checkpoint that cannot be exported.
    """

    name = "torch"

    def __init__(self, checkpoint: Checkpoint, *, device: str | None = None) -> None:
        self._checkpoint = checkpoint
        self._device = "cpu" if device is None else device
        self.family = read_family(checkpoint)
        self._specs = {spec.name: spec for spec in component_specs(checkpoint, self.family)}
        self.components = tuple(self._specs)

    def runs(self, component: str) -> list[Run]:
        spec = self._specs[component]
        return reference_runs(component, spec.build(), spec.inputs, device=self._device)

    def comparable(self, samplers: Sequence[str]) -> list[str]:
        return comparable(self._pipeline, samplers)

    def images(self, case: Case) -> Images:
        """By diffusers' own loop."""
        return reference_images(self._pipeline, self._checkpoint, case)

    def pipeline(self, bundle: Bundle) -> Pipeline:
        """The runtime's loop over torch's modules."""
        names = [*bundle.towers, "step", "decoder"]
        modules = {name: self._specs[name].build().to(self._device) for name in names}
        return Pipeline(bundle, {name: TorchEngine(bundle.component(name).graph, modules[name]) for name in names})

    def close(self) -> None:
        self.__dict__.pop("_pipeline", None)

    @cached_property
    def _pipeline(self) -> DiffusionPipeline:
        return reference_pipeline(self._checkpoint, device=self._device)


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
