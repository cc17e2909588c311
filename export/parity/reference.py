"""What a bundle is compared with, and one of the two: the float bundle that it was made from. Imports no torch.

The other is the checkpoint, `latentrt.export.parity.torch.reference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

import latentrt
from latentrt.arrays import to_host
from latentrt.backends import open_engine
from latentrt.bundle import Bundle, Component
from latentrt.errors import RequestError
from latentrt.export.parity.cases import Case
from latentrt.export.parity.components import Array, ComponentRun, component_feeds
from latentrt.export.parity.gates import pooled
from latentrt.family import Family
from latentrt.names import BackendName
from latentrt.output.result import Images
from latentrt.pipeline import Pipeline

BACKEND: BackendName = "onnxruntime"
PRECISIONS = ("fp32", "fp16")  # that BACKEND runs on a CPU


class Reference(Protocol):
    """The side that is right.

    Attributes:
        name: of what runs it.
        family: the model's row; a bundle of another one cannot be compared.
        components: that it can run.
        controls: names of the ControlNets with which it makes whole images of texts.
        pooled: those of the components that pool attention.
        reads_long: whether its images are of whole prompts, however long.
    """

    name: str
    reads_long: bool
    family: Family
    components: tuple[str, ...]
    controls: tuple[str, ...]
    pooled: tuple[str, ...]

    def runs(self, component: str) -> list[ComponentRun]:
        """A component's outputs on seeded inputs of several sizes."""

    def comparable(self, samplers: Sequence[str]) -> list[str]:
        """Those with which this side makes whole images: of texts, or of a photo and a mask where the network sees
        these."""

    def images(self, case: Case) -> Images:
        """Whole images, uint8 [B, H, W, 3]."""

    def pipeline(self, bundle: Bundle) -> Pipeline:
        """A pipeline like that of `bundle` over this side's engines; the caller closes it."""

    def close(self) -> None:
        """Frees what it holds."""


class BundleReference:
    """A float bundle on ONNX Runtime, which is refused if it is quantised or holds bf16."""

    name: str = BACKEND
    reads_long = True

    def __init__(self, bundle: Bundle) -> None:
        for name, part in bundle.components.items():
            if part.precision not in PRECISIONS:
                raise RequestError(
                    f"{name} of {bundle.root} is {part.precision}",
                    expected=f"a reference in {' or '.join(PRECISIONS)}",
                    hint="compare with the float32 bundle that both were made from",
                )
        self._bundle = bundle
        self.family = bundle.family
        self.components = tuple(bundle.components)
        self.controls = bundle.controls
        self.pooled = pooled(bundle)

    def runs(self, component: str) -> list[ComponentRun]:
        part = self._bundle.component(component)
        runs = []
        with closing(open_engine(part.graph, backend=BACKEND)) as engine:
            for case, feed in component_feeds(example_inputs(part, self.family)):
                outputs = {name: np.array(to_host(value)) for name, value in engine.run(feed).items()}
                runs.append(ComponentRun(case, feed, outputs))
        return runs

    def comparable(self, samplers: Sequence[str]) -> list[str]:
        return list(samplers)

    def images(self, case: Case) -> Images:
        return self._pipe.run(case.request).images

    def pipeline(self, bundle: Bundle) -> Pipeline:
        return latentrt.load(self._bundle.root, backend=BACKEND)

    def close(self) -> None:
        if "_pipe" in self.__dict__:
            self._pipe.close()

    @cached_property
    def _pipe(self) -> Pipeline:
        return self.pipeline(self._bundle)


@dataclass(frozen=True, slots=True)
class _Input:
    """As `latentrt.export.parity.components.Input`."""

    example: Array
    dims: tuple[str | int, ...]


def example_inputs(part: Component, family: Family) -> dict[str, _Input]:
    """Small ones; a text encoder's hold its special ids, and a latent's sides share no factor but what is asked."""
    patch = family.multiple_px // family.vae_factor
    lengths = {"h": 5 * patch, "w": 7 * patch}
    examples = {}
    for name, spec in part.graph.inputs.items():
        dims = part.dims[name]
        shape = [length if isinstance(length, int) else lengths.get(length, 2) for length in dims]
        examples[name] = _Input(np.zeros(shape, spec.dtype), dims)
    for text_encoder in family.text_encoders:
        if text_encoder.component == part.name:
            ids = examples["ids"].example
            ids[:] = text_encoder.eos_id
            # The largest: the first that reads `extra_embeddings`, where there are any.
            ids[0, 1] = text_encoder.vocabulary - ("extra_embeddings" not in examples)
    return examples
