"""A model as a service has it: how it is loaded, the LoRAs in its weights, and what its backend means for its calls."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

from latentrt.backends import BACKENDS
from latentrt.backends.cache import graph_bytes
from latentrt.backends.host_memory import free_bytes
from latentrt.bench.machine import usable_cores
from latentrt.bundle import MANIFEST, Bundle, sha256_file
from latentrt.concurrency.reservation import ReservedRun
from latentrt.errors import RequestError
from latentrt.family import Defaults
from latentrt.loading import load
from latentrt.lora import Lora
from latentrt.names import BackendName, ComputeName, DeviceName, SamplerName, ScheduleName
from latentrt.pipeline import Pipeline
from latentrt.request import Request
from latentrt.samplers.table import sampler_names, schedule_names
from latentrt.serving.memory import call_area

IMAGES = 8
"""Of the model's own size, in one call at most, where nothing else is said."""

LoraNames = tuple[tuple[str, float], ...]
"""Names and scales."""

SIZES = (1, 2, 4, 8, 16, 32)
"""Of batches: few, since engines are compiled for shapes."""

_PADDING_ON_GPU = 0.25
_HOLD_SHAPE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How calls of a model are made up.

    Args:
        padding: largest share of a call's rows that may be padding.
        sizes: of batches.
        hold_s: seconds for which calls of one key go on while it has images and there are several keys.
        beside: whether encoding and decoding have a thread of their own; otherwise they go between the calls.
    """

    padding: float
    sizes: Sequence[int] = SIZES
    hold_s: float = 0.0
    beside: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How bundles are loaded, as `latentrt.load` takes it."""

    backend: BackendName
    device: DeviceName | None
    compute: ComputeName | None
    threads: int | None
    cache_dir: str | PathLike[str] | None

    def load(self, path: Path) -> Pipeline:
        return load(
            path,
            backend=self.backend,
            device=self.device,
            compute=self.compute,
            threads=self.threads,
            cache_dir=self.cache_dir,
        )

    @property
    def asks_for_gpu(self) -> bool:
        """Whether it loads nothing but for a GPU."""
        return self.device == "cuda" or any(row.name == self.backend and row.devices[0] == "cuda" for row in BACKENDS)

    def on_gpu(self, pipe: Pipeline) -> bool:
        """Whether a pipeline that was loaded so runs on a GPU."""
        usual = {row.name: row.devices[0] for row in BACKENDS}.get(pipe.backend)
        return "cuda" in (self.device, usual)

    def policy(self, pipe: Pipeline, *, padding: float | None) -> Policy:
        """What fits a pipeline that was loaded so.

        On a GPU a few more images cost little, and small work hides beside large. On a CPU padding costs what images
        cost, and two engines at a time take each other's cores if each may have more than half of them. OpenVINO
        compiles for each shape, and holds two.
        """
        if self.on_gpu(pipe):
            return Policy(padding=_PADDING_ON_GPU if padding is None else padding)
        padding = 0.0 if padding is None else padding
        beside = pipe.backend not in {row.name for row in BACKENDS} or (
            self.threads is not None and 2 * self.threads <= usable_cores()
        )
        if pipe.backend == "openvino":
            return Policy(padding=padding, sizes=(1,), hold_s=_HOLD_SHAPE_S, beside=beside)
        return Policy(padding=padding, beside=beside)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a client may know of a model.

    Args:
        name: that requests have it by.
        family: for people, such as `sd15`.
        bundle: the first digits of its manifest's sha256.
        defaults: what a request means by None; `size` is (width, height) in pixels.
        size_range_px: smallest and largest width and height.
        multiple_px: what width and height are multiples of.
        samplers, schedules: names that fit it.
        controls: names of its ControlNets.
        loras: names of the LoRAs that the service has.
        edits: whether photos can be started from.
    """

    name: str
    family: str
    bundle: str
    defaults: Defaults
    size_range_px: tuple[int, int]
    multiple_px: int
    samplers: tuple[SamplerName, ...]
    schedules: tuple[ScheduleName, ...]
    controls: tuple[str, ...]
    loras: tuple[str, ...] = field(default=())
    edits: bool = True


@dataclass(frozen=True, slots=True)
class Source:
    """A bundle's path, or a pipeline."""

    def read(self, name: str, value: object) -> object:
        if not isinstance(value, str | PathLike | Pipeline):
            raise RequestError(f"{name} is {value!r}", expected="a bundle's path or a Pipeline")
        return value


