"""Whole images against diffusers' own pipeline: same prompt, seed, sampler and steps."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from diffusers import DiffusionPipeline

from latentrt import Pipeline, Request
from latentrt.export.checkpoint import Checkpoint, tokenizer_of
from latentrt.export.family import read_family, scheduler_config
from latentrt.export.parity.schedulers import REFERENCES
from latentrt.export.quiet import quiet

Images = npt.NDArray[np.uint8]

PROMPTS = (
    "a red circle on a white background",
    "a blue star left of a yellow ring on a black background",
    "a green square above an orange triangle on a white background",
)
NEGATIVE = "a purple circle"


@dataclass(frozen=True, slots=True)
class Case:
    """One run of both sides. `size` is (width, height) in pixels; image i has seed `seed` + i."""

    sampler: str
    size: tuple[int, int] = (128, 128)
    prompts: tuple[str, ...] = PROMPTS[:1]
    guidance: float = 7.5
    steps: int = 20
    seed: int = 7

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
            sampler=self.sampler,
        )

    def __str__(self) -> str:
        width, height = self.size
        return f"{self.sampler} {width}x{height}, batch {len(self.prompts)}, guidance {self.guidance:g}"


def cases(samplers: Sequence[str], *, quick: bool = False) -> Iterator[Case]:
    """Every combination of size, batch and guidance for each sampler, or for `quick` two of them."""
    for sampler in samplers:
        if quick:
            yield Case(sampler)
            yield Case(sampler, size=(96, 160), prompts=PROMPTS, guidance=1.0)
            continue
        for size, batch, guidance in product(((128, 128), (96, 160)), (1, 3), (1.0, 7.5)):
            yield Case(sampler, size=size, prompts=PROMPTS[:batch], guidance=guidance)


def reference_pipeline(checkpoint: Checkpoint, *, device: str = "cpu") -> DiffusionPipeline:
    """The pipeline of diffusers that the checkpoint names, in float32 on `device`, without its progress bars."""
    kind = getattr(diffusers, str(checkpoint.index["_class_name"]))
    taken = inspect.signature(kind.__init__).parameters
    parts: dict[str, Any] = {part: checkpoint.load(part) for part in checkpoint.parts}
    parts |= {tokenizer_of(part): checkpoint.tokenizer(tokenizer_of(part)) for part in checkpoint.towers}
    parts["scheduler"] = REFERENCES[read_family(checkpoint).noise.default_sampler].build(scheduler_config(checkpoint))
    left_out = [n for n, p in taken.items() if n not in (*parts, "self") and p.default is inspect.Parameter.empty]
    settings = {name: value for name, value in checkpoint.index.items() if name in taken and isinstance(value, bool)}
    if "requires_safety_checker" in taken:
        settings["requires_safety_checker"] = False
    with quiet():
        pipeline = kind(**dict.fromkeys(left_out) | parts | settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def comparable(pipeline: DiffusionPipeline, samplers: Sequence[str]) -> list[str]:
    """The samplers with which the pipeline of diffusers makes images of texts: none where it asks for a photo, and
    only its own where it hands the scheduler more than the number of steps."""
    taken = inspect.signature(pipeline.__call__).parameters
    if "image" in taken:
        return []
    return [name for name in samplers if name == "lcm" or "original_inference_steps" not in taken]


def reference_images(pipeline: DiffusionPipeline, checkpoint: Checkpoint, case: Case) -> Images:
    """What diffusers makes of a case, uint8 [B, H, W, 3]."""
    reference = REFERENCES[case.sampler]
    taken = inspect.signature(pipeline.__call__).parameters
    optional = {"negative_prompt": [NEGATIVE] * len(case.prompts), "eta": reference.eta}
    with quiet():
        pipeline.scheduler = reference.build(scheduler_config(checkpoint))
        images = pipeline(
            list(case.prompts),
            width=case.size[0],
            height=case.size[1],
            num_inference_steps=case.steps,
            guidance_scale=case.guidance,
            generator=[torch.Generator().manual_seed(case.seed + i) for i in range(len(case.prompts))],
            output_type="np",
            **{name: value for name, value in optional.items() if name in taken},
        ).images
    return (images * 255).round().astype(np.uint8)


def alone_and_together(pipe: Pipeline) -> int:
    """The greatest difference, in levels of 0..255, between images made alone and the same ones made in one
    batch of other prompts, samplers and guidance."""
    requests = [
        replace(Case("euler").request, steps=6),
        replace(Case("dpmpp-2m", guidance=1.0, seed=11).request, prompt=PROMPTS[1], steps=9),
        replace(Case("euler-a", guidance=4.0, seed=12).request, prompt=PROMPTS[2], steps=4),
    ]
    together = pipe.run(*requests).images
    alone = np.concatenate([pipe.run(request).images for request in requests])
    return int(np.abs(together.astype(np.int16) - alone).max())


def psnr(a: Images, b: Images) -> float:
    """Peak signal-to-noise ratio in dB of the worst image of a batch; infinite where nothing differs."""
    error = np.square(a.astype(np.float64) - b).mean(axis=(1, 2, 3)).max()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
