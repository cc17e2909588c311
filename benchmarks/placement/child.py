"""One graph on the real CUDA provider, in a process whose CUDA libraries do nothing: prints a line of JSON.

python -m benchmarks.placement.child BUNDLE COMPONENT WIDTHxHEIGHT plain|rewritten
"""

import ctypes
import json
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from latentrt.arrays import Array
from latentrt.backends import open_engine
from latentrt.backends.cuda.api import OutOfDeviceMemory
from latentrt.backends.cuda.binding import Sizes
from latentrt.backends.cuda.engine import DeviceEngine
from latentrt.backends.onnxruntime.cuda import choose_rewritten
from latentrt.backends.onnxruntime.session import WEIGHTS_FOLDER, Provider, make_session, settings
from latentrt.bundle import Bundle, Component
from latentrt.denoise.stepper import CARRY
from latentrt.engine import Engine
from latentrt.errors import BackendError

_CUDART, _CUDNN = ctypes.CDLL("libcudart.so.13"), ctypes.CDLL("libcudnn.so.9")
CALLS = 5
LARGE = {"B": 64, "N": 4096}  # pictures and texts: they take more than what a session has beside its weights
CHANGING = ("timestep", "scalings", "transition")
# What a call of a loop is asked for, by the functions of CUDA that do it.
COUNTED = {
    "graphs": ("cudaGraphLaunch",),
    "copies": ("cudaMemcpyAsync",),
    "uploads": ("uploads", "cudaMemcpy"),
    "allocations": ("cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaMallocHost", "cudaFreeHost"),
    "waits": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
    "captures": ("cudaStreamBeginCapture",),
}


def main() -> None:
    root, name, size, kind = sys.argv[1:]
    component = Bundle.open(root).component(name)
    width, height = map(int, size.split("x"))
    lengths = {"B": 1, "K": 2, "L": 77, "N": 1, "E": 1, "h": height // 8, "w": width // 8, "H": height, "W": width}
    feed = _feed(component, lengths)
    print(
        json.dumps(
            {
                **_placed(component, feed, kind),
                "launches": _launches(component, feed, kind),
                "loop": _loop(component, feed, kind),
                "out_of_memory": _out_of_memory(component, _feed(component, lengths | LARGE), kind),
            }
        )
    )
    assert "torch" not in sys.modules


def _feed(component: Component, lengths: Mapping[str, int]) -> dict[str, Array]:
    return {
        tensor: np.ones([d if isinstance(d, int) else lengths[d] for d in component.dims[tensor]], spec.dtype)
        for tensor, spec in component.graph.inputs.items()
    }


def _placed(component: Component, feed: Mapping[str, Array], kind: str) -> dict[str, Any]:
    """Which nodes ran, and where: from the profile of a session as the runtime makes it."""
    graph, options = component.graph, settings(threads=1)
    found = choose_rewritten(graph, None, ort.__version__) if kind == "rewritten" else None
    options.enable_profiling = True
    options.profile_file_prefix = str(graph.path.parent / "profile")
    options.add_session_config_entry(WEIGHTS_FOLDER, str(graph.path.parent.resolve()))
    if found is not None:
        for axis, length in found.record.lengths({name: value.shape for name, value in feed.items()}).items():
            options.add_free_dimension_override_by_name(axis, length)
    path, channels_last = (graph.path, False) if found is None else (found.path, found.record.channels_last)
    provider = Provider(device="cuda", channels_last=channels_last)
    session = make_session(path.read_bytes(), options, precision=graph.precision, provider=provider)
    session.run(None, dict(feed))
    profile = Path(session.end_profiling())
    events = [each for each in json.loads(profile.read_text()) if str(each.get("name")).endswith("_kernel_time")]
    profile.unlink()
    nodes = Counter((each["args"]["provider"], each["args"]["op_name"]) for each in events)
    kinds = Counter[str]()
    for (_, operator), count in nodes.items():
        kinds[operator] += count
    return {
        "nodes": nodes.total(),
        "on_cpu": sum(count for (provider, _), count in nodes.items() if provider.startswith("CPU")),
        "memcpy": kinds["MemcpyToHost"] + kinds["MemcpyFromHost"],
        "transposes": kinds["Transpose"],
        "group_norms": kinds["GroupNorm"],
        "attention": kinds["Attention"],
        "changes": {} if found is None else dict(found.record.changes),
    }


def _launches(component: Component, feed: Mapping[str, Array], kind: str) -> int:
    """Kernels and plans of cuDNN that the second run by the runtime's own engine starts."""
    with closing(_engine(component, kind)) as engine:
        engine.run(feed)
        before = _launched()
        engine.run(feed)
        return _launched() - before


def _loop(component: Component, feed: Mapping[str, Array], kind: str) -> dict[str, int] | None:
    """What each call of a prepared loop does, and how many kernels it launches where captures fail; None: no step."""
    if component.name != "step":
        return None
    rows = {name: np.stack([feed[name]] * CALLS) for name in CHANGING}
    rest = {name: value for name, value in feed.items() if name not in rows}
    dims = {name: value.shape for name, value in feed.items()}
    counts: dict[str, int] = {}
    with closing(_engine(component, kind)) as engine:
        engine.prepare(dims, rows=CHANGING, carry=CARRY)
        for call, _ in enumerate(engine.sweep(rest, rows=rows, carry=CARRY)):
            counts = {name: sum(map(_count, functions)) for name, functions in COUNTED.items()}
            if call == 0:
                first = counts
    _CUDART.latentrt_fail_captures()
    with closing(_engine(component, kind)) as engine:
        engine.prepare(dims, rows=CHANGING, carry=CARRY)
        graphs, before = _count("cudaGraphLaunch"), _launched()
        consumed = sum(1 for _ in engine.sweep(rest, rows=rows, carry=CARRY))
        assert _count("cudaGraphLaunch") == graphs
        direct = (_launched() - before) // consumed
    per_call = {name: (count - first[name]) // (CALLS - 1) for name, count in counts.items()}
    return {**per_call, "launches_without_capture": direct}


def _out_of_memory(component: Component, feed: Mapping[str, Array], kind: str) -> dict[str, bool]:
    """What becomes of a run for which CUDA has no memory: whether ONNX Runtime's error is known for what it is, whether
    the engine's says what to try, and whether the next run works."""
    found = dict.fromkeys(("known", "told", "usable"), False)
    sizes = Sizes.of({name: value.shape for name, value in feed.items()}, carry={})
    with closing(_engine(component, kind)) as engine:
        assert isinstance(engine, DeviceEngine)
        binding = engine._bound(sizes)  # loads the graph: what a run needs besides comes later
        _CUDART.latentrt_fill(1)
        try:
            binding.run(feed)
        except OutOfDeviceMemory as error:
            found["known"] = "out of GPU memory while running" in str(error)
        try:
            engine.run(feed)
        except BackendError as error:
            found["told"] = "does not fit" in str(error) and "smaller size" in str(error)
        _CUDART.latentrt_fill(0)
        found["usable"] = engine.run(feed).keys() == component.graph.outputs.keys()
    return found


def _engine(component: Component, kind: str) -> Engine:
    engine = open_engine(component.graph, backend="onnxruntime", device="cuda")
    if kind == "plain":
        engine._rewritten = None  # type: ignore[attr-defined]
    return engine


def _count(function: str) -> int:
    return int(_CUDART.latentrt_count(function.encode()))


def _launched() -> int:
    return sum(library.latentrt_launches() for library in (_CUDART, _CUDNN))


if __name__ == "__main__":
    main()
