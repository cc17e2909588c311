"""A request against a bundle: for each image its texts, its seed and its sampler's table, then the batch's arrays."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

from latentrt.arrays import FloatArray
from latentrt.denoise.guidance import Guiding, branches_used, prompt_texts, prompt_weights
from latentrt.denoise.initial_latents import InitialState
from latentrt.denoise.skip_layers import skip_weights, skipped_layers, skipping_of
from latentrt.errors import RequestError
from latentrt.family import Family
from latentrt.images.control import ControlImage, Pass, control_passes
from latentrt.images.framing import Canvas, Size, warn_untrained
from latentrt.images.photo import Pixels
from latentrt.images.upscale import Upscale
from latentrt.names import SamplerName, ScheduleName
from latentrt.request import Guidance, Request, SkipLayers, check_size, clip_skip_of, explicit_steps
from latentrt.samplers import StepTable, step_table
from latentrt.samplers.step_cache import StepCache
from latentrt.samplers.torch_rng import check_seed
from latentrt.text.prompt_syntax import Text, read_negative, read_parts

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """One image of a batch: everything about it that its neighbours do not share.

    `guiding` holds its prompts; `guidance_embed` is what the network itself is told, if it asks.
    """

    guiding: Guiding
    negative: Text
    seed: int
    rescale: float
    table: StepTable
    initial: InitialState
    guidance_embed: float = 1.0
    skipping: SkipLayers | None = None
    controls: tuple[ControlImage, ...] = ()

    @property
    def calls(self) -> int:
        """Engine calls of its own run."""
        return len(self.table.timestep)


@dataclass(frozen=True)  # no slots: what follows from its fields is kept beside them
class Plan:
    """A batch of images of one size. Images with fewer calls than others wait, unchanged, for the rest.

    `requests` have their defaults and seeds filled in: run again, they give the same images. `extra` says whether the
    network sees mask and masked picture, `clip_skip` how many layers of the text encoders are left out, `decodes`
    whether images are asked for, not latents, `cache` which calls are deep.
    """

    size: Size
    requests: tuple[Request, ...]
    image_plans: tuple[ImagePlan, ...]
    extra: bool = False
    clip_skip: int = 0
    decodes: bool = True
    cache: StepCache | None = None

    @cached_property
    def calls(self) -> int:
        """Engine calls until the last image is done."""
        return max(image_plan.calls for image_plan in self.image_plans)

    @cached_property
    def guided(self) -> bool:
        """Whether there is a branch of negative prompts, the first one."""
        return bool((self._prompts.sum(axis=1) != 1).any())

    @cached_property
    def skipped(self) -> tuple[int, ...]:
        """Blocks that are skipped in the branch before the last, which is there if this is not empty."""
        return skipped_layers(image_plan.skipping for image_plan in self.image_plans)

    @cached_property
    def branches(self) -> int:
        """Guidance branches: negative prompts, prompts but the last, the last ones with blocks skipped, the last ones,
        which are always there."""
        return max(len(image_plan.guiding.parts) for image_plan in self.image_plans) + self.guided + bool(self.skipped)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of each image."""
        return tuple(image_plan.seed for image_plan in self.image_plans)

    @cached_property
    def guidance(self) -> FloatArray:
        """Branch weights by call, [calls, K, B]: [g], [1 - g, g], or with skipped blocks [1 - g, -s, g + s]. Prompts
        that are joined share g by their weights."""
        prompts = self._prompts
        away = np.zeros((self.calls, len(self.image_plans)), np.float32)
        for image, image_plan in enumerate(self.image_plans):
            if image_plan.skipping is not None:
                n = image_plan.calls
                away[:n, image] = skip_weights(image_plan.skipping, n) * image_plan.guiding.on(n)
        others = [1 - prompts.sum(axis=1)] if self.guided else []
        others += list(prompts[:, :-1].swapaxes(0, 1))
        others += [-away] if self.skipped else []
        return np.stack([*others, prompts[:, -1] + away], axis=1)

    @cached_property
    def rescale(self) -> FloatArray:
        """Guidance rescale [B]."""
        return np.array([image_plan.rescale for image_plan in self.image_plans], np.float32)

    def finish(self, images: Pixels) -> Pixels:
        """The finished images of what was decoded, both uint8 [B, H, W, 3]: cropped or pasted as their starts say."""
        canvases = [image_plan.initial.canvas for image_plan in self.image_plans]
        if all(canvas.frame is None for canvas in canvases):
            return images
        return np.stack([canvas.finish(image) for canvas, image in zip(canvases, images, strict=True)])

    @cached_property
    def texts(self) -> list[list[Text]]:
        """Prompts by branch and image, [K][B]."""
        *others, last = prompt_texts([image_plan.guiding for image_plan in self.image_plans])
        if self.guided:
            others = [[image_plan.negative for image_plan in self.image_plans], *others]
        return [*others, *([last] if self.skipped else []), last]

    @cached_property
    def _prompts(self) -> FloatArray:
        """Weights of the prompts' branches, [calls, parts, B]."""
        return prompt_weights([(image_plan.guiding, image_plan.calls) for image_plan in self.image_plans])

    @cached_property
    def controls(self) -> tuple[str, ...]:
        """Names of the ControlNets that take part."""
        return tuple(
            dict.fromkeys(seen.control.name for image_plan in self.image_plans for seen in image_plan.controls)
        )

    def control_passes(self, residuals: int) -> list[Pass]:
        """What ControlNets do in each call; `residuals` is how many they have."""
        return control_passes(
            [image_plan.controls for image_plan in self.image_plans],
            [image_plan.calls for image_plan in self.image_plans],
            negative=[self.guided and branch == 0 for branch in range(self.branches)],
            residuals=residuals,
        )

    @cached_property
    def deep(self) -> npt.NDArray[np.bool_]:
        """The calls that compute the whole network, [calls].

        Raises:
            RequestError: a deep call beyond the run's end.
        """
        if self.cache is None:
            return np.ones(self.calls, np.bool_)
        acting = np.zeros((self.calls, sum(len(image_plan.controls) for image_plan in self.image_plans)), np.bool_)
        seen = [(image_plan.calls, one.control) for image_plan in self.image_plans for one in image_plan.controls]
        for column, (n, control) in enumerate(seen):
            acting[:n, column] = control.weights(n, 1, negative=[False]).any(axis=(1, 2))
        return self.cache.calls(np.hstack([branches_used(self.guidance), acting]))

    @cached_property
    def columns(self) -> "Columns":
        """What each call feeds, for all calls."""
        return Columns.of([image_plan.table for image_plan in self.image_plans], self.calls)

    @cached_property
    def changing(self) -> tuple[str, ...]:
        """Inputs of the step that have a row for each call."""
        guidance = ("guidance",) if (self.guidance != self.guidance[0]).any() else ()
        return ("timestep", "scalings", "transition", *guidance, *(("noise",) if self.columns.draws.any() else ()))


