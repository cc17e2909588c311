"""A small training loop: resumable, averaged weights, a schedule that ends when steps or minutes run out."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

WARM_UP = 0.05  # share of the run
_Network = TypeVar("_Network", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast a stage trains, and where its state is kept."""

    state: Path
    steps: int
    learning_rate: float
    minutes: float = math.inf  # wall clock over all resumed runs; the rate decays to zero by then
    weight_decay: float = 1e-2
    average: float = 0.999  # decay of the averaged weights
    save_every_s: float = 120.0
    log_every: int = 20


def fit(network: _Network, loss_at: Callable[[int], Tensor], *, plan: Plan) -> _Network:
    """Train `network` in place on `loss_at(step)`; return its averaged copy, which is what ships.

    A run that finds its state goes on from there. The state is written beside and renamed, so that a
    killed run never leaves half a file.
    """
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay
    )
    step, before_s = _restore(plan.state, network, average, optimizer)
    started = saved = time.monotonic()
    first, running = step, 0.0
    while (done := _progress(plan, step, elapsed_s := before_s + time.monotonic() - started)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * _rate(done)
        loss = loss_at(step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _follow(average, network, min(plan.average, (step + 1) / (step + 10)))
        step += 1
        running += (loss.item() - running) / min(step - first, 50)
        if step % plan.log_every == 0:
            pace = (time.monotonic() - started) / (step - first)
            left_s = min((plan.steps - step) * pace, plan.minutes * 60 - elapsed_s)
            print(f"step {step}  loss {running:.4f}  {pace:.2f} s/step  {left_s / 60:.1f} min left", flush=True)
        if time.monotonic() - saved > plan.save_every_s:
            saved = time.monotonic()
            _save(plan.state, network, average, optimizer, step=step, elapsed_s=elapsed_s)
    if step > first:
        _save(plan.state, network, average, optimizer, step=step, elapsed_s=elapsed_s)
    return average


def load_average(state: Path, network: _Network) -> _Network:
    """Fill `network` with the averaged weights of a stage, finished or not."""
    network.load_state_dict(torch.load(state, map_location="cpu", weights_only=True)["average"])
    return network.requires_grad_(False).eval()


def _progress(plan: Plan, step: int, elapsed_s: float) -> float:
    return max(step / plan.steps, elapsed_s / 60 / plan.minutes)


def _rate(done: float) -> float:
    """Linear warm-up, then a cosine down to zero; `done` is the share of the run."""
    if done < WARM_UP:
        return max(done / WARM_UP, 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(tuple(average.parameters()), tuple(network.parameters()), 1 - decay)


def _save(
    path: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, *, step: int, elapsed_s: float
) -> None:
    state = {
        "step": step,
        "elapsed_s": elapsed_s,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    beside = path.with_suffix(".part")
    torch.save(state, beside)
    beside.replace(path)


def _restore(path: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["elapsed_s"]
