"""What a caller asks for. None means the bundle's default, which `latentrt inspect` shows."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from types import MappingProxyType
from typing import Any, TypedDict, get_args

from latentrt.errors import RequestError
from latentrt.family import Family
from latentrt.images.control import Control
from latentrt.images.start import TEXT, Start
from latentrt.images.upscale import Upscale
from latentrt.names import OutputName, SamplerName, ScheduleName, SyntaxName
from latentrt.samplers.step_cache import StepCache, StepCacheKind
from latentrt.samplers.torch_rng import check_seed
from latentrt.text.prompt_syntax import SYNTAXES
from latentrt.values import (
    Fractions,
    Instance,
    Kind,
    Listed,
    Number,
    OneOf,
    Optional,
    Size,
    Text,
    Texts,
    Whole,
    settle,
    shown,
)

Prompts = str | Sequence[str]
OUTPUTS = ("image", "latent")

MOST_IMAGES, MOST_STEPS = 4096, 1000
"""Of one request."""

_MANY = "make several requests, or a dataset: latentrt generate BUNDLE --prompts FILE -o FOLDER"
_LONG = "take a part with denoising_end=, and go on from its latent with start=Latent(x, denoising_start=...)"


@dataclass(frozen=True, slots=True)
class _Seed:
    """A seed of torch's generator."""

    def read(self, name: str, value: Any) -> int:
        return check_seed(value)


SCALE = Number(0, 1000)
GUIDANCE: Mapping[str, Kind] = {"scale": Optional(SCALE), "interval": Fractions(), "rescale": Number(0, 1)}
LAYERS = Listed(Whole(0, 1000), "whole numbers", most=1000)
SKIP_LAYERS: Mapping[str, Kind] = {"layers": LAYERS, "scale": Number(-1000, 1000), "range": Fractions()}


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance; a number stands for its scale alone.

    Args:
        scale: 0 or more; at 1 or below there is none, as in diffusers, at half the cost. A model with guidance as an
            input is told the value. None is the bundle's default.
        interval: fractions of the run, from the first to before the second; in other calls there is no guidance, and
            they cost half as much.
        rescale: 0..1, towards the standard deviation of the conditional prediction.

    Raises:
        RequestError: a value out of range.
    """

    scale: float | None = None
    _: KW_ONLY
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    def __post_init__(self) -> None:
        settle(self, GUIDANCE, of=" of guidance")

    @classmethod
    def of(cls, value: "float | Guidance | None") -> "Guidance":
        """What a request's field says, in full."""
        return value if isinstance(value, Guidance) else cls(value)


@dataclass(frozen=True, slots=True)
class SkipLayers:
    """Skip-layer guidance of a transformer; a sequence stands for its layers alone.

    Args:
        layers: indices of the blocks that are skipped, one at least. It costs a branch while it is on.
        scale: of the difference between the prompt's output and that with blocks skipped, which is added.
        range: fractions of the run; it is on in the calls strictly between them.

    Raises:
        RequestError: a value out of range.
    """

    layers: Sequence[int]
    _: KW_ONLY
    scale: float = 2.8
    range: tuple[float, float] = (0.01, 0.2)

    def __post_init__(self) -> None:
        settle(self, SKIP_LAYERS, of=" of skip_layers")
        object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        if not self.layers:
            raise RequestError("skip_layers without a layer", expected="one at least, or None")


@dataclass(frozen=True, slots=True)
class _GuidanceKind:
    """A scale, or all of guidance; one that is a scale alone becomes that."""

    def read(self, name: str, value: Any) -> float | Guidance | None:
        if isinstance(value, Guidance):
            return value.scale if value == Guidance(value.scale) else value
        return None if value is None else SCALE.read(name, value)


@dataclass(frozen=True, slots=True)
class _SkipLayersKind:
    """Layers, all of skip-layer guidance, or neither."""

    def read(self, name: str, value: Any) -> SkipLayers | None:
        if value is None or isinstance(value, SkipLayers):
            return value
        if isinstance(value, Mapping):
            raise RequestError(f"{name} is {shown(value)}", expected="layers, or a SkipLayers")
        layers = LAYERS.read(name, value)
        return SkipLayers(layers) if layers else None


