"""How much memory of the machine a run takes on backends of the CPU: an estimate from sizes alone, by the formula of
docs/memory.md, and what is free."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from latentrt.bundle import CONTROLNET, SHALLOW, STEP_CONTROL, Bundle, Component
from latentrt.concurrency.residency import Residency
from latentrt.errors import RequestError

RESIDENT = "all resident"
BY_TURNS = "text encoders, step and VAE loaded by turns"

BASE_BYTES = 350_000_000
"""Of Python, NumPy, the backend's own code and the host's part of a run."""

_QUANTISED, _QUANTISED_LOADED, _QUANTISED_LOADING = ("int8", "fp8"), 1.1, 2.2
"""Of the bytes of their files, an assumption."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of a backend and its arithmetic, in bytes.

    Args:
        loaded: that stay for each byte of weights in float32, once a graph is loaded.
        loading: at the peak of loading, for each of these bytes.
        step: of a U-Net or a transformer, for each pixel of a picture and guidance branch.
        vae: for each pixel that is decoded or encoded at a time.
    """

    loaded: float
    loading: float
    step: int
    vae: int


FIGURES: Mapping[tuple[str, str], Figures] = {
    ("onnxruntime", "fp32"): Figures(loaded=1.25, loading=1.9, step=1600, vae=5300),
    ("openvino", "fp32"): Figures(loaded=1.1, loading=1.45, step=600, vae=2500),
    ("openvino", "bf16"): Figures(loaded=0.55, loading=0.95, step=310, vae=1250),
}


PIXEL_BYTES = max(2 * figures.step + figures.vae for figures in FIGURES.values())
"""That a call needs beside the weights for each pixel of its pictures, guided, on the backend that needs most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What of a run decides how much memory it takes.

    Args:
        size: (width, height) of the pictures in pixels.
        images: at a time.
        branches: of guidance.
        tile_pixels: of the parts that pictures are decoded and encoded in; None: they are whole.
        encodes: whether the VAE's encoder runs.
        controls: names of the ControlNets.
        cached: whether there are shallow calls.
    """

    size: tuple[int, int]
    images: int = 1
    branches: int = 2
    tile_pixels: int | None = None
    encodes: bool = False
    controls: tuple[str, ...] = ()
    cached: bool = False

    @property
    def pixels(self) -> int:
        """Of all images."""
        return self.size[0] * self.size[1] * self.images


@dataclass(frozen=True, slots=True)
class Part:
    """One graph, in bytes: what stays once it is loaded, the peak of loading it, and what a run takes beside."""

    loaded: int
    loading: int
    running: int = 0


@dataclass(frozen=True, slots=True)
class LoadingPlan:
    """One way to run: its name, and the memory in bytes that it needs."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEstimate:
    """What a run needs, in bytes.

    Args:
        parts: by component, in the order in which they load.
        plans: the ways to run, the fastest first.
        base: of everything else.
    """

    parts: Mapping[str, Part]
    plans: tuple[LoadingPlan, ...]
    base: int = field(default=BASE_BYTES)

    def plan_for(self, memory: int) -> LoadingPlan | None:
        """The fastest way to run that so much memory holds."""
        return next((plan for plan in self.plans if plan.bytes <= memory), None)


def estimate(bundle: Bundle, call: Call, *, backend: str, compute: str) -> HostEstimate:
    """The memory that a run needs on a backend of the CPU."""
    figures = FIGURES[backend, compute]
    step = STEP_CONTROL if call.controls else "step"
    loop = [step, *(CONTROLNET + name for name in call.controls), *([SHALLOW[step]] if call.cached else [])]
    encoder = ["encoder"] if call.encodes else []
    decoded = call.pixels if call.tile_pixels is None else call.tile_pixels
    encoded = call.pixels // call.images if call.tile_pixels is None else call.tile_pixels
    running = dict.fromkeys(loop[:1], figures.step * call.pixels * call.branches)
    running |= {"decoder": figures.vae * decoded, "encoder": figures.vae * encoded}
    names = [*bundle.text_encoders, *encoder, *loop, "decoder"]
    parts = {name: _part(bundle.component(name), figures, running.get(name, 0)) for name in names}
    return HostEstimate(parts=parts, plans=_plans(parts, loop))


def loop_components(bundle: Bundle) -> list[str]:
    """What runs in one loop, and is loaded together."""
    return [name for name in bundle.components if in_loop(name)]


def in_loop(component: str) -> bool:
    """Whether it is called again and again for a picture."""
    return component in {"step", STEP_CONTROL, *SHALLOW.values()} or component.startswith(CONTROLNET)


