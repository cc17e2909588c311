"""The table of families: a tiny random checkpoint of each, and how diffusers' own pipeline is asked for the same.

A new family is a line here. `make test` runs those that are `quick`, one of each architecture of the network;
`make test-families` runs the others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentrt import SkipLayers

STEP = ("context", "timestep", "mask", "guidance")
"""Inputs that every step has and that have to matter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One family.

    Args:
        architecture: for `latentrt.export.synthetic.checkpoints`.
        guidance: the scale with guidance on; off is 1.
        negative: prompt; None: the pipeline of diffusers takes none.
        inputs: further inputs of its step.
        start: what the reference begins with: `noise`, `photo` (and a mask) or `latent`.
        without: a text encoder that is left out.
        eta: share of fresh noise; None: the sampler takes none.
        ours, theirs: more arguments of the request, and of diffusers' pipeline, with guidance on: without it
            diffusers skips no layers.
        quick: runs in `make test`.
    """

    architecture: str
    guidance: float = 5.0
    negative: str | None = "blurry, dark"
    inputs: tuple[str, ...] = ()
    start: str = "noise"
    without: str | None = None
    eta: float | None = None
    ours: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False

    def __str__(self) -> str:
        return " ".join(filter(None, (self.architecture, self.without and f"without {self.without}", *self.ours)))


SDXL = ("pooled", "time_ids")
SD3 = ("pooled", "block_gate")

ROWS = (
    Row(architecture="tiny-sd15"),
    Row(architecture="tiny-sd15-inpaint", start="photo", inputs=("extra",)),
    Row(architecture="tiny-lcm", guidance=8.5, negative=None, inputs=("guidance_embed",)),
    Row(architecture="tiny-sd2-base"),
    Row(architecture="tiny-sd21"),
    Row(architecture="tiny-sd2-inpaint", start="photo", inputs=("extra",)),
    Row(architecture="tiny-sd-turbo", guidance=2.0),
    Row(architecture="tiny-sdxl", negative="", inputs=SDXL),
    Row(architecture="tiny-sdxl", inputs=SDXL),
    Row(architecture="tiny-sdxl-turbo", negative="", inputs=SDXL),
    Row(architecture="tiny-sdxl-lightning", guidance=2.0, negative="", inputs=SDXL),
    Row(architecture="tiny-sdxl-hyper", guidance=2.0, negative="", inputs=SDXL),
    Row(architecture="tiny-sdxl-tcd", guidance=2.0, negative="", eta=0.3, inputs=SDXL),
    Row(architecture="tiny-sdxl-flow", negative="", inputs=SDXL),
    Row(architecture="tiny-sdxl-refiner", start="latent", negative="", inputs=SDXL),
    Row(architecture="tiny-sdxl-inpaint", start="photo", negative="", inputs=(*SDXL, "extra"), quick=True),
    Row(architecture="tiny-sd3", inputs=SD3, quick=True),
    Row(architecture="tiny-sd3", without="text_encoder_3"),
    Row(architecture="tiny-sd35", inputs=SD3),
    Row(
        architecture="tiny-sd35",
        ours={"skip_layers": SkipLayers((1,), range=(0.01, 1.0))},
        theirs={"skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0},
    ),
)
