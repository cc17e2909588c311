"""Engines built ahead of time: what each was built for, and the one that fits a graph (docs/gpus.md).

Layout: `<folder>/<variant>/<key>/engine.plan`, and beside it `engine.json`, an `EngineRecord`. A plan tells
nothing without a GPU, so that the record holds whatever is to be known before one is at hand.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from latentrt.arrays import Shape
from latentrt.errors import BundleError
from latentrt.graph import GraphFile
from latentrt.manifest.json_rules import check, read_json

PLAN = "engine.plan"
RECORD = "engine.json"
RECORD_VERSION = 1
_VARIANT = "flavour"  # what the file calls it
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # variant, and its Python package

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The sizes that an engine serves: smallest, usual and largest shape of each input."""

    min: Mapping[str, Shape]
    opt: Mapping[str, Shape]
    max: Mapping[str, Shape]

    def covers(self, dims: Mapping[str, Shape]) -> bool:
        """Whether every input's shape lies within the range."""
        return all(
            len(shape) == len(self.min[name])
            and all(low <= n <= high for low, n, high in zip(self.min[name], shape, self.max[name], strict=True))
            for name, shape in dims.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """What is known of one engine.

    Args:
        component: the graph that it was built from, such as `step`.
        graph: that graph's digest (`GraphFile.digest`).
        variant: `tensorrt-rtx` or `tensorrt`; with `version`, the only runtime that reads the plan.
        gpus: compute capabilities that it runs on: `sm89` alone, `sm80+` that one and all later ones.
        options: of the build, as the user writes them; those that this component depends on.
        weights_bytes, activation_bytes: device memory of the weights, and of one execution at `profile.max`, as
            the builder reported them; None where it said nothing.
        layers, types: how many layers the network had, and how many of their outputs were of each type.
        products: types of the matrix products; some GPUs have the type and not its products.
        io: type of each input and output.
    """

    component: str
    graph: str
    variant: str
    version: str
    gpus: tuple[str, ...]
    precision: str
    options: Mapping[str, Any]
    profile: Profile
    plan_bytes: int
    plan_sha256: str
    weights_bytes: int | None
    activation_bytes: int | None
    layers: int
    types: Mapping[str, int]
    seconds: float
    products: tuple[str, ...] = ()
    io: Mapping[str, str] = field(default_factory=dict)

    def runs_on(self, capability: tuple[int, int]) -> bool:
        """Whether a GPU of this compute capability, (8, 9) for sm89, is one that it was built for."""
        here = capability[0] * 10 + capability[1]
        return any(
            here >= int(gpu[2:-1]) if gpu.endswith("+") else here == int(gpu.removeprefix("sm")) for gpu in self.gpus
        )

    def to_json(self) -> str:
        """The text of `engine.json`."""
        row = {_VARIANT if name == "variant" else name: value for name, value in asdict(self).items()}
        return json.dumps({"record_version": RECORD_VERSION, **row}, indent=1)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Inverse of `to_json`; a BundleError for a file that is unreadable, malformed, or of another version."""
        row = read_json(path)
        check(row, "engine", file=path)
        if row.pop("record_version") != RECORD_VERSION:
            raise BundleError(f"{path} is a record of another version", expected=f"version {RECORD_VERSION}")
        row["variant"] = row.pop(_VARIANT)
        shapes = row.pop("profile")
        profile = {bound: {name: tuple(shape) for name, shape in shapes[bound].items()} for bound in _BOUNDS}
        if any(_ranks(bound) != _ranks(profile["min"]) for bound in profile.values()):
            raise BundleError(f"{path}: profile differs in min, opt and max", expected="the same inputs and ranks")
        given: dict[str, Any] = {field.name: row[field.name] for field in fields(cls) if field.name in row}
        lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        return cls(**given | lists, profile=Profile(**profile))


_BOUNDS = ("min", "opt", "max")


def _ranks(shapes: Mapping[str, Shape]) -> dict[str, int]:
    return {name: len(shape) for name, shape in shapes.items()}


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A record and the plan that it describes."""

    record: EngineRecord
    plan: Path


def engine_key(
    graph: GraphFile,
    *,
    variant: str,
    version: str,
    gpus: tuple[str, ...],
    profile: Profile,
    options: Mapping[str, Any],
) -> str:
    """32 hexadecimal digits that change with anything that the plan depends on."""
    parts = [graph.component, graph.digest, variant, version, gpus, asdict(profile), dict(options)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def built_engines(folder: Path, variant: str) -> Iterator[BuiltEngine]:
    """The finished engines below `folder`, in the order of their keys; unreadable records are logged and left out."""
    for path in sorted((folder / variant).glob(f"*/{RECORD}")):
        try:
            record = EngineRecord.read(path)
        except BundleError as error:
            log.warning("%s is not the record of an engine (%s)", path, error.found)
            continue
        if path.with_name(PLAN).is_file():
            yield BuiltEngine(record, path.with_name(PLAN))


@dataclass(frozen=True, slots=True)
class Outdated:
    """An engine that nothing here can run any more: why, and the bytes in its folder."""

    built: BuiltEngine
    _: KW_ONLY
    reason: str
    bytes: int

    def describe(self) -> dict[str, Any]:
        """For reports, as JSON values."""
        record = self.built.record
        return {
            "component": record.component,
            "backend": record.variant,
            "version": record.version,
            "gpus": list(record.gpus),
            "folder": str(self.built.plan.parent),
            "bytes": self.bytes,
            "reason": self.reason,
        }


def outdated_engines(
    folder: Path, variant: str, *, graphs: Collection[GraphFile], version: str | None, shared: bool
) -> Iterator[Outdated]:
    """Engines of graphs that are not there, or of another version of TensorRT.

    Args:
        version: of the variant as it is installed; None is not known, and passes every engine.
        shared: other bundles keep engines in `folder` too, so that unknown graphs are theirs.
    """
    known = {(graph.component, graph.digest) for graph in graphs}
    for built in built_engines(folder, variant):
        record = built.record
        here = (record.component, record.options.get("without_lora", record.graph)) in known
        if not here and not shared:
            reason = "its graph is not in the bundle"
        elif here and version is not None and record.version != version:
            reason = f"built with {record.version}, and {version} is installed"
        else:
            continue
        size = sum(path.stat().st_size for path in built.plan.parent.iterdir() if path.is_file())
        yield Outdated(built, reason=reason, bytes=size)
