"""What is done for a job beside the loop: its texts and photos before, its pictures after."""

from __future__ import annotations

import time

import numpy as np

from latentrt.arrays import FloatArray
from latentrt.denoise.second_pass import second_pass
from latentrt.output.result import Images, Result, Timings
from latentrt.pipeline import Pipeline
from latentrt.serving.rows import Row, rows_of
from latentrt.serving.turns import Ticket


def encode(pipe: Pipeline, ticket: Ticket) -> list[Row]:
    """The images of a job, ready for their first call."""
    began = time.perf_counter()
    plan = ticket.plan
    rows = rows_of(pipe.begin(plan), [plan.calls] * len(plan.image_plans))
    ticket.loaded = pipe.lora
    ticket.encode_s += time.perf_counter() - began
    return rows


def decode(pipe: Pipeline, ticket: Ticket) -> Result | None:
    """What a job has made; None where a second pass follows, which is then the plan of the ticket."""
    began = time.perf_counter()
    plan = ticket.plan
    width, height = plan.size
    latents: FloatArray = np.stack([row.state[0] for row in ticket.rows])
    images = np.zeros((0, height, width, 3), np.uint8)
    if plan.decodes:
        # One at a time: a decoder needs much memory, and compiled ones are fewest so.
        images = plan.finish(np.concatenate([pipe.vae.decode(latent[None]) for latent in latents]))
    ticket.decode_s += time.perf_counter() - began
    if ticket.first is None and any(request.upscale is not None for request in plan.requests):
        again = second_pass(plan.requests, images, latents, pipe.bundle.family)
        ticket.first, ticket.calls_before, ticket.plan = plan, plan.calls, pipe.plan(list(again))
        return None
    return _result(pipe, ticket, images, None if plan.decodes else latents)


def _result(pipe: Pipeline, ticket: Ticket, images: Images, latents: FloatArray | None) -> Result:
    """Its time is that of the whole job, waiting for others included."""
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
        latents=latents,
        model=pipe.bundle.name,
        lora=ticket.loaded,
    )
