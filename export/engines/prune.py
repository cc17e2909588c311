"""Engines that are of no use any more are removed."""

from pathlib import Path

from latentrt.backends.tensorrt.records import RECORD, Outdated, outdated_engines
from latentrt.bundle import Bundle
from latentrt.export.engines.folder import is_shared, remove_finished
from latentrt.export.engines.variants import open_toolkit, variant


def prune_engines(bundle: Bundle, *, backend: str, folder: Path) -> list[Outdated]:
    """Removes the engines of one variant that are outdated, and returns what they were.

    Args:
        folder: where engines lie. In another one than the bundle's own, engines of unknown graphs stay: they may be
            another bundle's.

    Raises:
        EnvironmentLacks: no TensorRT to compare versions with, or a folder that cannot be written.
        InUseError: another process builds one of them.
    """
    version = open_toolkit(variant(backend)).version
    graphs = [part.graph for part in bundle.components.values()]
    outdated = list(outdated_engines(folder, backend, graphs=graphs, version=version, shared=is_shared(folder, bundle)))
    for found in outdated:
        remove_finished(found.built.plan.parent, RECORD)
    return outdated
