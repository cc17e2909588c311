"""A second opinion: every graph on one backend against ONNX Runtime on the CPU, run and compared by Polygraphy.

Polygraphy chooses between the two variants of TensorRT once a process, by an environment variable, so that each backend
has a process of its own.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latentrt.backends.onnxruntime.session import Provider, make_session, settings
from latentrt.backends.tensorrt.plans import find_engines
from latentrt.bundle import Bundle, Component
from latentrt.errors import EnvironmentLacks
from latentrt.export.parity.measurement import Measurement

# The largest difference in units of the largest value; float16 has been compared on no card, so that it is told only.
LIMITS: Mapping[str, float] = {"fp32": 1e-3}
IMAGE_LIMITS: Mapping[str, float] = {"fp32": 2 / 255}
LENGTHS = {"B": 1, "K": 2, "L": 77, "N": 1, "E": 1, "h": 16, "w": 16, "H": 128, "W": 128}
RTX = "POLYGRAPHY_USE_TENSORRT_RTX"

Feed = dict[str, npt.NDArray[Any]]


@contextmanager
def open_opinion(options: Mapping[str, Any]) -> Iterator[Callable[[Mapping[str, Any]], list[dict[str, Any]]]]:
    """The opener: options `bundle`, `reference` (the bundle whose graphs run on the CPU), `backend`, `device`, and
    `components` or None for all of text encoders, step and decoder."""
    os.environ[RTX] = "1" if options["backend"] == "tensorrt-rtx" else "0"
    bundle, reference = Bundle.open(options["bundle"]), Bundle.open(options["reference"])
    names = options["components"] or [*bundle.text_encoders, "step", "decoder"]

    def answer(_: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows = [
            row
            for name in names
            for row in compare(bundle.component(name), reference.component(name), options["backend"], options["device"])
        ]
        return [asdict(row) | {"passed": row.passed} for row in rows]

    yield answer


def compare(part: Component, reference: Component, backend: str, device: str) -> Iterator[Measurement]:
    """A measurement for each output of a graph."""
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
    from polygraphy.comparator import Comparator, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL  # its own tolerances are not ours
    runners = [
        OnnxrtRunner(SessionFromOnnx(str(reference.graph.path), providers=["cpu"]), name="reference"),
        _runner(part, backend, device),
    ]
    found = Comparator.run(runners, data_loader=[_feed(part)])
    reference_outputs = found["reference"][0]
    # Of each element the larger of both limits counts: every output is judged by its own measure below.
    verdicts = Comparator.compare_accuracy(found, compare_func=SimpleCompareFunc(check_error_stat="max"))
    ((_, (results,)),) = verdicts[0].items()  # one comparison, one pair of runners, one feed
    for name, spec in part.graph.outputs.items():
        largest = float(np.abs(np.asarray(reference_outputs[name], np.float64)).max())
        limits = IMAGE_LIMITS if spec.dtype == "uint8" else LIMITS
        yield Measurement(
            subject=f"component {part.name}, by Polygraphy",
            case=f"{name}, 128x128",
            backend=backend,
            value=float(results[name].max_absdiff) / max(largest, 1e-30),
            limit=limits.get(part.precision),
            unit="of the largest value",
            higher_is_better=False,
        )


def _runner(part: Component, backend: str, device: str) -> Any:
    if backend == "onnxruntime":
        from polygraphy.backend.onnxrt import OnnxrtRunner

        return OnnxrtRunner(_session(part, device), name=backend)
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    return TrtRunner(EngineFromBytes(BytesFromPath(str(_plan(part, backend)))), name=backend)


def _session(part: Component, device: str) -> Any:
    """Of the provider that is asked for: one that fell back to the CPU would be compared with itself."""
    if device == "cuda":
        from latentrt.backends.onnxruntime.device import check_started, open_cuda

        open_cuda()  # loads CUDA's libraries, or says which one is missing
    options, provider = settings(threads=None), Provider(device=device)
    session = make_session(part.graph.path, options, precision=part.precision, provider=provider)
    if device == "cuda":
        check_started(session)
    return session


def _plan(part: Component, backend: str) -> Path:
    """Of an engine that takes the feed's sizes."""
    dims = {name: value.shape for name, value in _feed(part).items()}
    for built in find_engines(part.graph, None, backend):
        if built.record.profile.covers(dims):
            return built.plan
    raise EnvironmentLacks(f"no engine of {part.name} for 128x128 is built", hint="latentrt build")


def _feed(part: Component) -> Feed:
    """Numbers of a plausible size for every input."""
    rng, feed = np.random.default_rng(0), {}
    for name, spec in part.graph.inputs.items():
        shape = [dim if isinstance(dim, int) else LENGTHS[dim] for dim in part.dims[name]]
        if spec.dtype == "int64":
            feed[name] = rng.integers(0, 40, shape) if name == "ids" else np.zeros(shape, np.int64)
        else:
            feed[name] = rng.standard_normal(shape).astype(spec.dtype)
    return feed
