"""Does TensorRT for RTX run on this GPU? One engine of one graph, by TensorRT's plain API, each stage as it answers.

Its list of GPUs says which it is made for; this says what it does on another. Run in a process of its own.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latentrt.arrays import to_host
from latentrt.backends import open_engine
from latentrt.bundle import Bundle, Component

DIMS = {"B": 1, "K": 2, "h": 16, "w": 16, "L": 77}
VARIANTS = ("default", "current")  # for all GPUs that it knows, and for the one that is here

Feed = dict[str, npt.NDArray[np.float32]]


@contextmanager
def open_probe(options: Mapping[str, Any]) -> Iterator[Callable[[Mapping[str, Any]], dict[str, Any]]]:
    """The opener: options `bundle`, whose step graph is tried, `module` and `variant`."""

    def answer(_: Mapping[str, Any]) -> dict[str, Any]:
        component = Bundle.open(options["bundle"]).component("step")
        return probe(import_module(options["module"]), component, variant=options["variant"])

    yield answer


def probe(trt: Any, component: Component, *, variant: str) -> dict[str, Any]:
    """Builds, asks for validity, deserialises, runs and compares, until a stage fails.

    Returns:
        The module's version, and for each stage that was begun whether it worked, seconds and what it says; and
        what TensorRT logged.
    """
    logger = _logger(trt)
    feed = _feed(component)
    stages: dict[str, dict[str, Any]] = {}
    found: dict[str, Any] = {}
    steps: Sequence[tuple[str, Callable[[], Any]]] = (
        ("build", lambda: found.update(plan=_build(trt, logger, component.graph.path, feed, variant))),
        ("validity", lambda: _validity(trt, logger, found["plan"])),
        ("deserialise", lambda: found.update(engine=_deserialise(trt, logger, found["plan"]))),
        ("run", lambda: found.update(outputs=_execute(trt, found["engine"], component, feed))),
        ("compare", lambda: _compare(component, feed, found["outputs"])),
    )
    for name, step in steps:
        began = time.perf_counter()
        try:
            stages[name] = {"worked": True, "says": step()}
        except Exception as error:  # whatever it is, it is the finding
            stages[name] = {"worked": False, "says": f"{type(error).__name__}: {error}"}
        stages[name]["seconds"] = round(time.perf_counter() - began, 2)
        if not stages[name]["worked"] and name != "validity":
            break
    return {
        "version": trt.__version__,
        "variant": variant,
        "works": stages.get("compare", {}).get("worked", False),
        "plan_bytes": len(found.get("plan", b"")),
        "stages": stages,
        "log": logger.lines,
    }


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps warnings and errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.WARNING, trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.lines.append(f"{severity.name}: {message}")

    return Logger()


def _feed(component: Component) -> Feed:
    rng = np.random.default_rng(0)
    shapes = {
        name: tuple(dim if isinstance(dim, int) else DIMS[dim] for dim in component.dims[name])
        for name in component.graph.inputs
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _build(trt: Any, logger: Any, graph: Path, feed: Feed, variant: str) -> Any:
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise RuntimeError("; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    if variant == "current":
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
    profile = builder.create_optimization_profile()
    for name, value in feed.items():
        profile.set_shape(name, value.shape, value.shape, value.shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError(_last(logger))
    return bytes(plan)


def _validity(trt: Any, logger: Any, plan: bytes) -> str:
    """What the library itself thinks of the plan on this machine."""
    validity, diagnostics = trt.Runtime(logger).get_engine_validity(plan)
    names = [name for name, member in trt.EngineInvalidityDiagnostics.__members__.items() if int(member) & diagnostics]
    return f"{validity.name}, diagnostics {int(diagnostics)} {' '.join(names)}".strip()


def _deserialise(trt: Any, logger: Any, plan: bytes) -> tuple[Any, Any]:
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise RuntimeError(_last(logger))
    return runtime, engine


def _execute(trt: Any, loaded: tuple[Any, Any], component: Component, feed: Feed) -> dict[str, npt.NDArray[Any]]:
    """Runs once on torch's stream and memory."""
    import torch

    _, engine = loaded
    context = engine.create_execution_context()
    if context is None:
        raise RuntimeError("no execution context")
    tensors = {name: torch.from_numpy(value).cuda() for name, value in feed.items()}
    for name, value in feed.items():
        context.set_input_shape(name, value.shape)
    for name, spec in component.graph.outputs.items():
        shape = tuple(context.get_tensor_shape(name))
        tensors[name] = torch.full(shape, float("nan"), dtype=getattr(torch, spec.dtype), device="cuda")
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr())
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    if not context.execute_async_v3(stream.cuda_stream):
        raise RuntimeError("execute_async_v3 returned false")
    stream.synchronize()
    return {name: tensors[name].cpu().numpy() for name in component.graph.outputs}


def _compare(component: Component, feed: Feed, outputs: Mapping[str, npt.NDArray[Any]]) -> str:
    """Against ONNX Runtime on the CPU."""
    with closing(open_engine(component.graph, backend="onnxruntime", device="cpu")) as engine:
        expected = {name: to_host(value) for name, value in engine.run(feed).items()}
    worst = max(
        float(np.abs(outputs[name] - value).max() / max(1.0, np.abs(value).max())) for name, value in expected.items()
    )
    if not worst <= 1e-2:  # TF32 and float16 lie well below, a wrong result or NaN above
        raise ValueError(f"differs from ONNX Runtime on the CPU by {worst:.1e}, relative")
    return f"within {worst:.1e} of ONNX Runtime on the CPU, relative"


def _last(logger: Any) -> str:
    return logger.lines[-1] if logger.lines else "it gave no reason"
