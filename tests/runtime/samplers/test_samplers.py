"""Samplers against diffusers: exact coefficients in float64, by the basis-vector oracle (oracle.py)."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import replace as changed
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Trace, discrepancy, steps_of, trace_scheduler, trace_table, widen

from latentrt.errors import RequestError
from latentrt.samplers import StepTable, sampler_names, schedule_names, step_table
from latentrt.samplers.calls import SamplerRun
from latentrt.samplers.levels import CLEAN, Level, TrainedLevels, flow, variance_exploding, variance_preserving
from latentrt.samplers.noise_schedule import NoiseSchedule
from latentrt.samplers.registry import SAMPLERS

diffusers.logging.set_verbosity_error()
torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

STEPS = (1, 2, 5, 20, 50)
RAMPS = ("karras", "exponential", "beta")
SPACINGS = ("linspace", "leading", "trailing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The diffusers scheduler that a sampler equals.

    Attributes:
        scheduler: class name; `pins` are the settings that our name stands for, `step` arguments of a step.
        slots: latents of state in use, the memory that the sampler needs.
        tolerance: of each coefficient, as a share of the largest, formulas on the same levels.
    """

    scheduler: str
    slots: int
    tolerance: float
    pins: Mapping[str, Any] = field(default_factory=dict)
    step: Mapping[str, Any] = field(default_factory=dict)

    def prepared(self, config: str, steps: int, **settings: Any) -> Any:
        scheduler = built(self.scheduler, config, **self.pins, **settings)
        scheduler.set_timesteps(steps)
        return scheduler


def built(scheduler: str, config: str, **settings: Any) -> Any:
    """A fresh scheduler. Some spread a thousand steps when they are made, which takes seconds: made once."""
    return copy.deepcopy(_built(scheduler, config, tuple(settings.items())))


@functools.cache
def _built(scheduler: str, config: str, settings: tuple[tuple[str, Any], ...]) -> Any:
    return getattr(diffusers, scheduler).from_config(CONFIGS[config], **dict(settings))


SDE = {"algorithm_type": "sde-dpmsolver++"}
PEERS = {
    "euler": Peer(scheduler="EulerDiscreteScheduler", slots=1, tolerance=1e-12),
    "euler-a": Peer(scheduler="EulerAncestralDiscreteScheduler", slots=1, tolerance=1e-12),
    "ddim": Peer(scheduler="DDIMScheduler", slots=1, tolerance=1e-12),
    "ddim eta 0.7": Peer(scheduler="DDIMScheduler", slots=1, tolerance=1e-12, step={"eta": 0.7}),
    "ddim eta 1": Peer(scheduler="DDIMScheduler", slots=1, tolerance=1e-12, step={"eta": 1.0}),
    # Variances are differences of numbers near 1: 1.3e-12 measured with the cosine schedule.
    "ddpm": Peer(scheduler="DDPMScheduler", slots=1, tolerance=1e-11),
    "heun": Peer(scheduler="HeunDiscreteScheduler", slots=2, tolerance=1e-12),
    "dpm2": Peer(scheduler="KDPM2DiscreteScheduler", slots=2, tolerance=1e-12),
    # diffusers takes the way down from a difference of squares, which loses digits where steps are large.
    "dpm2-a": Peer(scheduler="KDPM2AncestralDiscreteScheduler", slots=2, tolerance=1e-7),
    "lms": Peer(scheduler="LMSDiscreteScheduler", slots=4, tolerance=1e-12),
    "pndm": Peer(scheduler="PNDMScheduler", slots=4, tolerance=1e-12, pins={"skip_prk_steps": True}),
    "dpmpp-2m": Peer(scheduler="DPMSolverMultistepScheduler", slots=2, tolerance=1e-12),
    "dpmpp-2m-sde": Peer(scheduler="DPMSolverMultistepScheduler", slots=2, tolerance=1e-12, pins=SDE),
    # diffusers takes differences of nearly equal exponentials where steps are small; ours are phi functions.
    "dpmpp-3m": Peer(scheduler="DPMSolverMultistepScheduler", slots=3, tolerance=1e-10, pins={"solver_order": 3}),
    "dpmpp-2s": Peer(scheduler="DPMSolverSinglestepScheduler", slots=2, tolerance=1e-12),
    "unipc": Peer(scheduler="UniPCMultistepScheduler", slots=3, tolerance=1e-11),
    "deis": Peer(scheduler="DEISMultistepScheduler", slots=2, tolerance=1e-11),
    "lcm": Peer(scheduler="LCMScheduler", slots=1, tolerance=1e-12),
    "tcd": Peer(scheduler="TCDScheduler", slots=1, tolerance=1e-12),
    "tcd eta 0": Peer(scheduler="TCDScheduler", slots=1, tolerance=1e-12, step={"eta": 0.0}),
    "tcd eta 1": Peer(scheduler="TCDScheduler", slots=1, tolerance=1e-12, step={"eta": 1.0}),
    "flow-euler": Peer(scheduler="FlowMatchEulerDiscreteScheduler", slots=1, tolerance=1e-12),
    "flow-heun": Peer(scheduler="FlowMatchHeunDiscreteScheduler", slots=2, tolerance=1e-12),
}

