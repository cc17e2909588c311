"""The one place that makes sessions of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from latentrt.graph import GraphFile

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_OF_PROVIDERS: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}  # float32 means float32
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"  # of a model in memory
_FATAL = 4  # errors arrive as exceptions; ONNX Runtime need not print them as well
# Of graphs in a precision: this one makes products of float8 into an operator that has no float8.
_DISABLED: Mapping[str | None, list[str]] = {"fp8": ["QDQSelectorActionTransformer"]}


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


def make_session(
    model: Path | bytes, options: Any, *, precision: str | None, device: str = "cpu", channels_last: bool = False
) -> Any:
    """A session of a model on disk or in memory; `precision` is the number format of its network, `channels_last` how
    a GPU is to lay out its convolutions."""
    layout = {"prefer_nhwc": "1"} if channels_last else {}
    provider = (PROVIDERS[device], _OF_PROVIDERS[device] | layout)
    return ort.InferenceSession(model, options, providers=[provider], disabled_optimizers=_DISABLED.get(precision))
