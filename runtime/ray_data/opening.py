"""What a process of a cluster must know to stand in for the driver: the bundle, how it is run, and where images go."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentrt.backends import backend_row
from latentrt.datasets.items import Item, weights_digest
from latentrt.environment.floors import floors
from latentrt.errors import EnvironmentLacks, RequestError
from latentrt.images.tiles import Tile
from latentrt.loading import load
from latentrt.lora import Lora
from latentrt.names import BackendName, ComputeName, DeviceName
from latentrt.pipeline import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How every process opens the bundle; the fields are arguments of `latentrt.load`.

    Args:
        folder: what relative paths are relative to, that of the driver.
    """

    bundle: str
    backend: BackendName = "auto"
    device: DeviceName | None = None
    compute: ComputeName | None = None
    threads: int | None = None
    cache_dir: str | None = None
    lora: tuple[Lora, ...] = ()
    embeddings: tuple[tuple[str, str], ...] = ()
    tile: Tile = "auto"
    follow_links: bool = False
    folder: str = ""

    def open(self) -> Pipeline:
        """The pipeline, in a process that is ours alone.

        Raises:
            As `latentrt.load`.
        """
        if self.folder and Path(self.folder).is_dir():
            os.chdir(self.folder)
        return load(
            self.bundle,
            backend=self.backend,
            device=self.device,
            compute=self.compute,
            threads=self.threads,
            cache_dir=self.cache_dir,
            lora=self.lora,
            embeddings=dict(self.embeddings),
            tile=self.tile,
            follow_links=self.follow_links,
        )


@dataclass(frozen=True, slots=True)
class Facts:
    """What must be equal in every process, for images that are equal to the byte.

    Args:
        weights: a digest of the bundle, LoRAs and embeddings.
        backend: that runs the steps.
        packages: versions of what computes and encodes.
    """

    weights: str
    backend: str
    packages: Mapping[str, str]

    @classmethod
    def of(cls, pipe: Pipeline) -> "Facts":
        """Of this process."""
        extras = backend_row(pipe.backend).extras
        names = {floor.name for extra in (None, *extras) for floor in floors(extra)}
        found = {name: version for name in sorted(names) if (version := _version(name)) is not None}
        return cls(weights_digest(pipe), pipe.backend, {**found, "machine": platform.machine()})

    def check(self, other: "Facts", *, where: str) -> None:
        """Raises EnvironmentLacks where another process would make other images."""
        if other.weights != self.weights:
            raise EnvironmentLacks(
                f"{where} has another bundle, LoRA or embedding at the same path",
                expected="the same files on every node",
                hint="put them on a storage that all nodes share, or copy them to each",
            )
        own, theirs = ({"backend": facts.backend, **facts.packages} for facts in (self, other))
        differing = sorted(name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name))
        if differing:
            found = ", ".join(f"{name} {theirs.get(name, 'none')}" for name in differing)
            expected = ", ".join(f"{name} {own.get(name, 'none')}" for name in differing)
            raise EnvironmentLacks(
                f"{where} has {found}",
                expected=f"{expected}, as on the node that planned",
                hint="install the same versions on every node, or name a --backend that all have",
            )


def check_pictures(items: Iterable[Item], digests: Mapping[str, str]) -> None:
    """Compares the photos, masks and control pictures of these images with those that the plan was made with.

    Raises:
        RequestError: one is missing here, or another one.
    """
    for item in items:
        if _pictures_of(item) and item.digest() != digests[item.name]:
            raise RequestError(
                f"a picture that {item.name} is made from is another one here",
                expected="the one that the plan was made with",
                hint="put pictures on a storage that all nodes share",
            )


def pictures(items: Iterable[Item]) -> list[Item]:
    """One image for each set of pictures that is read: all that has to be compared."""
    return list({json.dumps(read, default=str): item for item in items if (read := _pictures_of(item))}.values())


def _pictures_of(item: Item) -> dict[str, Any]:
    row = item.settings()
    return {key: row[key] for key in ("start", "control") if key in row}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