SD15 = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": SD15,
    "linspace": {**SD15, "timestep_spacing": "linspace"},
    "leading": {**SD15, "timestep_spacing": "leading"},
    "trailing": {**SD15, "timestep_spacing": "trailing", "set_alpha_to_one": True},
    "v": {**SD15, "prediction_type": "v_prediction"},
    "sample": {**SD15, "prediction_type": "sample"},
    "zero-snr": {
        **SD15,
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    "cosine": {**SD15, "beta_schedule": "squaredcos_cap_v2"},
    "sigma-min": {**SD15, "final_sigmas_type": "sigma_min"},
    "fixed-large": {**SD15, "variance_type": "fixed_large"},
    "fixed-small-log": {**SD15, "variance_type": "fixed_small_log"},
    "flow": FLOW,
    "flow unshifted": {**FLOW, "shift": 1.0},
}
OTHER_CONFIGS = tuple(name for name in CONFIGS if name != "sd15" and not name.startswith(("flow", "fixed")))

DPM2 = ("dpm2", "dpm2-a")
# (sampler, what it would be compared on): why diffusers has nothing to compare with.
_IGNORES_ZERO_SNR = "the diffusers class ignores rescale_betas_zero_snr; ours does not"
_NO_RAMPS = "the diffusers class has no ramps of sigma"
_NO_SPACING = "the diffusers class has no timestep spacing"
NO_COUNTERPART = {
    **{(name, "zero-snr"): _IGNORES_ZERO_SNR for name in ("heun", *DPM2, "lms", "pndm", "dpmpp-2s", "deis")},
    ("euler-a", "sample"): "not implemented in diffusers",
    **{(name, "sample"): "not implemented in diffusers" for name in DPM2},
    ("pndm", "sample"): "refused by diffusers, and by us",
    **{
        (name, ramp): _NO_RAMPS
        for name in ("euler-a", "ddim", "ddpm", "pndm", "lcm", "tcd", "flow-heun")
        for ramp in RAMPS
    },
    **{(name, spacing): _NO_SPACING for name in ("dpmpp-2s", "lcm", "tcd") for spacing in SPACINGS},
}


def sampler_of(row: str) -> str:
    return row.split()[0]


def skip_without_counterpart(row: str, what: str) -> None:
    if reason := NO_COUNTERPART.get((sampler_of(row), what)):
        pytest.skip(reason)


def call_of_step(row: str, begin: int) -> int:
    return 2 * begin if getattr(diffusers, PEERS[row].scheduler).order == 2 else begin


def traced(table: StepTable) -> Trace:
    return trace_table(table.scalings, table.transition, table.draws_noise)


def assert_equal(ours: Trace, theirs: Trace, tolerance: float) -> None:
    assert np.array_equal(ours.draws, theirs.draws)
    assert discrepancy(ours.inputs, theirs.inputs) <= tolerance
    assert discrepancy(ours.samples, theirs.samples) <= tolerance


def middles_of(scheduler: Any) -> np.ndarray:
    """The middle levels of ancestral DPM2, which diffusers takes from float32 differences: here as widened."""
    return widen(scheduler).sigmas_interpol.numpy()[:-3:2]