@dataclass(frozen=True, slots=True)
class Columns:
    """Tables side by side: timestep [n, B], scalings [n, B, 3], transition [n, B, 4, 6], draws [n, B]."""

    timestep: FloatArray
    scalings: FloatArray
    transition: FloatArray
    draws: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, tables: Sequence[StepTable], calls: int) -> "Columns":
        """Joins tables of different lengths; past its end an image's row is the identity, which is exact."""
        columns = cls(
            timestep=np.zeros((calls, len(tables)), np.float32),
            scalings=np.zeros((calls, len(tables), 3), np.float32),
            transition=np.zeros((calls, len(tables), 4, 6), np.float32),
            draws=np.zeros((calls, len(tables)), np.bool_),
        )
        columns.scalings[:] = (0, 1, 0)  # denoised = x
        columns.transition[:] = np.eye(4, 6)
        for image, table in enumerate(tables):
            n = len(table.timestep)
            columns.timestep[:n, image] = table.timestep
            columns.scalings[:n, image] = table.scalings
            columns.transition[:n, image] = table.transition
            columns.draws[:n, image] = table.draws_noise
        return columns


def make_plan(requests: Sequence[Request], family: Family, *, extra: bool = False) -> Plan:
    """Resolves defaults, reads the photos that are started from, and computes tables.

    Args:
        extra: whether the network sees mask and masked picture (the step's input `extra`).

    Raises:
        RequestError: sizes, skipped layers, step caches or `clip_skip` that differ within the batch, or anything that
            the bundle cannot serve.
    """
    if not requests:
        raise RequestError("no request", expected="one or more")
    canvases = [_canvas(request, family, extra=extra) for request in requests]
    size = _only("sizes", [canvas.size for canvas in canvases])
    if len({request.output for request in requests}) > 1:
        raise RequestError("a batch of images and latents", expected="one output", hint="run them apart")
    _only("finished images of sizes", [canvas.output_size for canvas in canvases])
    settled = [_settle(request, canvas, family) for request, canvas in zip(requests, canvases, strict=True)]
    image_plans = tuple(image_plan for _, image_plans in settled for image_plan in image_plans)
    skipped_layers(image_plan.skipping for image_plan in image_plans)
    return Plan(
        size=size,
        requests=tuple(request for request, _ in settled),
        image_plans=image_plans,
        extra=extra,
        clip_skip=clip_skip_of(requests, family),
        decodes=requests[0].output == "image",
        cache=_only_cache(requests),
    )