class MemoryLimit:
    """What a pipeline may take, and how it keeps to that.

    Args:
        bundle: whose pipeline it is.
        limit: bytes.
        backend, compute: that run it.

    Attributes:
        residency: of its engines.
    """

    def __init__(self, bundle: Bundle, limit: int, *, backend: str, compute: str) -> None:
        self._bundle, self._limit = bundle, limit
        self._backend, self._compute = backend, compute
        self.residency = Residency(together=loop_components(bundle))

    def check(self, calls: Sequence[Call]) -> LoadingPlan:
        """The fastest way to make these calls, one after the other.

        Raises:
            RequestError: the memory lasts for none.
        """
        return max((self._plan(call) for call in calls), key=lambda plan: plan.name == BY_TURNS)

    def settle(self, calls: Sequence[Call]) -> None:
        """As `check`; engines are loaded that way from now on."""
        self.residency.by_turns = self.check(calls).name == BY_TURNS

    def images(self, call: Call, *, most: int) -> int:
        """Of `most` images, how many can be made at a time without another plan than one needs."""
        alone = self._plan(replace(call, images=1)).name
        counts = range(most, 1, -1)
        return next((count for count in counts if self._fits(replace(call, images=count), alone)), 1)

    def _fits(self, call: Call, name: str) -> bool:
        plan = self._estimate(call).plan_for(self._limit)
        return plan is not None and plan.name == name

    def _plan(self, call: Call) -> LoadingPlan:
        found = self._estimate(call)
        plan, (width, height), least = found.plan_for(self._limit), call.size, found.plans[-1]
        if plan is None:
            pictures = f"{call.images} pictures" if call.images > 1 else "a picture"
            raise RequestError(
                f"{self._limit / 1e9:.3g} GB of memory for {pictures} of {width}x{height}",
                expected=f"about {least.bytes / 1e9:.1f} GB at least: {least.name} on {self._backend}",
                hint="more memory, a smaller size, fewer pictures at a time, compute='bf16' or an int8 bundle",
            )
        return plan

    def _estimate(self, call: Call) -> HostEstimate:
        return estimate(self._bundle, call, backend=self._backend, compute=self._compute)


def free_bytes() -> int | None:
    """Memory that programs may still take, of the machine or of the container; None: not known."""
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    for name in _LIMITS:
        if Path(name).is_file() and (text := Path(name).read_text().strip()).isdecimal():
            free = min(free, int(text))
    return free


def give_back() -> None:
    """Returns freed memory to the system: glibc keeps blocks of up to 32 MB, as most weights are."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


@contextmanager
def returning_at_once() -> Iterator[None]:
    """Within it, glibc returns blocks of a megabyte as they are freed: less memory at a peak, and more time. The user's
    own settings stay; else glibc goes on with the sizes that its own adjustment comes to, and adjusts no more."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        yield
        return
    mallopt(_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, 32 << 20)
        mallopt(_TRIM_THRESHOLD, 64 << 20)


def release_mapped(files: Collection[Path]) -> None:
    """Lets go of what of these files is mapped for reading, on Linux: it is read again where it is needed again."""
    if sys.platform != "linux":
        return
    names = {str(path.resolve()) for path in files}
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, _, _, _, *name = line.split(maxsplit=5)
        if name and name[0] in names and "w" not in access:
            begin, end = (int(address, 16) for address in addresses.split("-"))
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def _part(component: Component, figures: Figures, running: int) -> Part:
    if component.precision in _QUANTISED:
        stored = sum(path.stat().st_size for path in (component.graph.path, *component.graph.weights))
        return Part(loaded=int(_QUANTISED_LOADED * stored), loading=int(_QUANTISED_LOADING * stored), running=running)
    weights = 4 * component.parameters
    return Part(loaded=int(figures.loaded * weights), loading=int(figures.loading * weights), running=running)


def _plans(parts: Mapping[str, Part], loop: Collection[str]) -> tuple[LoadingPlan, ...]:
    """Graphs load one after the other: at the peak one is being loaded beside others that are, or all are."""
    turns: Sequence[Sequence[Part]] = [
        [parts[name] for name in loop],
        *([part] for name, part in parts.items() if name not in loop),
    ]
    every = _peak(list(parts.values()))
    alone = max(_peak(group) for group in turns)
    plans = [LoadingPlan(RESIDENT, BASE_BYTES + every), LoadingPlan(BY_TURNS, BASE_BYTES + alone)]
    return tuple(plans)


def _peak(parts: Sequence[Part]) -> int:
    """Of engines that are loaded in this order and stay."""
    before, peak = 0, 0
    for part in parts:
        peak = max(peak, before + part.loading)
        before += part.loaded + part.running
    return max(peak, before)
