"""Whole images by diffusers' own pipeline: same prompt, seed, sampler and steps."""

import inspect
from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from latentrt.export.checkpoint.family import read_family, scheduler_config
from latentrt.export.checkpoint.folder import Checkpoint, tokenizer_of
from latentrt.export.parity.cases import NEGATIVE, Case
from latentrt.export.parity.pictures import control_picture, mask, photo
from latentrt.export.quiet import quiet
from latentrt.export.references.schedulers import REFERENCES
from latentrt.output.result import Images


def reference_pipeline(checkpoint: Checkpoint, *, device: str = "cpu") -> DiffusionPipeline:
    """The pipeline of diffusers that the checkpoint names, in float32 on `device`, without its progress bars."""
    kind = getattr(diffusers, str(checkpoint.index["_class_name"]))
    taken = inspect.signature(kind.__init__).parameters
    parts: dict[str, Any] = {part: checkpoint.load(part) for part in checkpoint.parts}
    parts |= {tokenizer_of(part): checkpoint.tokenizer(tokenizer_of(part)) for part in checkpoint.text_encoders}
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
    """The samplers with which the pipeline of diffusers makes images of texts, or with a photo and a mask: none where
    it asks for a photo alone, and only its own where it hands the scheduler more than the number of steps."""
    taken = inspect.signature(pipeline.__call__).parameters
    if "image" in taken and "mask_image" not in taken:
        return []
    own = type(pipeline.scheduler).__name__
    return [name for name in samplers if REFERENCES[name].scheduler == own or "original_inference_steps" not in taken]


def reference_images(pipeline: DiffusionPipeline, checkpoint: Checkpoint, case: Case) -> Images:
    """What diffusers makes of a case, uint8 [B, H, W, 3]."""
    reference = REFERENCES[case.sampler]
    taken = inspect.signature(pipeline.__call__).parameters
    optional: dict[str, Any] = {"negative_prompt": [NEGATIVE] * len(case.prompts), "eta": reference.eta}
    if case.control is not None:
        shown = [Image.fromarray(control_picture(case.size))] * len(case.prompts)
        optional |= {"control_image" if "control_image" in taken else "image": shown}
    if case.painted:  # one of each for every image, or all share the draw of the first
        given = {"image": Image.fromarray(photo(case.size)), "mask_image": Image.fromarray(mask(case.size))}
        optional |= {name: [picture] * len(case.prompts) for name, picture in given.items()} | {"strength": 1.0}
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
    pixels: Images = (images * 255).round().astype(np.uint8)
    return pixels
