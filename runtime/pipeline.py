"""From a prompt to images, over engines: tokens, context, start state, steps, image."""

import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Generator as Yielder
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from types import TracebackType
from typing import Self, Unpack

import numpy as np

from latentrt.arrays import DeviceArray, FloatArray, Value, slot, to_host
from latentrt.backends.host_memory import MemoryLimit
from latentrt.build_options import naming_build_options
from latentrt.bundle import CONTROLNET, Bundle
from latentrt.concurrency.reservation import Reservation, ReservedRun, Steps
from latentrt.denoise.batch import Plan, make_plan
from latentrt.denoise.guidance import segments
from latentrt.denoise.needs import check_cache, check_shallow_graph, memory_calls
from latentrt.denoise.second_pass import second_pass
from latentrt.denoise.step_inputs import latent_shape, step_inputs
from latentrt.denoise.stepper import Stepper
from latentrt.engine import Engine, EngineSet
from latentrt.errors import RequestError
from latentrt.images.control import Pass, check_controls, check_names
from latentrt.images.tiles import Tile
from latentrt.images.vae import Vae
from latentrt.lora import Lora, LoraLike, Merged, merge
from latentrt.manifest.contract import IMAGE_LATENT
from latentrt.output.result import Images, Result, Step, Timings
from latentrt.request import MOST_IMAGES, Prompts, Request, RequestOptions, as_request
from latentrt.samplers.torch_rng import Generator
from latentrt.text.conditioning import Conditioner, distinct
from latentrt.values import FilePath, Flag, Function, Instance, Kind, Listed, Optional, Text, Whole, check, shown

_REQUESTS = Listed(Instance((Request,)), "requests", least=1, most=MOST_IMAGES)
_NAMES = Listed(Text(), "names", most=100)
_PREPARED: Mapping[str, Kind] = {"guided": Flag(), "chunks": Whole(1, 1000), "cached": Flag()}
_PROGRESS = Optional(Function())


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """What a loop begins with.

    Args:
        feed, rows: as `Engine.sweep` takes them.
        passes: of ControlNets, in all calls.
    """

    feed: dict[str, FloatArray]
    rows: dict[str, FloatArray]
    passes: list[Pass]


