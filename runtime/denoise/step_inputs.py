"""What the step's graph is fed for a batch: what stands for all calls, and a row for each."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from latentrt.arrays import FloatArray
from latentrt.denoise.batch import Plan
from latentrt.denoise.initial_latents import start_inputs
from latentrt.family import Family
from latentrt.images.framing import Size
from latentrt.images.photo import Encode
from latentrt.samplers.torch_rng import Generator
from latentrt.text.conditioning import Conditioning


def step_inputs(
    plan: Plan, family: Family, conditioning: Conditioning, generators: Sequence[Generator], encode: Encode
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Every input of the step graph: what stands for all calls, with the first state, and a row for each call."""
    columns = plan.columns
    batch, shape = len(plan.image_plans), latent_shape(plan.size, family)
    starts = [image_plan.initial for image_plan in plan.image_plans]
    feed = {
        **start_inputs(starts, shape=shape, extra=plan.extra, generators=generators, encode=encode),
        **conditioning.inputs(),
        **family_inputs(plan, family),
        "rescale": plan.rescale,
    }
    rows = {"timestep": columns.timestep, "scalings": columns.scalings, "transition": columns.transition}
    if "guidance" in plan.changing:
        rows["guidance"] = plan.guidance
    else:
        feed["guidance"] = plan.guidance[0]
    if "noise" in plan.changing:
        rows["noise"] = step_noise(columns.draws, shape, generators)
    else:
        feed["noise"] = np.zeros((batch, *shape), np.float32)
    return feed, rows


def family_inputs(plan: Plan, family: Family) -> dict[str, FloatArray]:
    """Inputs of the step that only some families have, and that need neither texts nor pictures."""
    branches, batch = plan.branches, len(plan.image_plans)
    feed = {}
    if family.time_ids:
        rows = [time_ids(plan.size, family, prompt=branch > 0 or not plan.guided) for branch in range(branches)]
        feed["time_ids"] = np.repeat(np.stack(rows)[:, None], batch, axis=1)
    if family.guidance_embedding:
        feed["guidance_embed"] = np.array([image_plan.guidance_embed for image_plan in plan.image_plans], np.float32)
    if family.blocks:
        gates = feed["block_gate"] = np.ones((branches, family.blocks), np.float32)
        if plan.skipped:
            gates[-2, list(plan.skipped)] = 0
    return feed


def time_ids(size: Size, family: Family, *, prompt: bool) -> FloatArray:
    """What an image tells of its size and quality, [n]: as large as it is asked for, cropped nowhere.

    Source: Podell et al. 2023, arXiv 2307.01952, section 2.2.

    Args:
        prompt: whether it is the prompt's branch, not a negative one.
    """
    width, height = size
    values = {
        "original_height": height,
        "original_width": width,
        "crop_top": 0,
        "crop_left": 0,
        "target_height": height,
        "target_width": width,
        "aesthetic_score": family.aesthetic_scores[prompt],
    }
    return np.array([values[name] for name in family.time_ids], np.float32)


def step_noise(
    draws: npt.NDArray[np.bool_], shape: tuple[int, int, int], generators: Sequence[Generator]
) -> FloatArray:
    """[calls, B, C, h, w]: each image's noise from its own generator, call by call; zeros where its row draws none.

    Args:
        generators: of each image, after its start noise.
    """
    noise = np.zeros((*draws.shape, *shape), np.float32)
    for call, image in np.argwhere(draws).tolist():
        noise[call, image] = generators[image].randn((1, *shape))[0]
    return noise


def latent_shape(size: Size, family: Family) -> tuple[int, int, int]:
    """(C, h, w) of an image of `size` (width, height) pixels."""
    width, height = size
    return family.latent_channels, height // family.vae_factor, width // family.vae_factor
