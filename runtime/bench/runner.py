"""Candidates of a benchmark: each makes the same images in a process of its own, so that memory is its own too."""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeAlias, cast

import latentrt
from latentrt.bench.worker import Answer, Worker
from latentrt.environment.requirement import Requirement
from latentrt.names import BackendName, ComputeName, DeviceName, SamplerName
from latentrt.output.result import Result, Timings
from latentrt.samplers.noise_schedule import NoiseSchedule

PEERS = "latentrt.peers"
STABLE_WITHIN = 0.05  # what two runs of a warm candidate may differ by
MOST_WARMUPS = 10

Options: TypeAlias = Mapping[str, str | None]
Run: TypeAlias = Callable[[], Timings]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What every candidate does, again and again.

    Args:
        prompt: for each image.
        size: (width, height) in pixels.
        batch: images at once.
        steps: denoising steps, one network call each.
        guidance: 1 is off; else the network's batch is twice `batch`.
        threads: None is the candidate's own choice.
        repeat: measured runs, at least.
        warmup: unmeasured runs before them; None: until they are `stable`.
        duration_s: that measured runs go on for, at least.
    """

    prompt: str
    size: tuple[int, int]
    batch: int
    steps: int
    guidance: float
    threads: int | None
    repeat: int
    warmup: int | None
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to make images.

    Args:
        name: such as `openvino bf16`; it says in which precision the network runs.
        opener: `module:function`; it takes `options` and a Workload and gives a context manager, whose value
            makes one batch and returns the Timings.
        options: passed to the opener.
        base: name of the candidate that this one's ratios are to; None: it has none.
        precision: what it computes in, by component.
        interpreter: the Python that it runs in, which has LatentRT installed as well; None is this one. A peer whose
            pins conflict with ours has an environment of its own.
    """

    name: str
    opener: str
    options: Options
    base: str | None = None
    precision: Mapping[str, str] = field(default_factory=dict)
    interpreter: str | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """What measures checkpoints in another way: the value of an entry point in the group `latentrt.peers`.

    Args:
        find: gives the candidates for the checkpoint at a path. Their openers find in the option `without` the parts
            that the bundle lacks, with commas between them.
        requires: the extras that they need.
    """

    find: Callable[[str], Sequence[Candidate]]
    requires: Sequence[Requirement] = ()

    def __call__(self, checkpoint: str) -> Sequence[Candidate]:
        return self.find(checkpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRuns:
    """What one process measured.

    Args:
        samples: of each run.
        warmup: of the runs before them.
        load_s: until the first run could begin.
        peak_memory_mb: the largest resident size, in 10^6 bytes.
    """

    samples: tuple[Timings, ...]
    warmup: tuple[Timings, ...] = ()
    load_s: float
    peak_memory_mb: float


def measure(
    run: Run, workload: Workload, *, progress: Callable[[int], None]
) -> tuple[tuple[Timings, ...], tuple[Timings, ...]]:
    """The runs of the warm-up, and those that count."""
    warm: list[Timings] = []
    samples: list[Timings] = []
    while not _is_warm(warm, workload.warmup):
        warm.append(run())
        progress(len(warm))
    began = time.perf_counter()
    while len(samples) < workload.repeat or time.perf_counter() - began < workload.duration_s:
        samples.append(run())
        progress(len(warm) + len(samples))
    return tuple(warm), tuple(samples)


def stable(warmup: Sequence[Timings]) -> bool:
    """Whether the last two runs took equally long, to within `STABLE_WITHIN`."""
    if len(warmup) < 2:
        return False
    before, latest = (run.total_ms for run in warmup[-2:])
    return abs(latest - before) <= STABLE_WITHIN * before


def _is_warm(warmup: Sequence[Timings], asked: int | None) -> bool:
    if asked is not None:
        return len(warmup) >= asked
    return stable(warmup) or len(warmup) >= MOST_WARMUPS


def measure_apart(candidate: Candidate, workload: Workload, *, progress: Callable[[int], None]) -> BenchRuns:
    """Measures in a new process; `progress` hears how many runs are done.

    Raises:
        LatentRTError: what the candidate raised there.
        EnvironmentLacks: its interpreter cannot be started.
        BackendError: its process ended without a word.
    """
    options = {"candidate": asdict(candidate), "workload": asdict(workload)}
    peak_mb = 0.0

    def run() -> Timings:
        nonlocal peak_mb
        answer = worker.ask({})
        peak_mb = answer["peak_memory_mb"]
        return Timings(**answer["timings"])

    opener = f"{__name__}:open_candidate"
    with Worker(opener, options, name=candidate.name, interpreter=candidate.interpreter) as worker:
        load_s = worker.open()
        warmup, samples = measure(run, workload, progress=progress)
    return BenchRuns(samples=samples, warmup=warmup, load_s=load_s, peak_memory_mb=peak_mb)


@contextmanager
def open_candidate(options: Mapping[str, Any]) -> Iterator[Answer]:
    """The opener of `measure_apart`: it answers each request with the times of a run."""
    candidate, row = Candidate(**options["candidate"]), options["workload"]
    opener: Callable[[Options, Workload], AbstractContextManager[Run]] = resolve_name(candidate.opener)
    with opener(candidate.options, Workload(**{**row, "size": tuple(row["size"])})) as run:
        yield lambda _: {"timings": asdict(run()), "peak_memory_mb": peak_memory_mb()}


@contextmanager
def open_bundle(options: Options, workload: Workload) -> Iterator[Run]:
    """The opener of this runtime: options `path`, `backend`, `compute`, `cache_dir`, and `device` if it is given."""
    path, backend = options["path"], cast("BackendName | None", options["backend"])
    assert path is not None and backend is not None
    with latentrt.load(
        path,
        backend=backend,
        compute=cast("ComputeName | None", options["compute"]),
        threads=workload.threads,
        cache_dir=options["cache_dir"],
        device=cast("DeviceName | None", options.get("device")),
    ) as pipe:
        pipe.prepare(size=workload.size, images=workload.batch, guided=workload.guidance > 1)
        yield lambda: make_images(pipe, workload).timings


def make_images(pipe: latentrt.Pipeline, workload: Workload) -> Result:
    """What this runtime makes of a workload."""
    return pipe.generate(
        workload.prompt,
        seed=0,
        images=workload.batch,
        size=workload.size,
        steps=workload.steps,
        guidance=workload.guidance,
        sampler=first_order(pipe.bundle.family.noise),
    )


def first_order(noise: NoiseSchedule) -> SamplerName:
    """Euler's sampler: one network call a step, here and in other frameworks."""
    return "flow-euler" if noise.is_flow else "euler"


def peak_memory_mb() -> float:
    """The largest resident size that this process has had, in 10^6 bytes."""
    with suppress(OSError):  # Linux: the figure of getrusage includes what the parent held when it made this process
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in status if line.startswith("VmHWM:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
