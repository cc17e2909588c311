"""Who is measured, and how each makes its images: this runtime's backends, and torch as it does best.

Every run is one batch from the prompt to uint8 images on the host. The stages are told apart by waiting for the
device between them; within the denoising loop nobody waits.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from latentrt.bench import runner
from latentrt.bench.runner import Candidate, Workload, peak_memory_mb
from latentrt.export.bench_torch import make_images, open_pipeline
from latentrt.export.quiet import quiet
from latentrt.output.result import Timings

Answer = Callable[[Mapping[str, Any]], dict[str, Any]]

EAGER, COMPILED, TUNED = "torch eager", "torch.compile", "torch.compile max-autotune"
_MODES = {EAGER: None, COMPILED: "reduce-overhead", TUNED: "max-autotune"}


def own(bundles: Sequence[tuple[str, Path]], *, backend: str, device: str) -> list[Candidate]:
    """This runtime on a backend, on each of these bundles, by name."""
    return [
        Candidate(name, f"{__name__}:open_bundle", {"path": str(bundle), "backend": backend, "device": device})
        for name, bundle in bundles
    ]


def torch_peers(checkpoint: str, names: Sequence[str], *, dtype: str, device: str) -> list[Candidate]:
    """diffusers on torch, its weights in channels-last order: eager, and the network and the decoder compiled."""
    short = {"float16": "fp16", "float32": "fp32"}[dtype]
    return [
        Candidate(
            f"{name} {short}",
            f"{__name__}:open_diffusers",
            {"path": checkpoint, "dtype": dtype, "device": device, "mode": _MODES[name]},
        )
        for name in names
    ]


@contextmanager
def open_bundle(options: Mapping[str, Any]) -> Iterator[Answer]:
    """The opener of this runtime: options `path`, `backend`, `device`, `workload`."""
    with runner.open_bundle({"compute": None, "cache_dir": None, **options}, _workload(options)) as run:
        yield _answering(lambda: (run(), None))


@contextmanager
def open_diffusers(options: Mapping[str, Any]) -> Iterator[Answer]:
    """The opener of torch: options `path`, `dtype`, `device`, `mode` of compilation or None, `workload`."""
    workload = _workload(options)
    with quiet():
        import torch

    pipe = open_pipeline(options["path"], dtype=options["dtype"]).to(options["device"])
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    if options["mode"] is not None:
        pipe.unet.forward = torch.compile(pipe.unet.forward, mode=options["mode"])
        pipe.vae.decode = torch.compile(pipe.vae.decode, mode=options["mode"])
    marks = _CudaMarks() if options["device"] == "cuda" else _HostMarks()
    watch = _Watch(marks, calls=workload.steps)
    pipe.unet.forward = watch.around(pipe.unet.forward)

    def images() -> None:
        found = make_images(pipe, workload, output_type="pt")
        (found * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()

    yield _answering(lambda: watch.time(images))


def _workload(options: Mapping[str, Any]) -> Workload:
    row = options["workload"]
    return Workload(**{**row, "size": tuple(row["size"])})


def _answering(run: Callable[[], tuple[Timings, list[float] | None]]) -> Answer:
    """Answers `{"runs": n}` with n samples; `network_ms` is the network alone, where that can be told apart."""

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        pairs = [run() for _ in range(request["runs"])]
        return {
            "samples": [asdict(timings) for timings, _ in pairs],
            "network_ms": [ms for _, calls in pairs if calls is not None for ms in calls],
            "peak_memory_mb": peak_memory_mb(),
        }

    return answer


class _Marks(Protocol):
    """Points in time of a device."""

    def mark(self) -> Any:
        """Now, in the order of the work that was given to the device."""

    def wait(self) -> None:
        """Until all of that work is done."""

    def between(self, first: Any, last: Any) -> float:
        """Milliseconds from one mark to another, after a wait."""


class _HostMarks:
    """For torch on a CPU, which works in order."""

    def mark(self) -> float:
        return time.perf_counter()

    def wait(self) -> None:
        return

    def between(self, first: float, last: float) -> float:
        return 1e3 * (last - first)


class _CudaMarks:
    """Events on torch's stream."""

    def __init__(self) -> None:
        import torch

        self._cuda = torch.cuda

    def mark(self) -> Any:
        event = self._cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def wait(self) -> None:
        self._cuda.synchronize()

    def between(self, first: Any, last: Any) -> float:
        return float(first.elapsed_time(last))


class _Watch:
    """Notes when the network begins and ends; text comes before its first call, decoding after its last.

    A step lasts from one call's beginning to the next one's, so that it holds the scheduler, as this runtime's does.
    """

    def __init__(self, marks: _Marks, *, calls: int) -> None:
        self._marks = marks
        self._calls = calls
        self._begun: list[Any] = []
        self._ended: list[Any] = []
        self._text_at = self._denoised_at = 0.0

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            if not self._begun:
                self._text_at = self._waited()
            self._begun.append(self._marks.mark())
            output = forward(*arguments, **named)
            self._ended.append(self._marks.mark())
            if len(self._ended) == self._calls:
                self._denoised_at = self._waited()
            return output

        return watched

    def time(self, function: Callable[[], None]) -> tuple[Timings, list[float]]:
        """(stages, milliseconds of the network alone in each call)."""
        self._begun.clear()
        self._ended.clear()
        began = self._waited()
        function()
        done = self._waited()
        borders = [*self._begun, self._ended[-1]]
        timings = Timings(
            text_ms=1e3 * (self._text_at - began),
            steps_ms=tuple(self._marks.between(a, b) for a, b in pairwise(borders)),
            decode_ms=1e3 * (done - self._denoised_at),
            total_ms=1e3 * (done - began),
        )
        return timings, [self._marks.between(a, b) for a, b in zip(self._begun, self._ended, strict=True)]

    def _waited(self) -> float:
        self._marks.wait()
        return time.perf_counter()
