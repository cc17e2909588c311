"""Whether `Pipeline.prepare` makes engines ready for exactly what a run asks of them, tried without graphs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentrt import Pipeline, Request
from latentrt.arrays import Array, Shape
from latentrt.bundle import Bundle, Component
from latentrt.graph import GraphFile, TensorSpec
from latentrt.manifest.axes import tensor_shape
from latentrt.testing import FakeEngine

Prepared = dict[str, list[Mapping[str, Shape]]]


def assert_ready_for(request: Request, bundle: Bundle, **prepare: Any) -> Prepared:
    """What a run of the request has made ready when it is done, `prepare` makes ready and runs nothing.

    Returns it, by component.
    """
    ran = pipeline(bundle)
    ran.run(request)
    ready = pipeline(bundle)
    ready.prepare(size=request.size, images=len(request.prompts) * request.images, **prepare)
    assert {name: engine.calls for name, engine in ready.engines.items()} == {name: [] for name in ready.engines}
    prepared = _sizes(ready)
    assert prepared == _sizes(ran)
    ready.run(request)
    assert _sizes(ready) == prepared
    return prepared


def pipeline(bundle: Bundle) -> Pipeline:
    """The bundle with engines that give zeros, and with a decoder if it lacks one."""
    components = {"decoder": decoder(bundle), **bundle.components}
    whole = Bundle(bundle.root, manifest={}, family=bundle.family, components=components, preview=None)
    return Pipeline(whole, {name: _engine(whole, component) for name, component in components.items()})


def decoder(bundle: Bundle) -> Component:
    channels, factor = bundle.family.latent_channels, bundle.family.vae_factor
    dims = {"latent": ("B", channels, "h", "w"), "image": ("B", f"{factor}*h", f"{factor}*w", 3)}
    latent = TensorSpec("float32", (None, channels, None, None))
    image = TensorSpec("uint8", (None, None, None, 3))
    graph = GraphFile("decoder", path=Path("decoder.onnx"), inputs={"latent": latent}, outputs={"image": image})
    return Component("decoder", "fp32", 0, graph, dims)


def _engine(bundle: Bundle, component: Component) -> FakeEngine:
    graph = component.graph
    return FakeEngine(graph.inputs, graph.outputs, _zeros(bundle, component), component=component.name)


def _zeros(bundle: Bundle, component: Component) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    def function(feed: Mapping[str, Array]) -> Mapping[str, Array]:
        lengths = {
            axis: length
            for name, value in feed.items()
            for axis, length in zip(component.dims[name], value.shape, strict=True)
            if isinstance(axis, str)
        }
        if "H" in lengths:
            lengths |= {"h": lengths["H"] // bundle.family.vae_factor, "w": lengths["W"] // bundle.family.vae_factor}
        outputs = component.graph.outputs.items()
        return {name: np.zeros(tensor_shape(component.dims[name], lengths), spec.dtype) for name, spec in outputs}

    return function


def _sizes(pipe: Pipeline) -> Prepared:
    return {name: list(engine.prepared) for name, engine in pipe.engines.items() if engine.prepared}
