"""Reading a bundle: the directory that holds everything needed to make images (docs/bundle.md)."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Self

from latentrt.errors import BundleError, IntegrityError
from latentrt.family import Family
from latentrt.files.names import links_allowed
from latentrt.graph import GraphFile, TensorSpec
from latentrt.manifest.contract import CONTROLNET, FEATURES, SHALLOW, STEP_CONTROL, check_io
from latentrt.manifest.graph_check import check_graph
from latentrt.manifest.json_rules import check, read_json
from latentrt.manifest.reader import FORMAT, FORMAT_VERSION, MANIFEST, read_family, read_manifest, section

__all__ = [
    "CONTROLNET",
    "FEATURES",
    "FORMAT",
    "FORMAT_VERSION",
    "MANIFEST",
    "SHALLOW",
    "STEP_CONTROL",
    "Bundle",
    "Component",
    "is_bundle",
    "sha256_file",
]

_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Component:
    """One graph of the bundle.

    Args:
        name: `text_encoder`, `step`, `decoder`, `encoder`, `step-control` or `controlnet-NAME`; with step caching
            `step-shallow`, and `step-control-shallow` with ControlNets.
        precision: number format of its weights.
        stored: how many values lie in the files in each type; empty in older bundles.
        pooled_attention: self-attentions whose keys and values are pooled 2x2, an approximation; mostly none.
        graph: the files and the IO, as the engines take them.
        dims: the name or the length of each axis, by input and output.
    """

    name: str
    precision: str
    parameters: int
    graph: GraphFile
    dims: Mapping[str, tuple[str | int, ...]]
    stored: Mapping[str, int] = field(default_factory=dict)
    pooled_attention: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose manifest has been read and checked.

    Args:
        manifest: bundle.json as it stands.
        preview: [C + 1, 3] affine map from latent channels and 1 to RGB in 0..1, or None.
    """

    root: Path
    manifest: Mapping[str, Any]
    family: Family
    components: Mapping[str, Component]
    preview: tuple[tuple[float, ...], ...] | None

    @classmethod
    def open(cls, path: str | PathLike[str], *, follow_links: bool | None = None) -> Self:
        """Reads the manifest and checks every field, that every file is there in its promised size, and that nothing
        leads out of the bundle.

        Args:
            path: its directory, which may be a link itself.
            follow_links: whether links in it may lead to files elsewhere. None: only if the environment variable
                LATENTRT_FOLLOW_LINKS is 1.

        Raises:
            BundleError: no bundle, incomplete or malformed, or a file of it that lies elsewhere.
            VersionError: written in a newer format.
            IntegrityError: a file of another size than promised.
        """
        root = Path(path)
        manifest = read_manifest(root, follow_links=links_allowed() if follow_links is None else follow_links)
        family = read_family(manifest["family"], root / MANIFEST)
        components = {name: _component(root, name, row, manifest) for name, row in manifest["components"].items()}
        for component in components.values():
            check_io(component.graph, family, root / MANIFEST)
            _check_graph(component, manifest["files"], root)
        return cls(root=root, manifest=manifest, family=family, components=components, preview=_preview(manifest))

    @property
    def name(self) -> str:
        """The directory's name, as the model's name in metadata."""
        return self.root.resolve().name

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the ControlNets."""
        return tuple(name.removeprefix(CONTROLNET) for name in self.components if name.startswith(CONTROLNET))

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Components of the text encoders, without optional ones that this bundle lacks."""
        return tuple(
            each.component
            for each in self.family.text_encoders
            if not each.optional or each.component in self.components
        )

    @property
    def left_out(self) -> tuple[str, ...]:
        """Components of the optional text encoders that this bundle lacks."""
        named = (each.component for each in self.family.text_encoders)
        return tuple(name for name in named if name not in self.text_encoders)

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

    def stored_bytes(self, name: str) -> int:
        """What the files of a component's graph and weights take."""
        row = self.manifest["components"][name]
        return sum(self.manifest["files"][file]["bytes"] for file in (row["graph"], *row["weights"]))

    def section(self, name: str) -> Any:
        """`provenance`, `parity`, `calibration`, `pooling` or `controlnets` of the manifest, which nothing at run time
        acts on, checked in full; None where it is not there.

        Raises:
            BundleError: a field of it is missing or malformed.
        """
        return section(self.manifest, name, self.root)

    def keys(self, name: str) -> Mapping[str, Mapping[str, Any]] | None:
        """Where the initializers of a component come from, by name (docs/bundle.md); None without such a file.

        Raises:
            BundleError: the bundle has no such component, or the file is malformed.
        """
        row = self.manifest["components"][self.component(name).name]
        if "keys" not in row:
            return None
        path = self.root / row["keys"]
        found: Mapping[str, Mapping[str, Any]] = read_json(path)
        check(found, "keys", file=path)
        return found

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
            _compare(self.root / name, entry["sha256"])


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


def _check_graph(component: Component, files: Mapping[str, Any], root: Path) -> None:
    """What a damaged graph holds says little: its bytes are compared first."""
    try:
        check_graph(component.graph)
    except BundleError:
        entry = files[component.graph.path.relative_to(root).as_posix()]
        _compare(component.graph.path, entry["sha256"])
        raise


def _compare(path: Path, promised: str) -> None:
    found = sha256_file(path)
    if found != promised:
        raise IntegrityError(
            f"{path} has sha256 {found[:12]}...",
            expected=f"{promised[:12]}... as the manifest says",
            hint="the file was changed or damaged: copy or export the bundle again",
        )


def _component(root: Path, name: str, row: Mapping[str, Any], manifest: Mapping[str, Any]) -> Component:
    files = [row["graph"], *row["weights"]]
    return Component(
        name=name,
        precision=row["precision"],
        parameters=row["parameters"],
        stored=dict(row.get("stored", {})),
        pooled_attention=tuple(row.get("pooled_attention", ())),
        graph=GraphFile(
            name,
            path=root / row["graph"],
            inputs={tensor: _spec(io) for tensor, io in row["inputs"].items()},
            outputs={tensor: _spec(io) for tensor, io in row["outputs"].items()},
            weights=tuple(root / weights for weights in row["weights"]),
            digest=_digest(manifest["files"][file]["sha256"] for file in files),
            precision=row["precision"],
            widened_bytes=_widened_bytes(row),
        ),
        dims={tensor: tuple(io["dims"]) for tensor, io in (row["inputs"] | row["outputs"]).items()},
    )


def _widened_bytes(row: Mapping[str, Any]) -> int | None:
    """Of a float32 graph, whose stored values all become float32."""
    stored = row.get("stored")
    return 4 * sum(stored.values()) if stored and row["precision"] == "fp32" else None


def _digest(parts: Any) -> str:
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _spec(io: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(io["dtype"], tuple(dim if isinstance(dim, int) else None for dim in io["dims"]))


def _preview(manifest: Mapping[str, Any]) -> tuple[tuple[float, ...], ...] | None:
    rows = manifest.get("preview")
    return None if rows is None else tuple(tuple(float(value) for value in row) for row in rows)
