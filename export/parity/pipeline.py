"""Whole images against diffusers' own pipeline: same prompt, seed, sampler and steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline

from latentrt import Pipeline, Request
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.family import scheduler_config
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


def reference_pipeline(checkpoint: Checkpoint, *, device: str = "cpu") -> StableDiffusionPipeline:
    """diffusers' pipeline in float32 on `device`, without its progress bars."""
    with quiet():
        pipeline = StableDiffusionPipeline(
            vae=checkpoint.vae(),
            text_encoder=checkpoint.text_encoder(),
            tokenizer=checkpoint.tokenizer(),
            unet=checkpoint.unet(),
            scheduler=REFERENCES["pndm"].build(scheduler_config(checkpoint)),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def reference_images(pipeline: StableDiffusionPipeline, checkpoint: Checkpoint, case: Case) -> Images:
    """What diffusers makes of a case, uint8 [B, H, W, 3]."""
    reference = REFERENCES[case.sampler]
    with quiet():
        pipeline.scheduler = reference.build(scheduler_config(checkpoint))
        images = pipeline(
            list(case.prompts),
            negative_prompt=[NEGATIVE] * len(case.prompts),
            width=case.size[0],
            height=case.size[1],
            num_inference_steps=case.steps,
            guidance_scale=case.guidance,
            eta=reference.eta,
            generator=[torch.Generator().manual_seed(case.seed + i) for i in range(len(case.prompts))],
            output_type="np",
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
