"""A bundle's graph, and what stands in place of its weights, in a session of ONNX Runtime."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime as ort

from latentrt.backends.base import check_graph, mapped_errors
from latentrt.backends.onnxruntime.session import CPU, Provider, make_session
from latentrt.backends.onnxruntime.weights import NO_WEIGHTS, NewWeights, overridden
from latentrt.errors import BundleError
from latentrt.graph import GraphFile

_UNREADABLE = ("InvalidProtobuf", "InvalidGraph", "InvalidArgument", "NoSuchFile", "NoModel")


def load_session(graph: GraphFile, options: Any, *, provider: Provider = CPU) -> tuple[Any, NewWeights]:
    """A session of a graph as the bundle has it, and weights that have to live as long.

    Raises:
        BundleError: a graph that cannot be read.
        BackendError: the session cannot be made.
    """
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    with (
        mapped_errors(f"loading {graph.path}", hint="use another backend, or report the graph"),
        ThreadPoolExecutor(1) as aside,
    ):
        model: Path | bytes = graph.path
        weights = NO_WEIGHTS
        if graph.overrides:
            model, weights = overridden(graph, provider.device, options)
        feeding = aside.submit(weights.feed, graph.overrides)  # making a session takes one core only
        try:
            session = make_session(model, options, precision=graph.precision, provider=provider)
        except Exception as error:
            if type(error).__name__ not in _UNREADABLE:
                raise
            raise BundleError(
                f"{graph.path} cannot be read: {error}",
                expected="an ONNX graph",
                hint="export the bundle again, or copy it whole",
            ) from error
        feeding.result()
    return session, weights


def check_session(graph: GraphFile, session: Any) -> None:
    """Raises BundleError unless a session has the inputs and outputs of the manifest."""
    with mapped_errors(f"loading {graph.path}"):  # names that are no text fail here
        inputs, outputs = ([node.name for node in nodes] for nodes in (session.get_inputs(), session.get_outputs()))
    fed = {place.widened for override in graph.overrides for place in override.initializers.values()}
    check_graph(graph, inputs=[name for name in inputs if name not in fed], outputs=outputs)