class Model:
    """A bundle or a pipeline, and what is in its weights. Its pipeline is held from when it is there until `close`.

    Args:
        source: a bundle, which is loaded when it is first needed, or a pipeline, which is not closed here.
        opening: how bundles are loaded.
        padding: as `Policy` has it; None: what fits the backend.
        loras: files by name.
    """

    def __init__(
        self,
        source: str | PathLike[str] | Pipeline,
        *,
        opening: Opening,
        padding: float | None,
        loras: Mapping[str, Path],
    ) -> None:
        self._given = source if isinstance(source, Pipeline) else None
        self.bundle = source.bundle if isinstance(source, Pipeline) else Bundle.open(source)
        self._opening, self._padding, self._loras = opening, padding, loras
        self._loading = threading.Lock()
        self._pipeline: Pipeline | None = None
        self._held: ReservedRun | None = None
        self._own_loras: tuple[Lora, ...] = ()
        self._policy: Policy | None = None
        if self._given is not None:
            self._hold(self._given)

    @property
    def edits(self) -> bool:
        """Whether photos can be started from."""
        return "encoder" in self.bundle.components or (self._given is not None and "encoder" in self._given.engines)

    def info(self, name: str, *, loras: tuple[str, ...], controls: Mapping[str, str]) -> ModelInfo:
        """What clients may know of it.

        Args:
            loras: names of those that the service has.
            controls: other names of ControlNets.
        """
        family, own = self.bundle.family, self.bundle.controls
        return ModelInfo(
            name=name,
            family=family.name,
            bundle=sha256_file(self.bundle.root / MANIFEST)[:12],
            defaults=family.defaults,
            size_range_px=family.size_range_px,
            multiple_px=family.multiple_px,
            samplers=sampler_names(family.noise),
            schedules=schedule_names(),
            controls=(*own, *(other for other, control in controls.items() if control in own)),
            loras=loras,
            edits=self.edits,
        )

    @property
    def bytes(self) -> int:
        """About what its weights need in memory: on a CPU in the types that graphs compute in, on a GPU as they are on
        disk."""
        if not self._opening.asks_for_gpu:
            return sum(graph_bytes(part.graph) for part in self.bundle.components.values())
        sizes: Mapping[str, Mapping[str, int]] = self.bundle.manifest.get("files", {})
        return sum(row["bytes"] for row in sizes.values())

    def call_area(self, *, given: int | None, memory: int | None) -> int:
        """Pixels of an engine call's images together: what is given, or what memory lasts for; None: what is free."""
        if given is not None:
            return given
        width, height = self.bundle.family.defaults.size
        most = IMAGES * width * height
        room = free_bytes() if memory is None and not self._opening.asks_for_gpu else memory
        return most if room is None else max(width * height, call_area(room, self.bytes, most=most))

    def pipe(self) -> Pipeline:
        """The pipeline, loaded when it is first asked for."""
        with self._loading:
            if self._pipeline is None:
                self._hold(self._opening.load(self.bundle.root))
            assert self._pipeline is not None
            return self._pipeline

    def policy(self) -> Policy:
        """How its calls are made up; it loads."""
        pipe = self.pipe()
        if self._policy is None:
            self._policy = self._opening.policy(pipe, padding=self._padding)
        return self._policy

    def put_loras(self, target: LoraNames) -> None:
        """Puts these in the weights, besides those that the pipeline came with.

        Raises:
            LatentRTError: that cannot be done; what was there before stays.
        """
        pipe = self.pipe()
        self._let_go()
        try:
            pipe.set_lora([*self._own_loras, *((self._loras[name], scale) for name, scale in target)])
        finally:
            self._held = pipe.hold()

    def reload_step(self) -> None:
        """Has the step's engine loaded anew for the next call."""
        self.pipe().engines["step"].unload()

    def unload(self) -> None:
        """Frees what the engines occupy; those that are needed load again."""
        if self._pipeline is not None:
            for engine in self._pipeline.engines.values():
                engine.unload()

    def close(self) -> None:
        """Frees what was loaded here."""
        with self._loading:
            self._let_go()
            if self._pipeline is not None and self._given is None:
                self._pipeline.close()
            self._pipeline = None

    def _hold(self, pipe: Pipeline) -> None:
        self._held, self._pipeline, self._own_loras = pipe.hold(), pipe, pipe.lora

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.close()
            self._held = None


def other_names(given: Mapping[str, str], bundles: Sequence[Bundle]) -> dict[str, str]:
    """Names of clients, and those of the bundles that they stand for.

    Raises:
        RequestError: no bundle has a ControlNet of that name.
    """
    known = sorted({name for bundle in bundles for name in bundle.controls})
    for name, own in given.items():
        if own not in known:
            folder = Path(own).is_dir()
            hint = f"add it to the bundle: latentrt control BUNDLE {name}={own} -o NEW" if folder else None
            expected = f"one that a model has: {', '.join(known) or 'none has any'}"
            raise RequestError(f"ControlNet {name} is to be {own!r}", expected=expected, hint=hint)
    return dict(given)


def renamed(request: Request, names: Mapping[str, str]) -> Request:
    """The request with the bundles' own names."""
    if not any(control.name in names for control in request.control):
        return request
    return replace(
        request, control=[replace(control, name=names.get(control.name, control.name)) for control in request.control]
    )
