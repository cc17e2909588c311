"""Whole images to compare: prompts, seeds, samplers and sizes. Imports no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, product
from typing import cast

import numpy as np

from latentrt import Control, Inpaint, Pipeline, Request
from latentrt.export.parity.pictures import control_picture, mask, photo
from latentrt.family import Family
from latentrt.images.start import TEXT
from latentrt.names import SamplerName
from latentrt.samplers import sampler_names

# For those that read a line of CLIP, and for those with a text encoder that reads sentences.
SHORT = (
    "a lighthouse on a rocky coast at dusk",
    "portrait of an old fisherman with a white beard",
    "three green apples on a white plate",
)
LONG = (
    "a photograph of a small lighthouse on a rocky coast at dusk, with waves that break below it and one lit window",
    'a shop window at night with a neon sign that reads "OPEN LATE", seen from across a wet street',
    "three green apples on a white plate to the left of a blue jug, on a wooden table in soft morning light",
)
NEGATIVE = "blurry, low quality"
SEEDS, SEED = 16, 100  # of a median: how many, and the first
STEPS = 20  # at most: what differs after these differs earlier
UNGUIDED, GUIDED = 1.0, 7.5
PIXELS_AT_ONCE = 4 * 512 * 512
CLIP_LENGTH = 77  # tokens


@dataclass(frozen=True, slots=True)
class Case:
    """One run of both sides. `size` is (width, height) in pixels; image i has seed `seed` + i; `control` is the name of
    a ControlNet that leads all of them; `painted` begins with a photo and paints a part of it anew, wholly."""

    sampler: str
    size: tuple[int, int]
    prompts: tuple[str, ...]
    guidance: float = GUIDED
    steps: int = STEPS
    seed: int = 7
    control: str | None = None
    painted: bool = False

    @property
    def request(self) -> Request:
        """The same run for LatentRT."""
        return Request(
            self.prompts,
            negative=NEGATIVE,
            syntax="plain",  # as diffusers reads them
            seed=self.seed,
            size=self.size,
            steps=self.steps,
            guidance=self.guidance,
            sampler=cast("SamplerName", self.sampler),
            start=Inpaint(photo(self.size), mask(self.size)) if self.painted else TEXT,
            control=[] if self.control is None else [Control(self.control, control_picture(self.size))],
        )

    @property
    def pieces(self) -> "tuple[Case, ...]":
        """The same images in runs that fit into memory."""
        width, height = self.size
        many = max(1, PIXELS_AT_ONCE // (width * height))
        return tuple(
            replace(self, prompts=self.prompts[first : first + many], seed=self.seed + first)
            for first in range(0, len(self.prompts), many)
        )

    def __str__(self) -> str:
        (width, height), control = self.size, "" if self.control is None else f", control {self.control}"
        run = f"{self.sampler} {width}x{height}, batch {len(self.prompts)}, guidance {self.guidance:g}{control}"
        return f"{run}, inpainting" if self.painted else run


@dataclass(frozen=True, slots=True)
class CaseTable:
    """The cases of a family: by its own defaults, at its native size and at a small one that is no square.

    Args:
        prompts: instead of general ones; None: such as the family's text encoders read.
        quick: none at the native size, and two combinations for each sampler instead of eight.
    """

    family: Family
    prompts: Sequence[str] | None = None
    quick: bool = False

    @property
    def small(self) -> tuple[int, int]:
        """Half of the native width and three quarters of its height, as near as the family's sizes come."""
        (width, height), least = self.family.defaults.size, self.family.size_range_px[0]
        multiple = self.family.multiple_px
        across, down = (max(least, round(side / multiple) * multiple) for side in (width / 2, height * 3 / 4))
        return across, down

    def own(self, sampler: str | None = None, *, images: int = 1) -> Case:
        """One run as the family's defaults say, by its own sampler where none is named."""
        texts = self.prompts
        if texts is None:
            texts = LONG if any(each.length > CLIP_LENGTH for each in self.family.text_encoders) else SHORT
        defaults = self.family.defaults
        return Case(
            defaults.sampler if sampler is None else sampler,
            self.small if self.quick else defaults.size,
            tuple(islice(cycle(texts), images)),
            guidance=defaults.guidance,
            steps=min(STEPS, defaults.steps),
        )

    def every(self, samplers: Sequence[str]) -> Iterator[Case]:
        """Every combination of size, batch and guidance for each sampler, or for `quick` two of them."""
        own = self.family.defaults.guidance
        guided = own if own > UNGUIDED else GUIDED
        if self.quick:
            combinations = [(self.small, 1, guided), (self.small[::-1], 3, UNGUIDED)]
        else:
            combinations = [*product((self.family.defaults.size, self.small), (1, 3), (UNGUIDED, guided))]
        for sampler, (size, images, guidance) in product(samplers, combinations):
            yield replace(self.own(sampler, images=images), size=size, guidance=guidance)

    def controlled(self, controls: Sequence[str], samplers: Sequence[str]) -> Iterator[Case]:
        """One image with each ControlNet."""
        for sampler in self._one_of(samplers):
            for name in controls:
                yield replace(self.own(sampler), control=name)

    def seeds(self, samplers: Sequence[str], controls: Sequence[str]) -> Iterator[Case]:
        """Sixteen images, by which 16-bit bundles are judged, and four with each ControlNet."""
        for sampler in self._one_of(samplers):
            case = replace(self.own(sampler, images=SEEDS), seed=SEED)
            yield case
            for name in controls:
                yield replace(case, prompts=case.prompts[:4], control=name)

    def _one_of(self, samplers: Sequence[str]) -> list[str]:
        """The family's own sampler where it is among these; none where none is."""
        own = self.family.noise.default_sampler
        return [own if own in samplers else samplers[0]] if samplers else []


def alone_and_together(pipe: Pipeline, table: CaseTable) -> int:
    """The greatest difference, in levels of 0..255, between images made alone and the same ones made in one
    batch of other prompts, samplers and guidance."""
    wanted, known = ("euler", "dpmpp-2m", "euler-a"), sampler_names(pipe.bundle.family.noise)
    samplers = wanted if set(wanted) <= set(known) else islice(cycle(known), 3)
    case = replace(table.own(images=3), size=table.small)
    requests = [
        replace(case, sampler=sampler, prompts=(prompt,), guidance=guidance, seed=seed, steps=steps).request
        for sampler, prompt, guidance, seed, steps in zip(
            samplers, case.prompts, (GUIDED, UNGUIDED, 4.0), (7, 11, 12), (6, 9, 4), strict=True
        )
    ]
    together = pipe.run(*requests).images
    alone = np.concatenate([pipe.run(request).images for request in requests])
    return int(np.abs(together.astype(np.int16) - alone).max())
