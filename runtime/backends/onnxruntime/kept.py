"""Large graphs as ONNX Runtime makes them ready for a processor, kept so that a second start does not make them again.

What takes a start its time and its memory is widening weights and laying out kernels of convolutions anew. A kept graph
has both done; its weights are mapped.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnxruntime as ort

from latentrt.backends.cache import CompileCache, cache_key, graph_bytes
from latentrt.backends.host_memory import give_back, returning_at_once
from latentrt.backends.onnxruntime.load import load_session
from latentrt.backends.onnxruntime.session import make_session
from latentrt.backends.processor import has_int8_products, processor
from latentrt.errors import BackendError
from latentrt.graph import GraphFile

log = logging.getLogger(__name__)

RECIPE = 1  # of what is done to a graph before ONNX Runtime sees it
FROM_BYTES = 64 * 2**20  # of weights; what is smaller is made as fast as it is read
_READY, _GRAPH, _WEIGHTS = "ready", "graph.onnx", "graph.weights"
_FREE = 1.1  # of what is written, to begin with it
_FILE = "session.optimized_model_external_initializers_file_name"
_PACKS_NOTHING = "session.disable_prepacking"
_SMALLEST = "session.optimized_model_external_initializers_min_size_in_bytes"


def kept_session(graph: GraphFile, options: Callable[[], Any], cache: CompileCache) -> Any:
    """A session of a graph without new weights, on the CPU: of what `cache` holds of it, which it holds from then on.

    Args:
        options: makes its `SessionOptions`.

    Raises:
        BundleError, BackendError: as `load_session`.
    """
    key = cache_key(graph, "onnxruntime", ort.__version__, processor(), str(has_int8_products()), str(RECIPE))
    entry = cache.entry(key) if FROM_BYTES <= graph_bytes(graph) <= cache.limit_bytes else None
    session = None
    if entry is not None:
        session = _read(entry / _READY, graph, options())
        if session is None:
            _make(entry, graph, options())
            session = _read(entry / _READY, graph, options())
        cache.used(key)
    return load_session(graph, options())[0] if session is None else session


def _read(folder: Path, graph: GraphFile, options: Any) -> Any:
    """None where there is nothing that can be read."""
    if not folder.is_dir():
        return None
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is done
    try:
        return make_session(folder / _GRAPH, options, precision=graph.precision)
    except Exception as error:  # ONNX Runtime's have no common class
        log.warning("%s cannot be read (%s), and is removed", folder, str(error).splitlines()[0])
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _make(entry: Path, graph: GraphFile, options: Any) -> None:
    """Makes the graph that the entry holds from then on; warns where it cannot be written. The session that made it
    has every weight once more, as long as it lasts, so that none of them is packed for running."""
    if shutil.disk_usage(entry).free < _FREE * graph_bytes(graph):
        log.warning("compiled graphs are not kept: %s has no %.1f GB free", entry, graph_bytes(graph) / 1e9)
        return
    with tempfile.TemporaryDirectory(dir=entry, prefix="part-", ignore_cleanup_errors=True) as scratch:
        part = Path(scratch) / _READY
        part.mkdir()
        options.optimized_model_filepath = str(part / _GRAPH)
        options.add_session_config_entry(_FILE, _WEIGHTS)
        options.add_session_config_entry(_SMALLEST, "1024")
        options.add_session_config_entry(_PACKS_NOTHING, "1")
        try:
            with returning_at_once():
                load_session(graph, options)
        except BackendError as error:
            log.warning("compiled graphs are not kept: %s", error)
            return
        give_back()
        with suppress(OSError):  # another process was first
            part.rename(entry / _READY)