REQUEST: Mapping[str, Kind] = MappingProxyType(
    {
        "prompt": Texts(MOST_IMAGES, required=True),
        "negative": Texts(MOST_IMAGES),
        "syntax": OneOf(SYNTAXES),
        "clip_skip": Whole(0, 1000),
        "seed": Optional(_Seed()),
        "images": Whole(1, MOST_IMAGES, beyond=_MANY),
        "size": Optional(Size()),
        "steps": Optional(Whole(1, MOST_STEPS, beyond=_LONG)),
        "guidance": _GuidanceKind(),
        "sampler": Optional(Text()),
        "schedule": Optional(Text()),
        "sigmas": Optional(Listed(Number(0, 1e6), "numbers", least=2, most=MOST_STEPS + 1)),
        "timesteps": Optional(Listed(Whole(0, 1_000_000), "whole numbers", least=1, most=MOST_STEPS)),
        "eta": Optional(Number(0, 1)),
        "skip_layers": _SkipLayersKind(),
        "cache": StepCacheKind(),
        "denoising_end": Optional(Number(0, 1, above=True)),
        "output": OneOf(OUTPUTS),
        "start": Instance(get_args(Start), "such as start=latentrt.Image(PATH)"),
        "control": Listed(Instance((Control,), "such as latentrt.Control(NAME, IMAGE)"), "controls", most=100),
        "upscale": Optional(Instance((Upscale,), "such as upscale=latentrt.Upscale(2)")),
    }
)
"""What each field may be; what it may be with this bundle is judged by `Pipeline.plan`."""


@dataclass(frozen=True, slots=True)
class Request:
    """One or more images of the same size, made by the same sampler.

    Args:
        prompt: one text, or one for each image.
        negative: what to steer away from; one text for all, or one for each prompt. Unused without guidance.
        syntax: of prompts: `weighted` gives `(word:1.3)`, BREAK and the like a meaning (docs/prompts.md), `plain` none.
        clip_skip: layers to leave out at the top of the text encoders, besides those that the model leaves out anyway.
        seed: of the first image; image i uses `seed` + i. None draws one, which the result reports.
        images: how many images of each prompt.
        size: (width, height) in pixels. None is the bundle's default, or what the start value comes to by itself.
        steps: denoising steps; Heun and DPM2 call the network twice in each.
        guidance: scale of classifier-free guidance, or a `Guidance`; at 1 or below there is none.
        sampler, schedule: names, see `latentrt.sampler_names()` and `latentrt.schedule_names()`.
        sigmas, timesteps: explicit noise levels instead of a schedule.
        eta: noise of `ddim` (0..1) and `tcd`.
        skip_layers: blocks of a transformer for skip-layer guidance, or a `SkipLayers`; None is off.
        cache: step caching: a `StepCache`, or its interval or its deep calls alone; None computes every call in full.
        denoising_end: share of the steps, to the nearest, after which the run ends; None takes all. What is left of
            the noise is in the result: `start=Latent(result.latents, denoising_start=...)` of the same share goes on,
            with this model or another.
        output: `image`, or `latent`: the result holds latents that nothing has decoded.
        start: what the run begins with: `Text()`, or an `Image`, `Inpaint`, `Outpaint` or `Latent`.
        control: pictures that lead the run, each through a ControlNet of the bundle; several add up.
        upscale: a second pass over the enlarged result, which then has that size.

    Raises:
        RequestError: values that no bundle could serve.
    """

    prompt: Prompts
    negative: Prompts = ""
    syntax: SyntaxName = "weighted"
    clip_skip: int = 0
    seed: int | None = None
    images: int = 1
    size: tuple[int, int] | None = None
    steps: int | None = None
    guidance: float | Guidance | None = None
    sampler: SamplerName | None = None
    schedule: ScheduleName | None = None
    sigmas: Sequence[float] | None = None
    timesteps: Sequence[int] | None = None
    eta: float | None = None
    skip_layers: Sequence[int] | SkipLayers | None = None
    cache: int | Sequence[int] | StepCache | None = None
    denoising_end: float | None = None
    output: OutputName = "image"
    start: Start = TEXT
    control: Sequence[Control] = ()
    upscale: Upscale | None = None

    def __post_init__(self) -> None:
        settle(self, REQUEST)
        count = len(self.prompts) * self.images
        if count > MOST_IMAGES:
            raise RequestError(f"{count} images", expected=f"at most {MOST_IMAGES}", hint=_MANY)
        if self.upscale is not None and (self.output != OUTPUTS[0] or self.denoising_end is not None):
            raise RequestError("upscaling with denoising_end or another output than image", expected="two runs")
        if self.upscale is not None and self.caching is not None and self.caching.deep is not None:
            raise RequestError("upscaling with a list of deep calls", expected="an interval, which fits both passes")
        if not isinstance(self.negative, str) and len(self.negative) != len(self.prompts):
            raise RequestError(
                f"{len(self.negative)} negative prompts for {len(self.prompts)} prompts",
                expected="one for all, or one for each",
            )

    @property
    def prompts(self) -> tuple[str, ...]:
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt)

    @property
    def skipping(self) -> SkipLayers | None:
        """Skip-layer guidance in full."""
        return self.skip_layers if isinstance(self.skip_layers, SkipLayers) else None  # what reading made of it

    @property
    def caching(self) -> StepCache | None:
        """Step caching in full; None where nothing is cached."""
        return self.cache if isinstance(self.cache, StepCache) else None  # what reading made of it

    @property
    def negatives(self) -> tuple[str, ...]:
        """One for each prompt."""
        if isinstance(self.negative, str):
            return (self.negative,) * len(self.prompts)
        return tuple(self.negative)


