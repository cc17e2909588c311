"""What is done for a job beside the loop: its texts and photos before, its pictures after."""

from __future__ import annotations

import time

import numpy as np

from latentrt.arrays import FloatArray
from latentrt.denoise.second_pass import second_pass
from latentrt.output.result import Images, Result, Timings
from latentrt.pipeline import Pipeline
from latentrt.serving.rows import Row, rows_of
from latentrt.serving.ticket import Ticket


def encode(pipe: Pipeline, ticket: Ticket) -> list[Row]:
    """The images of a job, ready for their first call."""
    plan = ticket.plan
    rows = rows_of(pipe.begin(plan), [plan.calls] * len(plan.image_plans))
    ticket.loaded = pipe.lora
    return rows


def decode(pipe: Pipeline, ticket: Ticket) -> Images:
    """The pictures of the present pass; none where latents are asked for."""
    plan = ticket.plan
    if not plan.decodes:
        width, height = plan.size
        return np.zeros((0, height, width, 3), np.uint8)
    # One at a time: a decoder needs much memory, and compiled ones are fewest so.
    return plan.finish(np.concatenate([pipe.vae.decode(latent[None]) for latent in _latents(ticket)]))


def goes_on(pipe: Pipeline, ticket: Ticket, images: Images) -> bool:
    """Whether a second pass follows, which is then the ticket's plan."""
    plan = ticket.plan
    if ticket.first is not None or all(request.upscale is None for request in plan.requests):
        return False
    again = second_pass(plan.requests, images, _latents(ticket), pipe.bundle.family)
    ticket.again(pipe.plan(list(again)))
    return True


def result_of(pipe: Pipeline, ticket: Ticket, images: Images) -> Result:
    """What a job has made. Its time is that of the whole job, waiting for others included."""
    first = ticket.plan if ticket.first is None else ticket.first
    began = ticket.job.started
    return Result(
        images=images,
        seeds=first.seeds,
        timings=Timings(
            text_ms=1e3 * ticket.encode_s,
            steps_ms=tuple(1e3 * seconds for seconds in ticket.calls_s),
            decode_ms=1e3 * ticket.decode_s,
            total_ms=0.0 if began is None else 1e3 * (time.time() - began),
        ),
        requests=first.requests,
        latents=None if ticket.plan.decodes else _latents(ticket),
        model=pipe.bundle.name,
        lora=ticket.loaded,
    )


def _latents(ticket: Ticket) -> FloatArray:
    return np.stack([row.state[0] for row in ticket.rows])
