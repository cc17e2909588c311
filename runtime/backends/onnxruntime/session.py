"""The one place that makes sessions of ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from latentrt.backends.onnxruntime.rewrite import for_cpu
from latentrt.backends.processor import has_int8_products
from latentrt.graph import GraphFile

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"  # of a model in memory
_FATAL = 4  # errors arrive as exceptions; ONNX Runtime need not print them as well
_ROUNDED_PRODUCTS = "QDQSelectorActionTransformer"  # makes float products of rounded operands into ones of integers


def settings(*, threads: int | None) -> Any:
    """`SessionOptions`; None leaves the number of threads to ONNX Runtime."""
    ort.disable_telemetry_events()  # of an ONNX Runtime that was imported before this package
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def watching(graph: GraphFile, *, threads: int | None) -> Any:
    """`SessionOptions` of a model in memory that is the graph with more outputs, each reduced to a few numbers."""
    options = settings(threads=threads)
    # In the default order all reductions would run last, and hold every tensor until then.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry(WEIGHTS_FOLDER, str(graph.path.parent.resolve()))
    return options


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """Where a session runs, and how.

    Args:
        channels_last: how a GPU is to lay out convolutions.
        stream: handle of the CUDA stream that all its work goes to; None: one of its own.
        graphs: whether it captures CUDA graphs.
    """

    device: str
    channels_last: bool = False
    stream: int | None = None
    graphs: bool = False

    def options(self) -> dict[str, str]:
        """As ONNX Runtime takes them."""
        if self.device == "cpu":
            return {}
        given = {"use_tf32": "0"}  # float32 means float32
        given |= {"prefer_nhwc": "1"} if self.channels_last else {}
        given |= {"user_compute_stream": str(self.stream)} if self.stream is not None else {}
        return given | ({"enable_cuda_graph": "1"} if self.graphs else {})


CPU = Provider(device="cpu")


def make_session(model: Path | bytes, options: Any, *, precision: str | None, provider: Provider = CPU) -> Any:
    """A session of a model on disk or in memory; `precision` is the number format of its network."""
    if provider == CPU:
        options.enable_mem_pattern = False  # planned in one block, a decoder takes almost twice as much, no faster
        model = _for_cpu(model, options)
    providers = [(PROVIDERS[provider.device], provider.options())]
    return ort.InferenceSession(model, options, providers=providers, disabled_optimizers=_disabled(precision))


def _for_cpu(model: Path | bytes, options: Any) -> Path | bytes:
    """The model as the CPU is to run it; the file itself where that is as it lies there, or cannot be read."""
    try:
        source = model if isinstance(model, bytes) else model.read_bytes()
    except OSError:
        return model
    made = for_cpu(source)
    if made is source:
        return model
    if isinstance(model, Path):
        options.add_session_config_entry(WEIGHTS_FOLDER, str(model.parent.resolve()))
    return made


def _disabled(precision: str | None) -> list[str]:
    """Where products of rounded operands stay in float: there are none of float8, and those of int8 saturate on x86-64
    without VNNI. (`session.x64quantprecision`, meant for that, breaks scales of a channel each.)"""
    inexact = precision == "fp8" or (precision == "int8" and not has_int8_products())
    return [_ROUNDED_PRODUCTS] if inexact else []