class RequestOptions(TypedDict, total=False):
    """The fields of `Request` but its prompt, as `Pipeline.generate` takes them; a test compares both."""

    negative: Prompts
    syntax: SyntaxName
    clip_skip: int
    seed: int | None
    images: int
    size: tuple[int, int] | None
    steps: int | None
    guidance: float | Guidance | None
    sampler: SamplerName | None
    schedule: ScheduleName | None
    sigmas: Sequence[float] | None
    timesteps: Sequence[int] | None
    eta: float | None
    skip_layers: Sequence[int] | SkipLayers | None
    cache: int | Sequence[int] | StepCache | None
    denoising_end: float | None
    output: OutputName
    start: Start
    control: Sequence[Control]
    upscale: Upscale | None


def as_request(prompt: Prompts | Request, options: RequestOptions) -> Request:
    """A prompt and the other fields as a request; a request stands for itself."""
    names = [field.name for field in fields(Request)]
    if unknown := [name for name in options if name not in names]:
        raise RequestError(f"an option {unknown[0]}", expected=f"one of {', '.join(names[1:])}")
    if not isinstance(prompt, Request):
        return Request(prompt, **options)
    if options:
        raise RequestError(
            f"a Request, and {next(iter(options))} besides",
            expected="one of them",
            hint="dataclasses.replace(request, ...)",
        )
    return prompt


def explicit_steps(request: Request) -> int | None:
    """How many steps explicit noise levels make; the last sigma is where the run ends. None without any."""
    if request.timesteps is not None:
        return len(request.timesteps)
    return None if request.sigmas is None else len(request.sigmas) - 1


def clip_skip_of(requests: Sequence[Request], family: Family) -> int:
    """The layers to leave out that the requests of a batch agree on: its texts are read together."""
    skip, *others = sorted({request.clip_skip for request in requests})
    if others:
        listed = ", ".join(map(str, (skip, *others)))
        raise RequestError(f"a batch of clip_skip {listed}", expected="one for all", hint="run them apart")
    most = min((each.layers - 1 - each.clip_skip for each in family.text_encoders if each.layers), default=0)
    if not 0 <= skip <= most:
        raise RequestError(f"clip_skip is {skip}", expected=f"0 to {most} for this bundle")
    return skip


def check_size(size: tuple[int, int], family: Family) -> tuple[int, int]:
    """The size (width, height) in pixels, unless it is out of the bundle's range or no multiple of what it asks."""
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