def run_on_levels_of(scheduler: Any, sampler: str, noise: NoiseSchedule, eta: float | None) -> SamplerRun:
    """The scheduler's own levels, widened to float64, as a run of ours."""
    timesteps = scheduler.timesteps.double().tolist()
    widen(scheduler)
    if SAMPLERS[sampler].grid.__name__ == "over_timesteps":
        trained = TrainedLevels(scheduler.alphas_cumprod.numpy())
        if sampler == "pndm" and len(timesteps) > 1:
            del timesteps[1]
        end = CLEAN
        if sampler in ("ddim", "pndm"):
            signal = float(scheduler.final_alpha_cumprod)
            end = Level(math.sqrt(signal), math.sqrt(1 - signal))
        elif sampler == "tcd":
            end = trained.level(0)
        levels = [*map(trained.level, timesteps), end]
        stride = None if sampler in ("lcm", "tcd", "ddpm") else len(trained) // len(timesteps)
        return SamplerRun(levels, timesteps, noise, trained, eta=eta or 0.0, stride=stride)
    space = {"over_sigma": variance_exploding, "over_log_snr": variance_preserving, "over_flow": flow}
    levels = [*map(space[SAMPLERS[sampler].grid.__name__], steps_of(scheduler).tolist())]
    own = timesteps[:1] + timesteps[1::2] if len(timesteps) >= len(levels) else timesteps
    trained = None if noise.is_flow else TrainedLevels(scheduler.alphas_cumprod.numpy())
    return SamplerRun(levels, own, noise, trained, solver=SAMPLERS[sampler].solver)


FORMULAS = [
    *((row, config, steps) for row in PEERS if "flow" not in row for config in ("sd15",) for steps in STEPS),
    *((row, config, 20) for row in PEERS if "flow" not in row for config in OTHER_CONFIGS),
    *(("ddpm", config, 20) for config in ("fixed-large", "fixed-small-log")),
    *((row, config, 7) for row in PEERS if "flow" not in row for config in OTHER_CONFIGS),
    *((row, config, n) for row in PEERS if "flow" in row for config in CONFIGS if "flow" in config for n in STEPS),
]


@pytest.mark.parametrize(("row", "config", "steps"), FORMULAS)
def test_formula_on_the_levels_of_diffusers(row: str, config: str, steps: int) -> None:
    skip_without_counterpart(row, config)
    if (row, config) == ("ddim eta 1", "zero-snr"):
        pytest.skip("diffusers takes the root of a rounding error here: 1e-8 or not a number")
    peer, sampler = PEERS[row], sampler_of(row)
    noise = NoiseSchedule.from_config(CONFIGS[config])
    eta = peer.step.get("eta", SAMPLERS[sampler].eta)
    run = run_on_levels_of(peer.prepared(config, steps), sampler, noise, eta)
    calls = list(SAMPLERS[sampler].calls(run))
    ours = trace_table(
        np.array([call.level.scalings(noise.prediction_type) for call in calls]),
        np.stack([call.transition for call in calls]),
        np.array([call.draws for call in calls]),
    )
    theirs = trace_scheduler(peer.prepared(config, steps), step=peer.step)
    assert_equal(ours, theirs, peer.tolerance)


SCHEDULED = [
    (row, schedule, steps)
    for row in PEERS
    if " " not in row
    for schedule in schedule_names()
    if not ("flow" in row and schedule in SPACINGS)
    for steps in STEPS
]


