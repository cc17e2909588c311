"""Runs the runtime's own loop over prompts and counts what flows through the graphs.

Whole trajectories with guidance, fixed seeds, and timesteps that cover the schedule evenly whatever the sampler: each
trajectory takes evenly spaced ones, moved a little against those of the others. Of a bundle for step caching, every
second trajectory is cached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

import latentrt
from latentrt.arrays import Array, Value, to_host
from latentrt.backends import open_engines
from latentrt.bundle import SHALLOW, Bundle
from latentrt.calibration.observers import Observations, ObservedTensor, ObservingEngine
from latentrt.calibration.result_cache import read_arrays, write_arrays
from latentrt.calibration.statistics import Statistics
from latentrt.engine import Engine, EngineOptions, EngineSet
from latentrt.errors import BundleError
from latentrt.names import SamplerName
from latentrt.pipeline import Pipeline
from latentrt.request import Request

GOLDEN = 0.6180339887498949  # its multiples spread most evenly over 0..1
STEP = "step"
SHALLOW_STEP = SHALLOW[STEP]
INTERVAL = 3  # of every second trajectory, where the bundle is for step caching: shallow calls see other values


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """What is run to calibrate.

    Args:
        prompts: one image of each, at each of `sizes`.
        negative: the text of the unconditional branch.
        guidance: scale; above 1, both branches are seen.
        seed: of the first image; image i has `seed` + i.
        buckets: parts of the schedule that are counted apart.
    """

    prompts: tuple[str, ...]
    negative: str
    sizes: tuple[tuple[int, int], ...]
    steps: int
    guidance: float
    sampler: str
    seed: int
    batch: int = 1
    buckets: int = 10

    def requests(self, timesteps: int) -> Iterator[Request]:
        """One request a trajectory. `timesteps`: how many the model was trained on."""
        for place, size in enumerate(self.sizes):
            for first in range(0, len(self.prompts), self.batch):
                number = place * len(self.prompts) + first
                yield Request(
                    self.prompts[first : first + self.batch],
                    negative=self.negative,
                    syntax="plain",
                    seed=self.seed + number,
                    size=size,
                    steps=self.steps,
                    guidance=self.guidance,
                    sampler=cast("SamplerName", self.sampler),
                    timesteps=spread_timesteps(self.steps, timesteps, shift=number * GOLDEN % 1),
                )


@dataclass(frozen=True, slots=True)
class CollectionProgress:
    """`done` of `total` engine calls of the step, and how many of them earlier runs did."""

    done: int
    total: int
    resumed: int = 0


def spread_timesteps(steps: int, total: int, *, shift: float) -> list[int]:
    """`steps` evenly spaced whole timesteps from below `total` downwards, moved down by `shift` (0..1) of a stride."""
    stride = total / steps
    first = total - 1 - int(shift * stride)
    return [first - int(index * stride) for index in range(steps)]


def collect(
    bundle: Bundle,
    settings: CalibrationSettings,
    probes: Mapping[str, Sequence[ObservedTensor]],
    *,
    record: Path,
    threads: int | None = None,
    progress: Callable[[CollectionProgress], None] = lambda _: None,
) -> dict[str, Statistics]:
    """Counts the tensors of some components over all trajectories.

    What is done is kept in `record` after each trajectory; a run that was interrupted goes on there, and ends
    with the same counts to the bit.

    Args:
        bundle: a float bundle, run by ONNX Runtime on the CPU.
        probes: the tensors, by component.
        record: a file of its own; one that was written for something else is ignored.

    Raises:
        BundleError: a tensor is not finite; layer, prompt and call are named.
    """
    requests = list(settings.requests(bundle.family.noise.num_train_timesteps))
    if SHALLOW_STEP in bundle.components and STEP in probes and settings.steps > 1:
        requests[1::2] = [replace(request, cache=INTERVAL) for request in requests[1::2]]
    counting = _Counting(bundle, settings, probes)
    mark = _fingerprint(bundle, settings, probes, threads)
    first = counting.restore(record, mark)
    total, resumed = len(requests) * settings.steps, first * settings.steps
    with extended_pipeline(bundle, counting.engines(bundle, threads), threads=threads) as pipe:
        for number, request in enumerate(requests[first:], first):
            counting.begin(request)
            for step in pipe.steps(request):
                share = (step.index + 1) / step.total  # samplers may call more than once a step
                progress(CollectionProgress(number * settings.steps + round(share * settings.steps), total, resumed))
                if "decoder" in probes and step.index + 1 == step.total:
                    pipe.decode(step.latent())
            counting.save(record, mark, done=number + 1)
    return counting.statistics


def extended_pipeline(bundle: Bundle, engines: Mapping[str, Engine], *, threads: int | None) -> Pipeline:
    """The bundle on ONNX Runtime, with these engines in place of its components' own."""
    graphs = {name: part.graph for name, part in bundle.components.items()}
    opens = partial(open_engines, backend="onnxruntime", threads=threads)
    plain = opens([graphs[name] for name in (*bundle.text_encoders, STEP, "decoder") if name not in engines])
    return Pipeline(bundle, EngineSet({**plain, **engines}, graphs=graphs, opens=opens))


