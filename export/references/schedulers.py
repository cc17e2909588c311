"""The diffusers scheduler that each sampler must equal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentrt.samplers.noise_schedule import NoiseSchedule


@dataclass(frozen=True, slots=True)
class SchedulerReference:
    """A scheduler class, the settings that make it this sampler, and what its `step` must be told.

    `named` are further settings that the sampler's name stands for, unless it is the checkpoint's own, which says
    itself how it steps.
    """

    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, Any] = field(default_factory=dict)
    eta: float = 0.0

    def build(self, config: Mapping[str, Any]) -> Any:
        """The scheduler, from a checkpoint's scheduler configuration."""
        import diffusers  # here: the table is of use without torch

        own = REFERENCES[NoiseSchedule.from_config(config).default_sampler]
        named = {} if own is self and own.scheduler == config["_class_name"] else self.named
        return as_unets_ask(getattr(diffusers, self.scheduler).from_config(config, **self.settings, **named))


def as_unets_ask(scheduler: Any) -> Any:
    """A scheduler with what the pipelines of U-Nets call and those of flow models lack: a flow takes its input as it is
    and begins with noise of deviation 1."""
    if not hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input = lambda sample, _: sample
        scheduler.init_noise_sigma = 1.0
    return scheduler


_LINEAR = {"clip_sample": False}  # clipping is not linear, and the latents of Stable Diffusion are unbounded

_FINAL = {"lower_order_final": True, "solver_order": 2}
_DPM = {**_FINAL, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "euler_at_final": False}

REFERENCES: Mapping[str, SchedulerReference] = {
    "euler": SchedulerReference("EulerDiscreteScheduler"),
    "euler-a": SchedulerReference("EulerAncestralDiscreteScheduler"),
    "ddim": SchedulerReference("DDIMScheduler", _LINEAR),
    "ddpm": SchedulerReference("DDPMScheduler", _LINEAR),
    "heun": SchedulerReference("HeunDiscreteScheduler", _LINEAR),
    "dpm2": SchedulerReference("KDPM2DiscreteScheduler"),
    "dpm2-a": SchedulerReference("KDPM2AncestralDiscreteScheduler"),
    "lms": SchedulerReference("LMSDiscreteScheduler"),
    "pndm": SchedulerReference("PNDMScheduler", {"skip_prk_steps": True}),
    "dpmpp-2m": SchedulerReference("DPMSolverMultistepScheduler", named=_DPM),
    "dpmpp-2m-sde": SchedulerReference(
        "DPMSolverMultistepScheduler", named={**_DPM, "algorithm_type": "sde-dpmsolver++"}
    ),
    "dpmpp-3m": SchedulerReference("DPMSolverMultistepScheduler", named={**_DPM, "solver_order": 3}),
    "dpmpp-2s": SchedulerReference("DPMSolverSinglestepScheduler", named=_DPM),
    "unipc": SchedulerReference("UniPCMultistepScheduler", named={**_FINAL, "solver_type": "bh2"}),
    "deis": SchedulerReference(
        "DEISMultistepScheduler", named={**_FINAL, "algorithm_type": "deis", "solver_type": "logrho"}
    ),
    "lcm": SchedulerReference("LCMScheduler", _LINEAR),
    "tcd": SchedulerReference("TCDScheduler", _LINEAR, eta=0.3),
    "flow-euler": SchedulerReference("FlowMatchEulerDiscreteScheduler"),
    "flow-heun": SchedulerReference("FlowMatchHeunDiscreteScheduler"),
}
