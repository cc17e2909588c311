"""Images that may share a batch, and those of one request as requests of their own."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from latentrt.denoise.batch import Plan
from latentrt.images.framing import Size
from latentrt.images.start import Latent, Start
from latentrt.pipeline import Pipeline
from latentrt.request import Guidance, Request

_T = TypeVar("_T")


def image_requests(plan: Plan) -> list[Request]:
    """Each image of a plan as a request of its own, with its seed and its latent; it gives the same picture."""
    seeds = iter(plan.seeds)
    found = []
    for request in plan.requests:
        texts = zip(request.prompts, request.negatives, strict=True)
        repeated = (pair for pair in texts for _ in range(request.images))
        for place, (prompt, negative) in enumerate(repeated):
            start = _start(request.start, place)
            found.append(replace(request, prompt=prompt, negative=negative, images=1, seed=next(seeds), start=start))
    return found


def work(pipe: Pipeline, plan: Plan) -> tuple[Any, ...]:
    """Images of equal work can share a batch without changing each other, and none waits for another. Prompts of other
    lengths would be padded, and so become other prompts."""
    texts = [text for branch in plan.texts for text in branch]
    finished: Size = plan.image_plans[0].initial.canvas.output_size
    upscale = plan.requests[0].upscale
    chunks = pipe.conditioner.chunks(texts)
    branches = (plan.branches, plan.guided, plan.skipped, Guidance.of(plan.requests[0].guidance).interval)
    return plan.size, finished, upscale, branches, plan.calls, plan.controls, chunks, plan.clip_skip, plan.cache


def batches(
    items: Sequence[_T], size: int | Callable[[_T], int], *, key: Callable[[_T], Hashable]
) -> Iterator[Sequence[_T]]:
    """Items of equal key, `size` at a time, in the order of the first of each; a function is asked for that of the
    first."""
    kinds: dict[Hashable, list[_T]] = {}
    for item in items:
        kinds.setdefault(key(item), []).append(item)
    for members in kinds.values():
        most = size(members[0]) if callable(size) else size
        yield from (members[at : at + most] for at in range(0, len(members), most))


def _start(start: Start, place: int) -> Start:
    if isinstance(start, Latent) and start.x.ndim == 4 and len(start.x) > 1:
        return replace(start, x=start.x[place])
    return start