class Pipeline:
    """A bundle and its engines. Several pipelines may live side by side.

    It serves one run and one thread at a time: as long as a run or a call is under way, every other one is refused.
    But the thread of a run may `decode` between two of its steps, `plan` is possible at any time, and `close`, as the
    `close` of a loop, ends a run of another thread after the engine call that it is in.

    Args:
        bundle: what to run.
        engines: one for each of the family's text encoders, `step` and `decoder`. The pipeline closes them.
            With an `EngineSet` others are opened when they are first needed, such as `encoder` for a photo, and
            `set_lora` is possible.
        merged: the LoRAs that the engines hold already.
        tile: side in pixels of the parts that pictures are decoded and encoded in; `auto` takes parts for large
            pictures only, None never.
        memory: what a run may take, and which of the engines are loaded meanwhile; None: no limit.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: Mapping[str, Engine],
        *,
        merged: Merged | None = None,
        tile: Tile = "auto",
        memory: MemoryLimit | None = None,
    ) -> None:
        self.bundle = bundle
        self._memory = memory
        self.engines = EngineSet.of(engines)
        self._stepper = Stepper(bundle, self.engines)
        self.vae = Vae(bundle, self.engines, tile=tile)
        self.conditioner = Conditioner(bundle, self.engines)
        self._merged = merged if merged is not None else Merged()
        self._reservation = Reservation.of(self.engines["step"])
        self._preview = None if bundle.preview is None else np.array(bundle.preview, np.float32)

    @property
    def backend(self) -> str:
        """Name of the backend that runs the steps."""
        return self.engines["step"].backend

    @property
    def lora(self) -> tuple[Lora, ...]:
        """The LoRAs that are in the weights."""
        return self._merged.loras

    def set_lora(self, lora: Sequence[LoraLike]) -> None:
        """Puts these LoRAs in the place of those that are in the weights; none restores the bundle's own to the bit.

        Files are read and checked now. Of the engines, those whose weights change load again when they are next needed.

        Args:
            lora: paths, (path, scale) or `Lora`s. All are added to the bundle's pristine weights.

        Raises:
            RequestError: a file that cannot be read or does not belong to the bundle, or a run under way. Everything
                stays as it was.
            EnvironmentLacks: prebuilt engines, and none with these LoRAs. Everything stays as it was.
            BundleError: a bundle whose weights cannot be changed.
        """
        self._reservation.check_open()
        if self.engines.fixed:
            raise RequestError("this pipeline has engines of its own", expected="one that latentrt.load made")
        with self._reservation.alone():
            merged = merge(self.bundle, lora)
            self.engines.replace(merged.over(self.bundle))
            self._reservation.covers(self.engines["step"])
            self._merged = merged

    @property
    def embeddings(self) -> tuple[str, ...]:
        """Names of the embeddings that a prompt may hold, as `<name>`."""
        return tuple(self.conditioner.embeddings)

    def add_embedding(self, name: str, path: str | PathLike[str]) -> None:
        """Reads a file of textual inversion, which `<name>` then stands for; one of the same name is replaced.

        Raises:
            RequestError: a name that no prompt can hold, a file that cannot be read or is not for this bundle, or a run
                under way.
        """
        check({"name": Text(), "path": FilePath()}, name=name, path=path)
        with self._reservation.alone():
            self.conditioner.add_embedding(name, path)

    def generate(
        self,
        prompt: Prompts | Request,
        *,
        progress: Callable[[Step], None] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Result:
        """Makes images; the arguments are those of `Request`, or a whole one in the place of the prompt.

        Args:
            progress: as `run` takes it.
            options: the other fields of a `Request`.

        Raises:
            RequestError: something that this bundle cannot serve.
            BackendError: an engine failed, or the latent is no longer finite.
        """
        return self.run(as_request(prompt, options), progress=progress)

    def run(self, *requests: Request, progress: Callable[[Step], None] | None = None) -> Result:
        """Makes the images of all requests as one batch; they must agree in size.

        Args:
            requests: each with settings of its own.
            progress: called after each engine call; upscaling begins again at 0.

        Raises:
            As `generate`.
        """
        _PROGRESS.read("progress", progress)
        plan = self.plan(requests)
        self._check_memory(plan)
        with ReservedRun(self._reservation) as run:
            first, latents = self._run(run, plan, progress)
            if latents is None or all(request.upscale is None for request in first.requests):
                return first
            again = second_pass(first.requests, first.images, latents, self.bundle.family)
            second, _ = self._run(run, self._plan(list(again)), progress)
        return replace(first, images=second.images, timings=first.timings.then(second.timings))

    def _run(
        self, run: ReservedRun, plan: Plan, progress: Callable[[Step], None] | None
    ) -> tuple[Result, FloatArray | None]:
        """One pass: what it gives, and its latents [B, C, h, w] where they are asked for or another pass follows."""
        began = first_at = time.perf_counter()
        calls_s: list[float] = []
        loop = self._denoise(plan)
        while (step := run.next(loop)) is not None:
            if not calls_s:
                first_at = time.perf_counter() - step.seconds
            calls_s.append(step.seconds)
            if progress is not None:
                progress(step)
            latest = step
        with run.turn():
            waiting_from = time.perf_counter()
            self._stepper.engine(plan.controls).wait()
            denoised_at = time.perf_counter()
            share = (denoised_at - waiting_from) / len(calls_s)
            latents = slot(latest.state, 0)
            width, height = plan.size
            images = plan.finish(self._decode(latents)) if plan.decodes else np.zeros((0, height, width, 3), np.uint8)
            done = time.perf_counter()
            wanted = not plan.decodes or any(request.upscale is not None for request in plan.requests)
            host = np.array(to_host(latents)) if wanted else None
        result = Result(
            images=images,
            seeds=plan.seeds,
            timings=Timings(
                text_ms=1e3 * (first_at - began),
                steps_ms=tuple(1e3 * (seconds + share) for seconds in calls_s),
                decode_ms=1e3 * (done - denoised_at),
                total_ms=1e3 * (done - began),
            ),
            requests=plan.requests,
            latents=None if plan.decodes else host,
            model=self.bundle.name,
            lora=self.lora,
        )
        return result, host

    def plan(self, requests: Sequence[Request]) -> Plan:
        """What `run` would do for these requests: defaults filled in, sizes, tables. Makes nothing, and may be asked
        for at any time by any thread.

        Raises:
            RequestError: as `generate`.
        """
        plan = self._plan(requests)
        check_cache(plan, self.bundle)
        return plan

    def _plan(self, requests: Sequence[Request]) -> Plan:
        self._reservation.check_open()
        for request in _REQUESTS.read("requests", requests):
            check_controls(request.control, self.bundle.controls, guesses=not self.bundle.family.blocks)
        plan = make_plan(requests, self.bundle.family, extra="extra" in self.engines["step"].inputs)
        self.conditioner.check(plan.texts)
        if self._memory is not None:
            self._memory.check([replace(call, images=1) for call in memory_calls(plan, self.bundle, self.vae)])
        return plan

    def images_at_a_time(self, request: Request, *, most: int) -> int:
        """Of `most` images like a request's, how many its memory lasts for at a time: all of them without a limit.

        Raises:
            RequestError: as `plan`.
        """
        if self._memory is None:
            return most
        calls = memory_calls(self._plan([request]), self.bundle, self.vae)
        return min(self._memory.images(call, most=most) for call in calls)

    def _check_memory(self, plan: Plan) -> None:
        """Raises RequestError where memory does not last for all images of a plan at a time; `plan` asks for one."""
        if self._memory is not None:
            self._memory.check(memory_calls(plan, self.bundle, self.vae))

    def check_sizes(self, plan: Plan) -> None:
        """Loads nothing, and raises where the step cannot take the images of a plan, one at a time.

        Raises:
            RequestError: a size, as many branches or such long prompts as no engine is built for.
        """
        chunks = self.conditioner.chunks(distinct(plan.texts))
        context = (plan.branches, 1, self.bundle.family.context_length(chunks), self.bundle.family.width)
        with naming_build_options(self.bundle, plan):
            self._stepper.check(plan.size, context)

    def steps(self, *requests: Request) -> Steps[Step]:
        """The denoising loop, one engine call at a time: progress, preview, and cancel by leaving the loop.

        Raises:
            As `generate`; what is wrong with the requests, at once.
        """
        if any(request.upscale is not None for request in _REQUESTS.read("requests", requests)):
            raise RequestError("upscaling step by step", expected="`run` or `generate`, which make both passes")
        plan = self.plan(requests)
        self._check_memory(plan)
        return Steps(ReservedRun(self._reservation), self._denoise(plan))

    def hold(self) -> ReservedRun:
        """Reserves the pipeline for a loop of the caller's own, of `begin` and `call`, until what it returns is closed.
        Every other run and call is refused meanwhile.

        Raises:
            RequestError: a run or a call is under way, or the pipeline is closed.
        """
        run = ReservedRun(self._reservation)
        with run.turn():
            return run

    def begin(self, plan: Plan) -> Beginning:
        """What the loop over these images begins with: texts and photos encoded, noise drawn. A thread of its own may
        make it while another one is in `call`.

        Raises:
            As `generate`.
        """
        if self._memory is not None:
            self._memory.settle(memory_calls(plan, self.bundle, self.vae))
        with naming_build_options(self.bundle, plan):
            generators = [Generator(seed) for seed in plan.seeds]
            self.conditioner.notice(plan.texts)
            conditioning = self.conditioner.encode(plan.texts, clip_skip=plan.clip_skip)
            feed, rows = step_inputs(plan, self.bundle.family, conditioning, generators, self.vae.encode)
            return Beginning(feed, rows, self._control_passes(plan))

    def call(self, feed: Mapping[str, Value], *, passes: Sequence[Pass] | None = None) -> Mapping[str, Value]:
        """One engine call of the step, of images that may be at different steps of different runs. Its outputs are on
        the host, or where `to_host` fetches them before the next call.

        Args:
            feed: every input but residuals.
            passes: of ControlNets, for this one call; an empty list is the step with residuals that are 0, None the
                plain step.

        Raises:
            RequestError: sizes that the engines do not take.
            BackendError: an engine failed.
        """
        with naming_build_options(self.bundle):
            if passes is None:
                return self._stepper.call(feed)
            return self._stepper.call_controlled(feed, passes)

    def decode(self, latent: Value) -> Images:
        """Latents [B, C, h, w], on the host or where the step left them, to images uint8 [B, H, W, 3].

        It is the model's picture: what `run` crops or pastes afterwards (docs/tasks.md) is not done here.

        Raises:
            BackendError: the latent is not finite.
            RequestError: no float32 latents of this bundle, or another thread's run or call is under way.
        """
        self._check_latents(latent)
        with self._reservation.beside():
            return self._decode(latent)

    def prepare(
        self,
        *,
        size: tuple[int, int] | None = None,
        images: int = 1,
        guided: bool = True,
        controls: Sequence[str] = (),
        chunks: int = 1,
        cached: bool = False,
    ) -> None:
        """Loads and compiles for this size and batch, so that the first request does not wait. It runs no text encoder.

        Args:
            controls: names of the ControlNets that the requests use. The step with residuals then takes the place of
                the plain one, as it does in a run with them.
            chunks: of the longest prompt, each of 75 tokens (docs/prompts.md).
            cached: whether requests use step caching.

        Raises:
            RequestError, BackendError: as `generate`.
        """
        check(_PREPARED, guided=guided, chunks=chunks, cached=cached)
        names = list(dict.fromkeys(_NAMES.read("controls", controls)))
        check_names(names, self.bundle.controls)
        if cached:
            check_shallow_graph(self.bundle)
        # A prompt that is not the negative one: the texts of a run are encoded together, each once.
        plan = self.plan([Request("a", size=size, images=images, guidance=2.0 if guided else 1.0)])
        family, shape = self.bundle.family, latent_shape(plan.size, self.bundle.family)
        context = (plan.branches, len(plan.image_plans), family.context_length(chunks), family.width)
        if self._memory is not None:
            calls = memory_calls(plan, self.bundle, self.vae)
            self._memory.settle([replace(call, controls=tuple(names), cached=cached) for call in calls])
        with self._reservation.alone(), naming_build_options(self.bundle, plan):
            controlled = [self.bundle.component(CONTROLNET + name) for name in names]
            stepper = partial(
                self._stepper.prepare, plan.size, context, rows=plan.changing, controls=names, cached=cached
            )
            loads: list[tuple[Sequence[str], Callable[[], None]]] = [
                (["decoder"], partial(self.vae.prepare, (len(plan.image_plans), *shape))),
                (self.bundle.text_encoders, partial(self.conditioner.prepare, plan.texts, chunks=chunks)),
                (["step"], stepper),
            ]
            if plan.extra or any(IMAGE_LATENT in control.dims for control in controlled):
                loads.insert(2, (["encoder"], partial(self.vae.prepare_encoder, shape)))
            # On a device the decoder needs the most memory for its activations, which engines share there, and the
            # step is to be there in the end. Elsewhere the peak is where the largest is loaded, beside the fewest.
            if not self.engines["step"].on_device:
                loads.sort(key=lambda each: -sum(self.bundle.component(name).parameters for name in each[0]))
            for _, load in loads:
                load()

    def close(self) -> None:
        """Frees the engines; nothing can be asked of it afterwards. A run of another thread, or a loop, ends first:
        after the engine call that it is in, its next one is refused. Closing twice is fine.

        Raises:
            RequestError: asked from within a call of the pipeline, such as `notify`.
        """
        self._reservation.close(self.engines.close)

    def __enter__(self) -> Self:
        self._reservation.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._reservation.closed else ""
        return f"<Pipeline {self.bundle.name}: {self.bundle.family.name} on {self.backend}{state}>"

    def _check_latents(self, latent: Value) -> None:
        self._reservation.check_open()
        channels = self.bundle.family.latent_channels
        expected = f"float32 [B, {channels}, h, w]"
        if not isinstance(latent, np.ndarray | DeviceArray):
            raise RequestError(f"the latents are {shown(latent)}", expected=expected)
        shape = tuple(latent.shape)
        if (
            latent.dtype != np.float32
            or len(shape) != 4
            or shape[1] != self.bundle.family.latent_channels
            or 0 in shape
        ):
            raise RequestError(f"the latents are {latent.dtype} {list(shape)}", expected=expected)

    def _decode(self, latent: Value) -> Images:
        with naming_build_options(self.bundle):
            return self.vae.decode(latent)

    def _denoise(self, plan: Plan) -> Yielder[Step, None, None]:
        with naming_build_options(self.bundle, plan):
            if not plan.deep.all():
                self._stepper.shallow(plan.controls)  # what it lacks shows before the work begins
            beginning = self.begin(plan)
            began, index = time.perf_counter(), 0
            out: Mapping[str, Value] = {}
            acting = [each.acting for each in beginning.passes]
            for part in segments(beginning.feed, beginning.rows, acting=acting, deep=plan.deep):
                with closing(self._stepper.sweep(plan, part, beginning.passes, out)) as outputs:
                    for out in outputs:
                        seconds = time.perf_counter() - began
                        yield Step(index, plan.calls, seconds, out["next_state"], out["denoised"], self._preview)
                        began, index = time.perf_counter(), index + 1

    def _control_passes(self, plan: Plan) -> list[Pass]:
        """What ControlNets do in a run, with their pictures as they read them."""
        if not plan.controls:
            return []
        graphs, shape = self.bundle.components, latent_shape(plan.size, self.bundle.family)
        return [
            each.encoded(self.vae.encode, shape) if IMAGE_LATENT in graphs[each.component].dims else each
            for each in plan.control_passes(len(self._stepper.residuals))
        ]