@pytest.mark.parametrize(("row", "schedule", "steps"), SCHEDULED)
def test_schedule(row: str, schedule: str, steps: int) -> None:
    """Levels to 1e-6 relative; timesteps equal in float32, but for those that diffusers reads off logarithms in
    float32, whose last bit depends on the processor: ramps, and the middle ones of DPM2 (2e-4 of a timestep);
    start noise to 1e-6."""
    skip_without_counterpart(row, schedule)
    if row == "dpm2-a" and 1 < steps <= 5:
        pytest.skip("diffusers' way down is a rounding error of float32 where steps are so large")
    config = "flow" if "flow" in row else "sd15"
    asked = {f"use_{schedule}_sigmas": True} if schedule in RAMPS else {}
    if schedule in SPACINGS:
        asked = {"timestep_spacing": schedule}
    scheduler = PEERS[row].prepared(config, steps, **asked)
    noise = NoiseSchedule.from_config(CONFIGS[config])
    table = step_table(noise, sampler=row, steps=steps, schedule=schedule)

    off = np.abs(table.timestep - scheduler.timesteps.float().double().numpy())
    assert (off <= 2e-4).all()
    if schedule not in RAMPS:
        assert (off[::2] == 0).all() if row in DPM2 else (off == 0).all()
    assert table.start_noise == pytest.approx(float(getattr(scheduler, "init_noise_sigma", 1.0)), rel=1e-6)
    assert table.start_signal == 0
    if hasattr(scheduler, "sigmas"):
        ratios = table.levels[:, 1] / (1 if "flow" in row else table.levels[:, 0])
        expected = scheduler.sigmas.double().numpy()
        if row in DPM2:
            middle = scheduler.sigmas_interpol.double().numpy()[1:-2:2] if row == "dpm2" else middles_of(scheduler)
            np.testing.assert_allclose(ratios[1:-1:2], middle[: steps - 1], rtol=1e-6)
            ratios, expected = ratios[::2], np.append(expected[:1], expected[1:-3:2])
            ratios = np.append(ratios[:steps], 0.0)
            expected = np.append(expected[:steps], 0.0)
        np.testing.assert_allclose(ratios, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", ("default", *RAMPS))
@pytest.mark.parametrize("row", PEERS)
def test_whole_table(row: str, schedule: str) -> None:
    """Schedule and formula together, 20 steps. Where a level is an ulp of float32 off (the square root of a
    torch build need not be rounded correctly), coefficients follow: 1e-4, and 1e-2 for `beta`, whose first
    levels nearly coincide."""
    skip_without_counterpart(row, schedule)
    peer, config = PEERS[row], "flow" if "flow" in row else "sd15"
    asked = {} if schedule == "default" else {f"use_{schedule}_sigmas": True}
    table = step_table(
        NoiseSchedule.from_config(CONFIGS[config]),
        sampler=sampler_of(row),
        steps=20,
        schedule=schedule,
        eta=peer.step.get("eta"),
    )
    theirs = trace_scheduler(peer.prepared(config, 20, **asked), step=peer.step)
    assert_equal(traced(table), theirs, 1e-2 if schedule == "beta" else 1e-4)


@pytest.mark.parametrize("strength", (0.05, 0.33, 0.6, 1.0))
@pytest.mark.parametrize("row", PEERS)
def test_start_from_an_image(row: str, strength: float) -> None:
    """The step that an image-to-image pipeline begins at, the latent it begins with, and the steps after it
    (1e-4: as the whole table)."""
    peer, config = PEERS[row], "flow" if "flow" in row else "sd15"
    steps = 20
    begin = int(steps - steps * strength) if "flow" in row else steps - int(steps * strength)
    table = step_table(
        NoiseSchedule.from_config(CONFIGS[config]),
        sampler=sampler_of(row),
        steps=steps,
        strength=strength,
        eta=peer.step.get("eta"),
    )
    scheduler = peer.prepared(config, steps)
    first = call_of_step(row, begin)
    assert np.allclose(table.timestep, scheduler.timesteps[first:].double().numpy(), rtol=0, atol=2e-4)
    theirs = trace_scheduler(scheduler, begin=first, step=peer.step)
    assert_equal(traced(table), theirs, 1e-4)

    signal, noise = torch.eye(2, dtype=torch.float64)[:, None]
    if "flow" in row:
        sigma = peer.prepared(config, steps).sigmas[first].double()
        start = sigma * noise + (1 - sigma) * signal
    else:
        scheduler = peer.prepared(config, steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        start = scheduler.add_noise(signal, noise, scheduler.timesteps[first : first + 1])
    assert [table.start_signal, table.start_noise] == pytest.approx(start[0].tolist(), rel=1e-6)


LEVELS = (12.0, 7.5, 3.0, 1.2, 0.4, 0.1, 0.0)
TIMES = (951, 800, 640, 333, 120, 7)
EXPLICIT = [
    ("euler", {"sigmas": LEVELS}),
    *((row, {"timesteps": TIMES}) for row in ("euler", "heun", "dpmpp-2m", "dpmpp-3m", "dpmpp-2s")),
    *((row, {"timesteps": TIMES}) for row in ("dpmpp-2m-sde", "ddpm", "lcm", "tcd")),
]


@pytest.mark.parametrize(("row", "levels"), EXPLICIT)
def test_explicit_levels(row: str, levels: dict[str, Any]) -> None:
    """Coefficients to 1e-4, as the whole table; timesteps to 1e-6 relative (float32 logarithms)."""
    peer = PEERS[row]
    scheduler = built(peer.scheduler, "sd15", **peer.pins)
    scheduler.set_timesteps(**{name: list(values) for name, values in levels.items()})
    table = step_table(NoiseSchedule.from_config(SD15), sampler=row, **levels)
    np.testing.assert_allclose(table.timestep, scheduler.timesteps.double().numpy(), rtol=1e-6)
    assert_equal(traced(table), trace_scheduler(scheduler, step=peer.step), 1e-4)


def table_for(sampler: str, schedule: str, steps: int, **arguments: Any) -> StepTable | None:
    """The table, or None for the two kinds of combination that are refused."""
    config = FLOW if sampler.startswith("flow") else SD15
    if sampler.startswith("flow") and schedule in ("leading", "trailing"):
        return None
    if sampler == "pndm" and schedule in RAMPS:
        return None
    noise = NoiseSchedule.from_config(config)
    return step_table(noise, sampler=sampler, steps=steps, schedule=schedule, **arguments)


any_sampler = st.sampled_from(sampler_names())
any_schedule = st.sampled_from(schedule_names())
any_steps = st.integers(1, 50)


@settings(max_examples=300, deadline=None)
@given(any_sampler, any_schedule, any_steps)
def test_tables_are_finite_and_use_no_memory_before_it_is_written(sampler: str, schedule: str, steps: int) -> None:
    if (table := table_for(sampler, schedule, steps)) is None:
        return
    for values in (table.timestep, table.scalings, table.transition, table.levels):
        assert np.isfinite(values).all()
    assert table.transition.shape == (len(table), 4, 6)
    assert table.levels.shape == (len(table) + 1, 2)
    used = np.abs(table.transition).sum(axis=(0, 2)) > 0
    assert used.sum() <= PEERS[sampler].slots
    assert not table.transition[~table.draws_noise, :, 5].any()
    # What the first memory would contribute to any latent: state over the basis of the four first slots.
    state = np.eye(4)
    for (_, c_skip, _), transition in zip(table.scalings, table.transition, strict=True):
        state = transition @ np.vstack([state, c_skip * state[0], np.zeros(4)])
        assert not state[0, 1:].any()


@settings(max_examples=300, deadline=None)
@given(any_sampler, any_schedule, any_steps, st.floats(-3, 3))
def test_a_known_image_is_reached(sampler: str, schedule: str, steps: int, image: float) -> None:
    """If the network always names the same image, the run ends at it: at `alpha * image` plus noise."""
    if sampler in ("ddim", "pndm") and (schedule == "linspace" or (schedule == "trailing" and 1000 % steps)):
        # As in diffusers, steps end one stride below their start, not where the next begins.
        return
    if sampler == "lcm" and schedule != "default":
        # Near timestep 0, where only other schedules go, its weights c_skip and c_out do not add up to 1.
        return
    if (table := table_for(sampler, schedule, steps, strength=1.0)) is None:
        return
    # Image and start noise apart; fresh noise never carries the image.
    state = np.zeros((4, 2))
    state[0] = table.start_signal * image, table.start_noise
    for transition in table.transition:
        state = transition @ np.vstack([state, [image, 0.0], np.zeros(2)])
    # LCM mixes in a share of the latent by design: below 1e-5 at the timesteps it was distilled at.
    tolerance = 1e-4 if sampler == "lcm" else 1e-9
    assert state[0, 0] == pytest.approx(table.levels[-1, 0] * image, abs=tolerance * max(1, abs(image)))
    if not table.draws_noise.any() and sampler not in ("lcm", "tcd"):
        assert state[0, 1] == pytest.approx(table.levels[-1, 1], abs=tolerance)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.05, 80), min_size=2, max_size=12, unique=True))