def _fingerprint(
    bundle: Bundle, settings: CalibrationSettings, probes: Mapping[str, Sequence[ObservedTensor]], threads: int | None
) -> str:
    """Changes with everything that the counts depend on."""
    digest = hashlib.sha256()
    parts = [asdict(settings), threads, latentrt.__version__, ort.__version__]
    parts += [[name, bundle.component(name).graph.digest] for name in sorted(bundle.components)]
    digest.update(json.dumps(parts, sort_keys=True).encode())
    for component, tensors in sorted(probes.items()):
        for probe in tensors:
            divisor = b"" if probe.divisor is None else probe.divisor.tobytes()
            digest.update(f"{component}/{probe.tensor}/".encode() + divisor)
    return digest.hexdigest()


class _Counting:
    """Statistics by component, and where in the run we are."""

    def __init__(
        self, bundle: Bundle, settings: CalibrationSettings, probes: Mapping[str, Sequence[ObservedTensor]]
    ) -> None:
        self.probes = probes
        self.statistics = {
            name: Statistics(tensors, buckets=settings.buckets if name == STEP else 1)
            for name, tensors in probes.items()
        }
        self._layers = {name: {probe.tensor: probe.layer for probe in tensors} for name, tensors in probes.items()}
        self._timesteps = bundle.family.noise.num_train_timesteps
        self._request = Request("")
        self._call = 0

    def engines(self, bundle: Bundle, threads: int | None) -> dict[str, Engine]:
        """Of the components that are counted, with observers; tensors of shallow calls count as the step's."""
        options = EngineOptions(threads=threads)
        found: dict[str, Engine] = {
            name: ObservingEngine(
                bundle.component(name).graph, tensors, observe=partial(self.add, name), options=options
            )
            for name, tensors in self.probes.items()
        }
        if STEP in self.probes and SHALLOW_STEP in bundle.components:
            graph = bundle.component(SHALLOW_STEP).graph
            there = {value.name for node in ir.load(graph.path).graph for value in node.outputs}
            own = [each for each in self.probes[STEP] if each.tensor in there]
            found[SHALLOW_STEP] = ObservingEngine(graph, own, observe=partial(self.add, STEP), options=options)
        return found

    def begin(self, request: Request) -> None:
        self._request, self._call = request, 0

    def add(self, component: str, feed: Mapping[str, Value], observations: Observations) -> None:
        """Counts what an engine said of the call that it has just made."""
        bucket = 0
        if component == STEP:
            self._call += 1
            timestep = float(np.max(to_host(feed["timestep"])))
            buckets = self.statistics[STEP].buckets
            bucket = min(buckets - 1, int(timestep / self._timesteps * buckets))
        for tensor, seen in observations.items():
            if not seen.finite:
                raise BundleError(
                    f"{component}: NaN or infinity in {self._layers[component][tensor]}, "
                    f"call {self._call}, prompt '{self._request.prompts[0]}'",
                    expected="finite values",
                    hint="check the checkpoint's weights, or calibrate its float32 bundle",
                )
        self.statistics[component].add(bucket, observations)

    def save(self, record: Path, mark: str, *, done: int) -> None:
        arrays: dict[str, Array] = {"done": np.array(done)}
        for component, statistics in self.statistics.items():
            arrays |= {f"{component}/{name}": array for name, array in statistics.arrays().items()}
        write_arrays(record, mark, arrays)

    def restore(self, record: Path, mark: str) -> int:
        """How many trajectories an earlier run has done."""
        stored = read_arrays(record, mark)
        if stored is None:
            return 0
        for component, statistics in self.statistics.items():
            prefix = f"{component}/"
            statistics.restore({n.removeprefix(prefix): stored[n] for n in stored if n.startswith(prefix)})
        return int(stored["done"])
