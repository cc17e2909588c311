"""Reading a bundle: the directory that holds everything needed to make images (docs/bundle.md)."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Self

from latentrt.engine import GraphFile, TensorSpec
from latentrt.errors import BundleError, IntegrityError, VersionError
from latentrt.family import Family

MANIFEST = "bundle.json"
FORMAT = "latentrt-bundle"
FORMAT_VERSION = 3
STEP_CONTROL = "step-control"
CONTROLNET = "controlnet-"
_CHUNK_BYTES = 4 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Component:
    """One graph of the bundle.

    Args:
        name: `text_encoder`, `step`, `decoder`, `encoder`, `step-control` or `controlnet-NAME`.
        precision: number format of its weights.
        parameters: how many weights.
        graph: the files and the IO, as the engines take them.
        dims: the name or the length of each axis, by input and output.
    """

    name: str
    precision: str
    parameters: int
    graph: GraphFile
    dims: Mapping[str, tuple[str | int, ...]]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose manifest has been read and checked.

    Args:
        root: its directory.
        manifest: bundle.json as it stands.
        family: the model's row.
        components: by name.
        preview: [C + 1, 3] affine map from latent channels and 1 to RGB in 0..1, or None.
    """

    root: Path
    manifest: Mapping[str, Any]
    family: Family
    components: Mapping[str, Component]
    preview: tuple[tuple[float, ...], ...] | None

    @classmethod
    def open(cls, path: str | PathLike[str]) -> Self:
        """Reads the manifest and checks that every file is there in its promised size.

        Raises:
            BundleError: no bundle, incomplete, or malformed.
            VersionError: written in a newer format.
            IntegrityError: a file of another size than promised.
        """
        root = Path(path)
        manifest = _read_manifest(root)
        _check_sizes(root, manifest)
        try:
            return cls(
                root=root,
                manifest=manifest,
                family=Family.from_dict(manifest["family"]),
                components={name: _component(root, name, row, manifest) for name, row in _graphs(manifest)},
                preview=_preview(manifest),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"{root / MANIFEST} is not a valid manifest ({type(error).__name__}: {error})",
                expected="the form of docs/bundle.md",
                hint="export the bundle again",
            ) from error

    @property
    def name(self) -> str:
        """The directory's name, as the model's name in metadata."""
        return self.root.resolve().name

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the ControlNets."""
        return tuple(name.removeprefix(CONTROLNET) for name in self.components if name.startswith(CONTROLNET))

    @property
    def towers(self) -> tuple[str, ...]:
        """Components of the text towers, without optional ones that this bundle lacks."""
        return tuple(
            tower.component for tower in self.family.towers if not tower.optional or tower.component in self.components
        )

    def component(self, name: str) -> Component:
        """The component called `name`.

        Raises:
            BundleError: the bundle has none.
        """
        if name not in self.components:
            raise BundleError(
                f"bundle '{self.name}' has no component '{name}'",
                expected=f"one of {', '.join(self.components)}",
                hint="export the bundle again with it",
            )
        return self.components[name]

    def made_from(self, other: "Bundle") -> bool:
        """Whether this one was converted or calibrated from `other`, by the hash of its manifest."""
        origin = self.manifest.get("provenance", {}).get("derived_from", {})
        return bool(origin.get("manifest") == sha256_file(other.root / MANIFEST))

    def verify(self, *, progress: Callable[[str], None] | None = None) -> None:
        """Compares the sha256 of every file with the manifest, reading all of them.

        Raises:
            IntegrityError: names the first file whose bytes differ.
        """
        for name, entry in self.manifest["files"].items():
            if progress is not None:
                progress(name)
            found = sha256_file(self.root / name)
            if found != entry["sha256"]:
                raise IntegrityError(
                    f"{self.root / name} has sha256 {found[:12]}...",
                    expected=f"{entry['sha256'][:12]}... as the manifest says",
                    hint="the file was changed or damaged: copy or export the bundle again",
                )


def is_bundle(path: str | PathLike[str]) -> bool:
    """Whether there is a manifest, whatever its contents."""
    return (Path(path) / MANIFEST).is_file()


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    if not root.is_dir():
        raise BundleError(
            f"no bundle at {root}", expected="a directory made by `latentrt export`", hint="check the path"
        )
    if not path.is_file():
        raise BundleError(
            f"{root} has no {MANIFEST}",
            expected="a finished bundle",
            hint="an interrupted export continues when it is run again",
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BundleError(
            f"{path} cannot be read ({error})", expected="JSON", hint="copy or export the bundle again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{path} is not the manifest of a bundle", expected=f'"format": "{FORMAT}"')
    version = manifest.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise VersionError(
            f"{root} is written in bundle format {version}",
            expected=f"format {FORMAT_VERSION} or older",
            hint="update LatentRT, or export the checkpoint again with this version",
        )
    return manifest


def _check_sizes(root: Path, manifest: Mapping[str, Any]) -> None:
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise BundleError(f"{root / MANIFEST} lists no files", hint="export the bundle again")
    for name, entry in files.items():
        path = root / name
        if not path.is_file():
            raise BundleError(
                f"bundle file {path} is missing",
                expected=f"{entry['bytes']} bytes",
                hint="copy or export the bundle again",
            )
        if (size := path.stat().st_size) != entry["bytes"]:
            raise IntegrityError(
                f"{path} has {size} bytes",
                expected=f"{entry['bytes']} as the manifest says",
                hint="the copy is incomplete or damaged: copy or export the bundle again",
            )


def _graphs(manifest: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return list(manifest["components"].items())


def _component(root: Path, name: str, row: Mapping[str, Any], manifest: Mapping[str, Any]) -> Component:
    files = [row["graph"], *row["weights"]]
    return Component(
        name=name,
        precision=row["precision"],
        parameters=row["parameters"],
        graph=GraphFile(
            name,
            path=root / row["graph"],
            inputs={tensor: _spec(io) for tensor, io in row["inputs"].items()},
            outputs={tensor: _spec(io) for tensor, io in row["outputs"].items()},
            weights=tuple(root / weights for weights in row["weights"]),
            digest=_digest(manifest["files"][file]["sha256"] for file in files),
            precision=row["precision"],
        ),
        dims={tensor: tuple(io["dims"]) for tensor, io in (row["inputs"] | row["outputs"]).items()},
    )


def _digest(parts: Any) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _spec(io: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(io["dtype"], tuple(dim if isinstance(dim, int) else None for dim in io["dims"]))


def _preview(manifest: Mapping[str, Any]) -> tuple[tuple[float, ...], ...] | None:
    rows = manifest.get("preview")
    return None if rows is None else tuple(tuple(float(value) for value in row) for row in rows)
