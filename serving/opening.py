"""How a service loads its models."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from latentrt.backends import BACKENDS
from latentrt.loading import load
from latentrt.names import BackendName, ComputeName, DeviceName
from latentrt.pipeline import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How bundles are loaded, as `latentrt.load` takes it."""

    backend: BackendName
    device: DeviceName | None
    compute: ComputeName | None
    threads: int | None
    cache_dir: str | PathLike[str] | None

    def load(self, path: Path) -> Pipeline:
        return load(
            path,
            backend=self.backend,
            device=self.device,
            compute=self.compute,
            threads=self.threads,
            cache_dir=self.cache_dir,
        )

    def on_gpu(self, pipe: Pipeline) -> bool:
        """Whether a pipeline that was loaded so runs on a GPU, where a few more images cost little."""
        usual = {row.name: row.devices[0] for row in BACKENDS}.get(pipe.backend)
        return "cuda" in (self.device, usual)
