"""Candidates of a benchmark: each makes the same images in a process of its own, so that memory is its own too.

The process reads one JSON job from stdin and writes one JSON event a line: `{"done": n}` after each run, and
last `{"samples": ..., "warmup": ..., "peak_memory_mb": ..., "load_s": ...}` or what `Problem.document` gives.
"""

import importlib
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO, TypeAlias, cast

import latentrt
from latentrt.environment.requirement import Requirement
from latentrt.errors import BackendError, EnvironmentLacks
from latentrt.names import BackendName, ComputeName, DeviceName, SamplerName
from latentrt.output.result import Timings
from latentrt.problems import Problem, error_from

SAMPLER: SamplerName = "euler"  # one network call a step, here and in other frameworks
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
        find: gives the candidates for the checkpoint at a path.
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
    job = json.dumps({"candidate": asdict(candidate), "workload": asdict(workload)})
    process = start_python(
        candidate.interpreter, "latentrt.bench.runner", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdin is not None and process.stdout is not None  # for the type checker: both are pipes
        with process.stdin as stdin:
            stdin.write(job)
        for line in process.stdout:
            event = json.loads(line)
            if "error" in event:
                raise error_from(event)
            if "samples" in event:
                samples, warmup = (tuple(Timings(**row) for row in event.pop(key)) for key in ("samples", "warmup"))
                return BenchRuns(samples=samples, warmup=warmup, **event)
            progress(event["done"])
    finally:
        process.kill()
        process.wait()
    raise BackendError(
        f"{candidate.name} ended without a result (status {process.returncode})",
        hint="if it was killed for memory, use a smaller size or batch",
    )


def start_python(interpreter: str | None, module: str, **popen: Any) -> subprocess.Popen[str]:
    """A process that runs a module: in this interpreter, or in the one at a path.

    Raises:
        EnvironmentLacks: there is none.
    """
    try:
        return subprocess.Popen([sys.executable if interpreter is None else interpreter, "-m", module], **popen)
    except OSError as error:
        raise EnvironmentLacks(
            f"the interpreter {interpreter} cannot be started ({error.strerror})",
            expected="the path of a Python with LatentRT installed",
        ) from error


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

        def run() -> Timings:
            return pipe.generate(
                workload.prompt,
                seed=0,
                images=workload.batch,
                size=workload.size,
                steps=workload.steps,
                guidance=workload.guidance,
                sampler=SAMPLER,
            ).timings

        yield run


def serve(job: Mapping[str, Any], events: TextIO) -> None:
    """The other end of `measure_apart`."""

    def tell(event: Mapping[str, Any]) -> None:
        print(json.dumps(event), file=events, flush=True)

    candidate = Candidate(**job["candidate"])
    row = job["workload"]
    workload = Workload(**{**row, "size": tuple(row["size"])})
    try:
        began = time.perf_counter()
        with _opener(candidate.opener)(candidate.options, workload) as run:
            load_s = time.perf_counter() - began
            warmup, samples = measure(run, workload, progress=lambda done: tell({"done": done}))
        found = {"samples": [asdict(each) for each in samples], "warmup": [asdict(each) for each in warmup]}
        tell({**found, "load_s": load_s, "peak_memory_mb": peak_memory_mb()})
    except Exception as error:
        tell(Problem.of(error).document())


def peak_memory_mb() -> float:
    """The largest resident size that this process has had, in 10^6 bytes."""
    with suppress(OSError):  # Linux: the figure of getrusage includes what the parent held when it made this process
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in status if line.startswith("VmHWM:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _opener(name: str) -> Callable[[Options, Workload], AbstractContextManager[Run]]:
    module, _, function = name.partition(":")
    opener: Callable[[Options, Workload], AbstractContextManager[Run]]
    opener = getattr(importlib.import_module(module), function)
    return opener


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    result, requested = sys.stdout, json.load(sys.stdin)
    with redirect_stdout(sys.stderr):
        serve(requested, result)
