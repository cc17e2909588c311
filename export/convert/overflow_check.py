"""How large the tensors of a float32 bundle become, in runs of the real pipeline.

CPU kernels compute float16 through float32 and hide its overflow; what a GPU would meet is seen only from the
magnitudes of the float32 graph.
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from latentrt.arrays import Array, Shape, Value
from latentrt.bundle import CONTROLNET, STEP_CONTROL, Bundle
from latentrt.engine import EngineOptions
from latentrt.export.convert.extended_engine import Extended, ExtendedEngine
from latentrt.export.passes.network import network_nodes
from latentrt.export.passes.probe import Probes, add_probes
from latentrt.export.passes.storage import load_graph, restore
from latentrt.graph import GraphFile
from latentrt.images.control import Control
from latentrt.pipeline import Pipeline
from latentrt.request import Request

_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class RangeCheck:
    """What a range check runs: prompts, steps (None: the family's default), smallest or default size."""

    prompts: tuple[str, ...]
    steps: int | None
    smallest: bool


CHECKS: Mapping[str, RangeCheck] = {
    "quick": RangeCheck(("a red house by a lake under a cloudy sky",), steps=3, smallest=True),
    "full": RangeCheck(
        (
            "a red house by a lake under a cloudy sky",
            "portrait of an old man with a white beard, sharp focus, black background",
            "a blue star left of a yellow ring",
            "",
        ),
        steps=None,
        smallest=False,
    ),
}
NEGATIVE = "blurry, dark"


def measure(
    bundle: Bundle, *, effort: RangeCheck, threads: int | None = None, progress: Callable[[str], None] = lambda _: None
) -> dict[str, dict[str, float]]:
    """Makes images, and one latent from an image, with every component probed.

    Returns:
        For each component the largest magnitude that each network node read, wrote or, for attention, may have
        had among its scores, by the node's name.

    Raises:
        BundleError: a graph that cannot be read.
        BackendError: a graph that does not run, or a latent that is not finite.
    """
    engines = {name: ProbedEngine(part.graph, threads=threads) for name, part in bundle.components.items()}
    family = bundle.family
    size = (family.size_range_px[0],) * 2 if effort.smallest else family.defaults.size
    with Pipeline(bundle, engines) as pipe:
        for index, prompt in enumerate(effort.prompts):
            request = Request(prompt, negative=NEGATIVE, seed=index, steps=effort.steps, size=size)
            for step in pipe.steps(request):
                progress(f"range check: prompt {index + 1} of {len(effort.prompts)}, call {step.index + 1}")
                latent = step.latent()
            engines["step"].unload()  # the decoder needs the memory
            image = pipe.decode(latent)
            if bundle.controls:
                _control(pipe, request, image[0])
            engines["decoder"].unload()
            if "encoder" in engines:
                _encode(engines["encoder"], image, latent.shape)
        return {name: engine.magnitudes() for name, engine in engines.items()}


def _control(pipe: Pipeline, request: Request, image: Array) -> None:
    """One call with every ControlNet, which read a picture of the model's own."""
    controls = [Control(name, image) for name in pipe.bundle.controls]
    with closing(pipe.steps(replace(request, steps=1, control=controls))) as steps:
        next(steps)
    for name in (STEP_CONTROL, *(CONTROLNET + name for name in pipe.bundle.controls)):
        pipe.engines[name].unload()


def _encode(encoder: "ProbedEngine", image: Array, latent: Shape) -> None:
    noise = np.random.default_rng(0).standard_normal(latent, np.float32)
    feed = {"image": image, "keep": np.ones((*image.shape[:3], 1), np.float32), "noise": noise}
    encoder.run({name: feed[name] for name in encoder.inputs})
    encoder.unload()


class ProbedEngine(ExtendedEngine):
    """A graph in ONNX Runtime that remembers, over all runs, how large its tensors became."""

    def __init__(self, graph: GraphFile, *, threads: int | None = None) -> None:
        level, options = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, EngineOptions(threads=threads)
        super().__init__(graph, load=self._probed, seen=self._remember, level=level, options=options)
        self._largest: dict[str, float] = {}
        self._probes = Probes({}, {})

    def magnitudes(self) -> dict[str, float]:
        """The largest magnitude at each network node, by its name; finite, at most float32's largest."""
        found: dict[str, float] = {}
        for node in network_nodes(load_graph(self.graph.path).graph):
            tensors = (str(value.name) for value in (*node.inputs, *node.outputs) if value is not None)
            sizes = [self._largest.get(name, 0.0) for name in (*tensors, str(node.name))]
            found[str(node.name)] = max(sizes)
        return found

    def _probed(self) -> Extended:
        model = load_graph(self.graph.path)
        self._probes = add_probes(model, network_nodes(model.graph))
        restore(model)
        return ir.to_proto(model).SerializeToString(), self._probes.names

    def _remember(self, _: Mapping[str, Value], found: Mapping[str, Array]) -> None:
        values = {name: float(value) for name, value in found.items()}
        sizes = {name: max(abs(values[low]), abs(values[high])) for name, (low, high) in self._probes.tensors.items()}
        scores = self._probes.scores.items()
        sizes |= {name: values[query] * values[key] * scale for name, (query, key, scale) in scores}
        for name, size in sizes.items():
            bounded = min(size, _FLOAT32_MAX) if size == size else _FLOAT32_MAX  # NaN, too, is out of range
            self._largest[name] = max(self._largest.get(name, 0.0), bounded)
