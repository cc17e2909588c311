"""What a caller asks for. None means the bundle's default, which `latentrt inspect` shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from latentrt.control import Control
from latentrt.errors import RequestError
from latentrt.family import Family
from latentrt.noise import check_seed
from latentrt.start import TEXT, Start
from latentrt.upscale import Upscale

Prompts = str | Sequence[str]
OUTPUTS = ("image", "latent")


@dataclass(frozen=True, slots=True)
class Request:
    """One or more images of the same size, made by the same sampler.

    Args:
        prompt: one text, or one for each image.
        negative: what to steer away from; one text for all, or one for each prompt. Unused at guidance 1.
        syntax: of prompts: `weighted` gives `(word:1.3)`, BREAK and the like a meaning (docs/prompts.md), `plain` none.
        clip_skip: layers to leave out at the top of the text towers, besides those that the model leaves out anyway.
        seed: of the first image; image i uses `seed` + i. None draws one, which the result reports.
        images: how many images of each prompt.
        size: (width, height) in pixels. None is the bundle's default, or what the start value comes to by itself.
        steps: denoising steps; Heun and DPM2 call the network twice in each.
        guidance: classifier-free guidance scale, 0 or more; at 1 or below there is none, as in diffusers, at half the
            cost. A model with guidance as an input is told the value.
        guidance_interval: fractions of the run, from the first to before the second; in other calls there is no
            guidance, and they cost half as much.
        rescale: guidance rescale, 0..1, towards the standard deviation of the conditional prediction.
        sampler, schedule: names, see `latentrt.sampler_names()` and `latentrt.schedule_names()`.
        sigmas, timesteps: explicit noise levels instead of a schedule.
        eta: noise of `ddim` (0..1) and `tcd`.
        skip_layers: blocks of a transformer for skip-layer guidance; none is off. It costs a branch while it is on.
        skip_guidance: its scale.
        skip_range: fractions of the run, it is on in the calls strictly between them.
        stop: share of the steps, to the nearest, after which the run ends; None takes all. What is left of the noise
            is in the result: `start=Latent(result.latents, begin=...)` of the same share goes on, with this model or
            another.
        output: `image`, or `latent`: the result holds latents that nothing has decoded.
        start: what the run begins with: `Text()`, or an `Image`, `Inpaint`, `Outpaint` or `Latent`.
        control: pictures that lead the run, each through a ControlNet of the bundle; several add up.
        upscale: a second pass over the enlarged result, which then has that size.

    Raises:
        RequestError: values that no bundle could serve.
    """

    prompt: Prompts
    negative: Prompts = ""
    syntax: str = "weighted"
    clip_skip: int = 0
    seed: int | None = None
    images: int = 1
    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    sampler: str | None = None
    schedule: str | None = None
    sigmas: Sequence[float] | None = None
    timesteps: Sequence[int] | None = None
    eta: float | None = None
    skip_layers: Sequence[int] = ()
    skip_guidance: float = 2.8
    skip_range: tuple[float, float] = (0.01, 0.2)
    stop: float | None = None
    output: str = "image"
    start: Start = TEXT
    control: Sequence[Control] = ()
    upscale: Upscale | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise RequestError("no prompt", expected="a text or a sequence of texts")
        if self.images < 1:
            raise RequestError(f"images is {self.images}", expected="1 or more")
        if not 0 <= self.rescale <= 1:
            raise RequestError(f"rescale is {self.rescale}", expected="0 (off) to 1")
        for name, share in (("guidance_interval", self.guidance_interval), ("skip_range", self.skip_range)):
            if len(share) != 2 or not 0 <= share[0] <= share[1] <= 1:
                raise RequestError(f"{name} is {share}", expected="two fractions, 0 to 1, the smaller first")
        if self.output not in OUTPUTS:
            raise RequestError(f"output '{self.output}'", expected=" or ".join(OUTPUTS))
        if self.upscale is not None and (self.output != OUTPUTS[0] or self.stop is not None):
            raise RequestError("upscaling with stop or another output than image", expected="two runs")
        if self.seed is not None:
            check_seed(self.seed)
        if not isinstance(self.negative, str) and len(self.negative) != len(self.prompts):
            raise RequestError(
                f"{len(self.negative)} negative prompts for {len(self.prompts)} prompts",
                expected="one for all, or one for each",
            )

    @property
    def prompts(self) -> tuple[str, ...]:
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt)

    @property
    def negatives(self) -> tuple[str, ...]:
        """One for each prompt."""
        if isinstance(self.negative, str):
            return (self.negative,) * len(self.prompts)
        return tuple(self.negative)


def explicit_steps(request: Request) -> int | None:
    """How many steps explicit noise levels make; the last sigma is where the run ends. None without any."""
    if request.timesteps is not None:
        return len(request.timesteps)
    return None if request.sigmas is None else len(request.sigmas) - 1


def clip_skip_of(requests: Sequence[Request], family: Family) -> int:
    """The layers to leave out that the requests of a batch agree on: its texts are read together.

    Raises:
        RequestError: they differ, or are more than a text tower has or the bundle says that it has.
    """
    skip, *others = sorted({request.clip_skip for request in requests})
    if others:
        listed = ", ".join(map(str, (skip, *others)))
        raise RequestError(f"a batch of clip_skip {listed}", expected="one for all", hint="run them apart")
    most = min((tower.layers - 1 - tower.clip_skip for tower in family.towers if tower.layers), default=0)
    if not 0 <= skip <= most:
        raise RequestError(f"clip_skip is {skip}", expected=f"0 to {most} for this bundle")
    return skip


def check_size(size: tuple[int, int], family: Family) -> tuple[int, int]:
    """The size (width, height) in pixels, as it is.

    Raises:
        RequestError: not a multiple of what the bundle asks, or out of its range.
    """
    low, high = family.size_range_px
    factor = family.multiple_px
    for name, value in zip(("width", "height"), size, strict=True):
        if value % factor:
            nearest = max(low, round(value / factor) * factor)
            raise RequestError(
                f"{name} is {value} px", expected=f"a multiple of {factor}", hint=f"the nearest is {nearest}"
            )
        if not low <= value <= high:
            raise RequestError(f"{name} is {value} px", expected=f"{low} to {high} px for this bundle")
    return size
