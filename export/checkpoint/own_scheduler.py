"""Whether a bundle's sampler equals the scheduler that its checkpoint names: both run side by side, without a network.

The scheduler is diffusers' own, made of the checkpoint's own configuration, so that a setting which nobody knows here
shows as a difference in numbers.
"""

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import diffusers
import numpy as np
import torch

from latentrt.export.messages import first_line
from latentrt.samplers import StepTable, step_table
from latentrt.samplers.noise_schedule import NoiseSchedule
from latentrt.samplers.torch_rng import Generator

_SHAPE = (1, 4, 8, 8)
_SEED = 7

# Relative, of each latent and input. diffusers steps in float32; the first levels of `beta` nearly coincide, and
# magnify a unit in the last place.
_LIMIT, _LIMIT_OF_BETA = 2e-3, 2e-2
_LIMIT_OF_TIMESTEPS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnScheduler:
    """What became of a checkpoint's scheduler.

    Args:
        sampler: the sampler that stands for it.
        differs: in what they differ, in words; None: in nothing.
    """

    scheduler: str
    sampler: str
    differs: str | None

    @property
    def text(self) -> str:
        """One line for people."""
        if self.differs is None:
            return f"{self.scheduler} is the sampler {self.sampler}"
        return f"{self.scheduler} has no equal here: {self.sampler} is the nearest sampler, {self.differs}"

    def row(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def compare_with_own(config: Mapping[str, Any], noise: NoiseSchedule, *, steps: int) -> OwnScheduler:
    """Runs a checkpoint's own scheduler and the sampler that stands for it, on the same random network outputs.

    Args:
        config: the scheduler's configuration, as the pipeline uses it.
    """
    sampler = noise.default_sampler
    table = step_table(noise, sampler=sampler, steps=steps)
    try:
        scheduler = getattr(diffusers, noise.scheduler).from_config(config)
        scheduler.set_timesteps(steps)
        differs = _difference(scheduler, table, noise)
    except Exception as error:  # whatever a scheduler of another version says about its configuration
        differs = f"and the two could not be compared ({first_line(error)})"
    return OwnScheduler(scheduler=noise.scheduler, sampler=sampler, differs=differs)


def _difference(scheduler: Any, table: StepTable, noise: NoiseSchedule) -> str | None:
    told = scheduler.timesteps.double().numpy()
    if len(told) != len(table):
        return f"with {len(table)} calls of the network for {len(told)}"
    if (off := float(np.abs(told - table.timestep).max())) > _LIMIT_OF_TIMESTEPS:
        return f"whose timesteps are up to {off:.3g} away"
    start = float(getattr(scheduler, "init_noise_sigma", 1.0))
    error = max(abs(table.start_noise / start - 1), _worst(scheduler, table))
    return None if error <= (_LIMIT_OF_BETA if noise.ramp == "beta" else _LIMIT) else f"{error:.1%} away"


def _worst(scheduler: Any, table: StepTable) -> float:
    """The largest difference of a latent or of a network's input, as a share of the largest value beside it."""
    random, fresh = Generator(_SEED), Generator(_SEED + 1)
    settings = {"generator": torch.Generator().manual_seed(_SEED + 1), "eta": 0.0}
    taken = inspect.signature(scheduler.step).parameters
    settings = {name: value for name, value in settings.items() if name in taken}
    x = table.start_noise * torch.from_numpy(random.randn(_SHAPE))
    state = np.zeros((4, *_SHAPE))
    state[0] = x.double().numpy()
    errors = []
    for k, time in enumerate(scheduler.timesteps):
        output = random.randn(_SHAPE)
        c_in, c_skip, c_out = table.scalings[k]
        errors.append(_error(scheduler.scale_model_input(x, time) if _scales(scheduler) else x, c_in * state[0]))
        x = scheduler.step(torch.from_numpy(output), time, x, **settings).prev_sample
        drawn = fresh.randn(_SHAPE) if table.draws_noise[k] else np.zeros(_SHAPE)
        state = np.tensordot(table.transition[k], np.stack([*state, c_skip * state[0] + c_out * output, drawn]), axes=1)
        errors.append(_error(x, state[0]))
    return max(errors)


def _scales(scheduler: Any) -> bool:
    return hasattr(scheduler, "scale_model_input")


def _error(theirs: torch.Tensor, ours: Any) -> float:
    reference = theirs.double().numpy()
    return float(np.abs(ours - reference).max() / np.abs(reference).max())
