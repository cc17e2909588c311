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

from latentrt.samplers.calls import M1, M2, Call, D, N, SamplerRun, X, rows
from latentrt.samplers.levels import Float64, Level

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


def _order(run: SamplerRun, i: int) -> int:
    """Order of step i: bounded by the outputs at hand, and lowered towards the end of a short run and for the
    step to a clean image, where h is infinite."""
    left, solver = run.count - i, run.solver
    order = min(solver.order, i - run.begin + 1)
    if left == 1 and (run.levels[-1].sigma == 0 or solver.euler_at_final):
        return 1
    return min(order, left) if solver.lower_order_final and run.count < FEW_STEPS else order


def _log_snr_step(now: Level, then: Level) -> float:
    return then.log_snr - now.log_snr


def _derivatives(run: SamplerRun, i: int, order: int) -> list[Float64]:
    """First and second difference of the outputs in lambda, in units of the step ahead: none at order 1. The second
    is twice the term of the expansion, as in arXiv 2206.00927, appendix B."""
    if order == 1:
        return []
    h = _log_snr_step(run.levels[i], run.levels[i + 1])
    h0 = _log_snr_step(run.levels[i - 1], run.levels[i])
    slope = h / h0 * (D - M1)
    if order == 2:
        return [slope]
    h1 = _log_snr_step(run.levels[i - 2], run.levels[i - 1])
    bend = (slope - h / h1 * (M1 - M2)) / (h0 + h1)
    return [slope + h0 * bend, h * bend]


def dpmpp_multistep(run: SamplerRun) -> Iterator[Call]:
    """Lu et al. 2022 (arXiv 2211.01095), Algorithm 2, and its third order (arXiv 2206.00927, appendix B, with data
    prediction); DPMSolverMultistepScheduler, dpmsolver++. Second-order steps are its midpoint or its Heun ones."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        h = _log_snr_step(now, then)
        x = then.sigma / now.sigma * X - then.alpha * math.expm1(-h) * D
        changes = _derivatives(run, i, _order(run, i))
        if len(changes) == 1 and run.solver.kind == "midpoint":
            x = x - then.alpha * math.expm1(-h) / 2 * changes[0]
        else:
            for order, change in enumerate(changes, 2):
                x = x + then.alpha * h * phi(order, -h) * change
        yield Call(now, run.timesteps[i], rows(x, *_memory(run)))


def dpmpp_multistep_sde(run: SamplerRun) -> Iterator[Call]:
    """The stochastic twin (arXiv 2211.01095, section 5 and appendix); DPMSolverMultistepScheduler, sde-dpmsolver++,
    whose third order is followed as it is there."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        h = _log_snr_step(now, then)
        renewed = -math.expm1(-2 * h)
        x = then.sigma / now.sigma * math.exp(-h) * X + then.alpha * renewed * D
        changes = _derivatives(run, i, _order(run, i))
        if len(changes) == 1 and run.solver.kind == "midpoint":
            x = x + then.alpha * renewed / 2 * changes[0]
        elif changes:
            x = x + then.alpha * 2 * h * phi(2, -2 * h) * changes[0]
        if len(changes) == 2:
            x = x - then.alpha * (phi(2, -2 * h) + 1 / 2) * changes[1]
        x = x + then.sigma * math.sqrt(renewed) * N
        yield Call(now, run.timesteps[i], rows(x, *_memory(run)), draws=True)


def _memory(run: SamplerRun) -> tuple[Float64, ...]:
    """The outputs that the next steps look back at."""
    return (D, M1)[: run.solver.order - 1]


def dpmpp_2s(run: SamplerRun) -> Iterator[Call]:
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


def _closes_pair(run: SamplerRun, i: int) -> bool:
    """Whether step i is the second of a pair; a run that ends at a clean image ends with a single step."""
    return i % 2 == 1 and not (i + 1 == run.count and run.levels[-1].sigma == 0)


def unipc(run: SamplerRun) -> Iterator[Call]:
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
        if i == run.begin or run.solver.order == 1:
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


def deis(run: SamplerRun) -> Iterator[Call]:
    """Zhang and Chen 2022 (arXiv 2204.13902), log-rho Adams-Bashforth (equation 15): the predicted noise as a
    polynomial in log(rho), rho = sigma / alpha, integrated over rho; DEISMultistepScheduler."""
    for i in run.steps:
        now, then = run.levels[i], run.levels[i + 1]
        order = _order(run, i)
        noise = (X - now.alpha * D) / now.sigma
        rhos = [level.sigma / level.alpha for level in reversed(run.levels[i - order + 1 : i + 1])]
        end = then.sigma / then.alpha
        x = then.alpha / now.alpha * X + then.alpha * (end - rhos[0]) * noise
        # By divided differences: the outputs' weights would cancel where steps are small.
        if order > 1:
            logs = [math.log(rho / rhos[0]) for rho in rhos]
            slope = (M1 - noise) / logs[1]
            x = x + then.alpha * _log_moment(1, rhos[0], end) * slope
        if order == 3:
            curve = ((M2 - M1) / (logs[2] - logs[1]) - slope) / logs[2]
            bent = _log_moment(2, rhos[0], end) - logs[1] * _log_moment(1, rhos[0], end)
            x = x + then.alpha * bent * curve
        yield Call(now, run.timesteps[i], rows(x, *(noise, M1)[: run.solver.order - 1]))


def _log_moment(power: int, start: float, end: float) -> float:
    """Integral of log(rho / start)^power from start to end."""
    log = math.log(end / start)
    first = end * log - (end - start)
    return first if power == 1 else end * log**2 - 2 * first
