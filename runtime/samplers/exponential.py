"""Exponential integrators in the log signal-to-noise ratio: DPM-Solver++, UniPC and DEIS.

All of them solve the probability flow exactly but for the network's output, which they replace by a
polynomial in lambda = log(alpha / sigma) through the last outputs. With h the step in lambda,

    x' = sigma'/sigma x + alpha' h [ phi_1(-h) D0 + phi_2(-h) D1 + phi_3(-h) D2 ]

where D0 is the output, D1 and D2 its derivatives by differences, and phi_k the usual functions of exponential
integrators. The papers write the same with exponentials; the phi functions stay accurate for small steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from latentrt.samplers.calls import M1, M2, Call, D, N, Run, X, rows
from latentrt.samplers.levels import Level

FEW_STEPS = 15
"""Below this many steps diffusers lowers the order at the end of a run."""


def phi(order: int, z: float) -> float:
    """phi_k(z) = sum over j of z^j / (j + k)!, so that phi_1(z) = (exp(z) - 1) / z."""
    if abs(z) < 0.5:
        return sum(z**j / math.factorial(j + order) for j in range(16))
    value = math.expm1(z) / z
    for k in range(1, order):
        value = (value - 1 / math.factorial(k)) / z
    return value


def _order(run: Run, i: int, highest: int) -> int:
    """Order of step i: bounded by the outputs at hand, and lowered towards the end of a short run and for the
    step to a clean image, where h is infinite."""
    left = run.count - i
    order = min(highest, i - run.begin + 1)
    if left == 1 and run.levels[-1].sigma == 0:
        return 1
    return min(order, left) if run.count < FEW_STEPS else order


def _log_snr_step(now: Level, then: Level) -> float:
    return then.log_snr - now.log_snr


def dpmpp_2m(run: Run) -> Iterator[Call]:
    """Lu et al. 2022 (arXiv 2211.01095), Algorithm 2; DPMSolverMultistepScheduler, dpmsolver++, order 2,
    midpoint."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        h = _log_snr_step(now, then)
        output = D
        if _order(run, i, 2) == 2:
            output = D + h / _log_snr_step(run.levels[i - 1], now) / 2 * (D - M1)
        x = then.sigma / now.sigma * X - then.alpha * math.expm1(-h) * output
        yield Call(now, run.timesteps[i], rows(x, D))


def dpmpp_2m_sde(run: Run) -> Iterator[Call]:
    """The stochastic twin of 2M (arXiv 2211.01095, section 5 and appendix); DPMSolverMultistepScheduler,
    sde-dpmsolver++, order 2, midpoint."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        h = _log_snr_step(now, then)
        output = D
        if _order(run, i, 2) == 2:
            output = D + h / _log_snr_step(run.levels[i - 1], now) / 2 * (D - M1)
        renewed = -math.expm1(-2 * h)
        x = then.sigma / now.sigma * math.exp(-h) * X + then.alpha * renewed * output
        x = x + then.sigma * math.sqrt(renewed) * N
        yield Call(now, run.timesteps[i], rows(x, D), draws=True)


def dpmpp_3m(run: Run) -> Iterator[Call]:
    """Third order of the same family (arXiv 2206.00927, appendix B, with data prediction);
    DPMSolverMultistepScheduler, dpmsolver++, order 3. Its second-order steps are those of 2M."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        h = _log_snr_step(now, then)
        order = _order(run, i, 3)
        x = then.sigma / now.sigma * X - then.alpha * math.expm1(-h) * D
        if order > 1:
            h0 = _log_snr_step(run.levels[i - 1], now)
            slope = (D - M1) / h0
            if order == 2:
                x = x - then.alpha * math.expm1(-h) * h / 2 * slope
            else:
                h1 = _log_snr_step(run.levels[i - 2], run.levels[i - 1])
                curve = (slope - (M1 - M2) / h1) / (h0 + h1)
                first, second = h * (slope + h0 * curve), h * h * curve
                x = x + then.alpha * h * (phi(2, -h) * first + phi(3, -h) * second)
        yield Call(now, run.timesteps[i], rows(x, D, M1))


def dpmpp_2s(run: Run) -> Iterator[Call]:
    """arXiv 2211.01095, Algorithm 1, the intermediate point being the next level of the schedule: steps come
    in pairs, each pair one second-order step of double length; DPMSolverSinglestepScheduler, order 2.

    The first of a pair knows both levels ahead, so that all but the second's output is settled in M1.
    """
    weight = 0.0
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        if i > run.begin and _closes_pair(run, i):
            yield Call(now, run.timesteps[i], rows(M1 + weight * D))
            continue
        x = then.sigma / now.sigma * X - then.alpha * math.expm1(-_log_snr_step(now, then)) * D
        if i + 1 == run.count or not _closes_pair(run, i + 1):
            yield Call(now, run.timesteps[i], rows(x))
            continue
        end = run.levels[i + 2]
        h = _log_snr_step(now, end)
        reach = -end.alpha * math.expm1(-h)
        weight = reach * h / _log_snr_step(now, then) / 2
        yield Call(now, run.timesteps[i], rows(x, end.sigma / now.sigma * X + (reach - weight) * D))


def _closes_pair(run: Run, i: int) -> bool:
    """Whether step i is the second of a pair; a run that ends at a clean image ends with a single step."""
    return i % 2 == 1 and not (i + 1 == run.count and run.levels[-1].sigma == 0)


def unipc(run: Run) -> Iterator[Call]:
    """Zhao et al. 2023 (arXiv 2302.04867), Algorithms 1 and 2 with B_2(h); UniPCMultistepScheduler, order 2.

    Each output first corrects the step that led to it, then predicts the next. All of the correction but the
    output's own part is known one step ahead and waits in M1; M2 is the previous output.
    """
    weight = 0.0
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        x = X if i == run.begin else M1 + weight * D
        h = _log_snr_step(now, then)
        reach = -then.alpha * math.expm1(-h)
        base = then.sigma / now.sigma * x + reach * D
        if i + 1 == run.count:
            yield Call(now, run.timesteps[i], rows(base))
            return
        if i == run.begin:
            predicted, weight = base, reach / 2
            correction = -weight * D
        else:
            r = -_log_snr_step(run.levels[i - 1], now) / h
            past = (M2 - D) / r
            # Two moments of the integral fix two weights: rho + last = b1 and r rho + last = b2.
            b1, b2 = phi(2, -h) / phi(1, -h), 2 * phi(3, -h) / phi(1, -h)
            rho = (b1 - b2) / (1 - r)
            predicted, weight = base + reach / 2 * past, reach * (b1 - rho)
            correction = reach * rho * past - weight * D
        yield Call(now, run.timesteps[i], rows(predicted, base + correction, D))


def deis(run: Run) -> Iterator[Call]:
    """Zhang and Chen 2022 (arXiv 2204.13902), log-rho Adams-Bashforth (equation 15): the predicted noise as a
    polynomial in log(rho), rho = sigma / alpha, integrated over rho; DEISMultistepScheduler, order 2."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        noise = (X - now.alpha * D) / now.sigma
        rho, end = now.sigma / now.alpha, then.sigma / then.alpha
        x = then.alpha / now.alpha * X + then.alpha * (end - rho) * noise
        if _order(run, i, 2) == 2:
            before = run.levels[i - 1].sigma / run.levels[i - 1].alpha
            rise = end * math.log(end / rho) - (end - rho)
            x = x + then.alpha * rise / math.log(rho / before) * (noise - M1)
        yield Call(now, run.timesteps[i], rows(x, noise))