def _canvas(request: Request, family: Family, *, extra: bool) -> Canvas:
    """What the request starts from, in a size that the bundle makes."""
    asked = None if request.size is None else check_size(request.size, family)
    canvas = request.start.canvas(asked, family)
    check_size(canvas.size, family)
    count = len(request.prompts) * request.images
    if canvas.latents is not None and len(canvas.latents) not in (1, count):
        raise RequestError(f"{len(canvas.latents)} latents for {count} images", expected=f"1 or {count}")
    if request.upscale is not None:
        _check_upscale(request.upscale, canvas, family)
    # A network that sees the masked picture paints anew from noise alone (diffusers does at strength 1).
    from_noise = extra and canvas.paint is not None and canvas.strength == 1
    return replace(canvas, strength=None) if from_noise else canvas


def _check_upscale(upscale: Upscale, canvas: Canvas, family: Family) -> None:
    check_size(upscale.size(canvas.output_size, family), family)
    pasted = canvas.frame is not None and canvas.frame.alpha is not None
    if upscale.space == "latent" and (pasted or canvas.output_size != canvas.size):
        raise RequestError(
            "upscaling in the space latent of a result that is cropped or pasted",
            expected="a result as the model makes it",
            hint="upscale in the space pixel, or give a size",
        )


def _only(what: str, sizes: Sequence[Size]) -> Size:
    """The size that all agree on."""
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{width}x{height}" for width, height in sorted(set(sizes)))
        raise RequestError(f"a batch of {what} {listed}", expected="one size", hint="run them apart")
    return sizes[0]


def _only_cache(requests: Sequence[Request]) -> StepCache | None:
    """The step cache that all agree on: a call of the batch is deep or shallow for all of its images."""
    caches = {request.caching for request in requests}
    if len(caches) > 1:
        raise RequestError("a batch of several step caches", expected="one for all", hint="run them apart")
    return caches.pop()


def _settle(request: Request, canvas: Canvas, family: Family) -> tuple[Request, list[ImagePlan]]:
    """The request with defaults and seed filled in, and its images."""
    defaults = family.defaults
    seed = _either(request.seed, secrets.randbelow(1 << 32))
    steps = _either(request.steps, _either(explicit_steps(request), defaults.steps))
    asked = Guidance.of(request.guidance)
    told = _either(asked.scale, defaults.guidance)
    guidance = replace(asked, scale=told)
    sampler = _either(request.sampler, cast("SamplerName", defaults.sampler))
    schedule = _either(request.schedule, cast("ScheduleName", defaults.schedule))
    table = step_table(
        family.noise,
        sampler=sampler,
        steps=steps,
        schedule=schedule,
        sigmas=request.sigmas,
        timesteps=request.timesteps,
        eta=request.eta,
        strength=canvas.strength,
        denoising_start=canvas.denoising_start,
        denoising_end=request.denoising_end,
    )
    if canvas.strength is None and canvas.denoising_start is None:
        warn_untrained(canvas.size, family.defaults.size)
    written = zip(request.prompts, request.negatives, strict=True)
    texts = [(read_parts(a, syntax=request.syntax), read_negative(b, syntax=request.syntax)) for a, b in written]
    if family.guidance_embedding and (guidance.interval != (0, 1) or any(len(parts) > 1 for parts, _ in texts)):
        raise RequestError("AND or a guidance interval with a model that is told its guidance", expected="neither")
    controls = tuple(ControlImage(control, control.seen(canvas)) for control in request.control)
    scale = 1.0 if family.guidance_embedding else told
    skipping = skipping_of(request, family)
    if not Guiding((), scale, *guidance.interval).on(len(table)).any():
        skipping = None  # without guidance there is none of skipped layers, as in `StableDiffusion3Pipeline.__call__`
    image_plans = [
        ImagePlan(
            guiding=Guiding(parts, scale, *guidance.interval),
            negative=negative,
            seed=check_seed(seed + image),
            rescale=guidance.rescale,
            table=table,
            guidance_embed=told,
            skipping=skipping,
            initial=InitialState(canvas, image, table),
            controls=controls,
        )
        for image, (parts, negative) in enumerate(pair for pair in texts for _ in range(request.images))
    ]
    # A photo that chose the size by itself is cropped when it is given that size.
    size = canvas.size if canvas.frame is None else request.size
    settled = replace(request, seed=seed, size=size, steps=steps, guidance=guidance, sampler=sampler, schedule=schedule)
    return settled, image_plans


def _either(value: _T | None, default: _T) -> _T:
    return default if value is None else value
