"""Engines that are of no use any more are removed."""

import shutil
from pathlib import Path

from latentrt.backends.tensorrt.records import RECORD, Outdated, outdated_engines
from latentrt.bundle import Bundle
from latentrt.concurrency.locks import lock_target
from latentrt.errors import EnvironmentLacks
from latentrt.export.engines.variants import open_toolkit, variant


def prune_engines(bundle: Bundle, *, backend: str, folder: Path) -> list[Outdated]:
    """Removes the engines of one variant that are outdated, and returns what they were.

    Args:
        bundle: whose engines they are.
        backend: `tensorrt-rtx` or `tensorrt`.
        folder: where engines lie. In another one than the bundle's own, engines of unknown graphs stay: they may be
            another bundle's.

    Raises:
        EnvironmentLacks: no TensorRT to compare versions with, or a folder that cannot be written.
        InUseError: another process builds one of them.
    """
    version = open_toolkit(variant(backend)).version
    graphs = [part.graph for part in bundle.components.values()]
    shared = folder.resolve() != (bundle.root / "engines").resolve()
    outdated = list(outdated_engines(folder, backend, graphs=graphs, version=version, shared=shared))
    for found in outdated:
        home = found.built.plan.parent
        try:
            with lock_target(home):
                (home / RECORD).unlink()  # first: what is left of an interrupted removal is no engine
                shutil.rmtree(home)
        except OSError as error:
            raise EnvironmentLacks(
                f"{home} cannot be removed ({error.strerror})", hint="check the permissions of the folder"
            ) from error
    return outdated
