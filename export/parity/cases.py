"""Whole images to compare: prompts, seeds, samplers and sizes. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, product
from typing import cast

import numpy as np

from latentrt import Control, Inpaint, Pipeline, Request
from latentrt.export.parity.pictures import control_picture, mask, photo
from latentrt.family import Family
from latentrt.names import SamplerName
from latentrt.result import Images
from latentrt.samplers import sampler_names
from latentrt.start import TEXT

PROMPTS = (
    "a red circle on a white background",
    "a blue star left of a yellow ring on a black background",
    "a green square above an orange triangle on a white background",
)
NEGATIVE = "a purple circle"


@dataclass(frozen=True, slots=True)
class Case:
    """One run of both sides. `size` is (width, height) in pixels; image i has seed `seed` + i; `control` is the name of
    a ControlNet that leads all of them; `painted` begins with a photo and paints a part of it anew, wholly."""

    sampler: str
    size: tuple[int, int] = (128, 128)
    prompts: tuple[str, ...] = PROMPTS[:1]
    guidance: float = 7.5
    steps: int = 20
    seed: int = 7
    control: str | None = None
    painted: bool = False

    @property
    def request(self) -> Request:
        """The same run for LatentRT."""
        return Request(
            self.prompts,
            negative=NEGATIVE,
            seed=self.seed,
            size=self.size,
            steps=self.steps,
            guidance=self.guidance,
            sampler=cast("SamplerName", self.sampler),
            start=Inpaint(photo(self.size), mask(self.size)) if self.painted else TEXT,
            control=[] if self.control is None else [Control(self.control, control_picture(self.size))],
        )

    def __str__(self) -> str:
        (width, height), control = self.size, "" if self.control is None else f", control {self.control}"
        run = f"{self.sampler} {width}x{height}, batch {len(self.prompts)}, guidance {self.guidance:g}{control}"
        return f"{run}, inpainting" if self.painted else run


def cases(samplers: Sequence[str], *, quick: bool = False) -> Iterator[Case]:
    """Every combination of size, batch and guidance for each sampler, or for `quick` two of them."""
    for sampler in samplers:
        if quick:
            yield Case(sampler)
            yield Case(sampler, size=(96, 160), prompts=PROMPTS, guidance=1.0)
            continue
        for size, batch, guidance in product(((128, 128), (96, 160)), (1, 3), (1.0, 7.5)):
            yield Case(sampler, size=size, prompts=PROMPTS[:batch], guidance=guidance)


def controlled_cases(controls: Sequence[str], samplers: Sequence[str], family: Family) -> Iterator[Case]:
    """One image with each ControlNet, by the family's own sampler where it is among these."""
    own = family.noise.default_sampler
    for sampler in [own if own in samplers else samplers[0]] if samplers else []:
        for name in controls:
            yield Case(sampler, control=name)


def alone_and_together(pipe: Pipeline) -> int:
    """The greatest difference, in levels of 0..255, between images made alone and the same ones made in one
    batch of other prompts, samplers and guidance."""
    wanted, known = ("euler", "dpmpp-2m", "euler-a"), sampler_names(pipe.bundle.family.noise)
    first, second, third = wanted if set(wanted) <= set(known) else islice(cycle(known), 3)
    requests = [
        replace(Case(first).request, steps=6),
        replace(Case(second, guidance=1.0, seed=11).request, prompt=PROMPTS[1], steps=9),
        replace(Case(third, guidance=4.0, seed=12).request, prompt=PROMPTS[2], steps=4),
    ]
    together = pipe.run(*requests).images
    alone = np.concatenate([pipe.run(request).images for request in requests])
    return int(np.abs(together.astype(np.int16) - alone).max())


def psnr(a: Images, b: Images) -> float:
    """Peak signal-to-noise ratio in dB of the worst image of a batch; infinite where nothing differs."""
    error = np.square(a.astype(np.float64) - b).mean(axis=(1, 2, 3)).max()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