def test_ddim_is_euler_in_sigma_space(sigmas: list[float]) -> None:
    """The same run in two spaces: latents of DDIM are those of Euler times alpha."""
    falling = [*sorted(sigmas, reverse=True), 0.0]
    if min(a - b for a, b in pairwise(falling)) < 1e-3:
        return
    noise = NoiseSchedule.from_config(SD15)
    euler = step_table(noise, sampler="euler", sigmas=falling)
    ddim = step_table(noise, sampler="ddim", sigmas=falling)
    ours, theirs = traced(ddim).samples, traced(euler).samples
    theirs = ddim.levels[1:, :1] * theirs
    theirs[:, 0] /= ddim.levels[0, 0]
    assert discrepancy(ours, theirs) <= 1e-12


SD = NoiseSchedule.from_config(SD15)
RECTIFIED = NoiseSchedule.from_config(FLOW)
SAMPLE = changed(SD, prediction_type="sample")
ZERO_SNR = changed(SD, rescale_betas_zero_snr=True, timestep_spacing="trailing")
REFUSED = [
    (SD, {"sampler": "dpm++2m", "steps": 20}, "did you mean dpmpp-2m"),
    (SD, {"sampler": "euler", "steps": 20, "schedule": "kerras"}, "did you mean karras"),
    (SD, {"sampler": "euler", "steps": 0}, "at least 1"),
    (SD, {"sampler": "euler"}, "a number of steps"),
    (SD, {"sampler": "ddim", "steps": 1001}, "at most 1000"),
    (SD, {"sampler": "ddim", "steps": 1000}, "between 999 and 0"),
    (SD, {"sampler": "lcm", "steps": 51}, "at most 50"),
    (SD, {"sampler": "euler", "sigmas": [3.0, 3.0, 0.0]}, "each below the one before"),
    (SD, {"sampler": "euler", "sigmas": [3.0]}, "at least 2 numbers"),
    (SD, {"sampler": "euler", "sigmas": [math.inf, 0.0]}, "at least 2 numbers"),
    (SD, {"sampler": "euler", "sigmas": [3.0, 0.0], "timesteps": [5]}, "at most one of them"),
    (SD, {"sampler": "euler", "sigmas": [3.0, 1.0, 0.0], "steps": 3}, "steps=2"),
    (SD, {"sampler": "euler", "timesteps": [1000, 3]}, "between 999 and 0"),
    (SD, {"sampler": "euler", "timesteps": [3, 900]}, "each below the one before"),
    (SD, {"sampler": "pndm", "steps": 20, "schedule": "karras"}, "evenly spaced"),
    (SD, {"sampler": "pndm", "timesteps": [3]}, "evenly spaced"),
    (SD, {"sampler": "euler", "steps": 20, "eta": 0.5}, "eta only with ddim, tcd"),
    (SD, {"sampler": "ddim", "steps": 20, "eta": 1.5}, "from 0 to 1"),
    (SD, {"sampler": "euler", "steps": 20, "strength": 0.0}, "above 0"),
    (SD, {"sampler": "euler", "steps": 20, "strength": 0.04}, "at least 0.05"),
    (SD, {"sampler": "flow-euler", "steps": 20}, "one of euler"),
    (RECTIFIED, {"sampler": "euler", "steps": 20}, "one of flow-euler, flow-heun"),
    (RECTIFIED, {"sampler": "flow-euler", "steps": 20, "schedule": "leading"}, "no training timesteps"),
    (SAMPLE, {"sampler": "pndm", "steps": 20}, "predicts sample"),
    (ZERO_SNR, {"sampler": "ddim", "steps": 20}, "pure noise"),
]


@pytest.mark.parametrize(("noise", "arguments", "says"), REFUSED)
def test_refusals(noise: NoiseSchedule, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        step_table(noise, **arguments)
    assert says in str(caught.value)
    assert caught.value.expected is not None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_registry_knows_which_draw_noise(sampler: str):
    noise = NoiseSchedule.from_config(CONFIGS["flow" if sampler.startswith("flow-") else "sd15"])
    assert bool(step_table(noise, sampler=sampler, steps=4).draws_noise.any()) is SAMPLERS[sampler].stochastic
