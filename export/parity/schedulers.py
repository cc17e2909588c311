"""The diffusers scheduler that each sampler must equal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Reference:
    """A scheduler class, the settings that make it this sampler, and what its `step` must be told.

    `stochastic` samplers draw fresh noise while they run.
    """

    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    eta: float = 0.0
    stochastic: bool = False

    def build(self, config: Mapping[str, Any]) -> Any:
        """The scheduler, from a checkpoint's scheduler configuration."""
        import diffusers  # here: the table is of use without torch

        return getattr(diffusers, self.scheduler).from_config(config, **self.settings)


_LINEAR = {"clip_sample": False}  # clipping is not linear, and the latents of Stable Diffusion are unbounded

REFERENCES: Mapping[str, Reference] = {
    "euler": Reference("EulerDiscreteScheduler"),
    "euler-a": Reference("EulerAncestralDiscreteScheduler", stochastic=True),
    "ddim": Reference("DDIMScheduler", _LINEAR),
    "ddpm": Reference("DDPMScheduler", _LINEAR, stochastic=True),
    "heun": Reference("HeunDiscreteScheduler", _LINEAR),
    "dpm2": Reference("KDPM2DiscreteScheduler"),
    "lms": Reference("LMSDiscreteScheduler"),
    "pndm": Reference("PNDMScheduler", {"skip_prk_steps": True}),
    "dpmpp-2m": Reference("DPMSolverMultistepScheduler"),
    "dpmpp-2m-sde": Reference("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, stochastic=True),
    "dpmpp-3m": Reference("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpmpp-2s": Reference("DPMSolverSinglestepScheduler"),
    "unipc": Reference("UniPCMultistepScheduler"),
    "deis": Reference("DEISMultistepScheduler"),
    "lcm": Reference("LCMScheduler", _LINEAR, stochastic=True),
    "tcd": Reference("TCDScheduler", _LINEAR, eta=0.3, stochastic=True),
    "flow-euler": Reference("FlowMatchEulerDiscreteScheduler"),
    "flow-heun": Reference("FlowMatchHeunDiscreteScheduler"),
}
