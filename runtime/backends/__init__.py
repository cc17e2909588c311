"""The backends: which there are, which one to take, and how to open a graph with it.

One row a backend, fastest first. A backend's module, and the package behind it, is imported when an engine
is opened with it and not before.
"""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from latentrt.concurrency.residency import Residency
from latentrt.engine import Engine, EngineOptions, Preparation
from latentrt.environment.floors import check_versions, too_old
from latentrt.environment.install import install_command
from latentrt.environment.requirement import Requirement, importable
from latentrt.errors import BackendError, EnvironmentLacks, RequestError
from latentrt.graph import GraphFile

log = logging.getLogger(__name__)

_PLACES = {"cpu": "the CPU", "cuda": "CUDA"}


@dataclass(frozen=True, slots=True)
class Backend:
    """A row of the registry.

    Args:
        module: where its `open_engine(graph, options)` is.
        package: the import whose presence makes it installed.
        extra: the extra of this distribution that installs it, for its default device.
        devices, computes: what it offers, its default first.
        prebuilt: it runs engines that `latentrt build` made, and no graph without.
        lacks: by device, the number formats of graphs that it has no kernels for, and why.
        slow: by device, those that are no faster there than float32, why, and what to use.
        device_extras: the extras for other devices.
        profiles: the devices on which it can say what each node takes.
    """

    name: str
    _: KW_ONLY
    module: str
    package: str
    extra: str
    devices: tuple[str, ...]
    computes: tuple[str, ...]
    prebuilt: bool = False
    lacks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    slow: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    device_extras: Mapping[str, str] = field(default_factory=dict)
    profiles: tuple[str, ...] = ()

    def installed(self) -> bool:
        """Whether its package can be found; nothing is imported."""
        return importable(self.package)

    @property
    def extras(self) -> tuple[str, ...]:
        """Any of them installs it."""
        return self.extra, *self.device_extras.values()

    def requirement(self, device: str | None = None) -> Requirement:
        """What installs it, for a device or for its default one."""
        if device is not None and device in self.device_extras:
            return Requirement(extra=self.device_extras[device], packages=(self.package,))
        return Requirement(extra=self.extra, packages=(self.package,), alternatives=self.extras[1:])

    def offers(self, *, device: str | None, compute: str | None) -> bool:
        return (device is None or device in self.devices) and (compute is None or compute in self.computes)

    def cannot_run(self, graphs: Sequence[GraphFile], *, device: str | None = None) -> str | None:
        """The graphs that it cannot run, `step, decoder in bf16`, or None if it can run all."""
        return _in_formats(graphs, self.lacks.get(self.device(device), {}))

    def slow_on(self, graphs: Sequence[GraphFile], *, device: str | None = None) -> list[str]:
        """A sentence for each number format of these graphs that is no faster on the device than float32."""
        name = self.device(device)
        formats = {graph.precision for graph in graphs}
        return [
            f"{precision} is no faster than float32 with {self.name} on {_PLACES[name]}: {why}"
            for precision, why in self.slow.get(name, {}).items()
            if precision in formats
        ]

    def limits(self, graphs: Sequence[GraphFile]) -> list[str]:
        """A sentence for each of its devices that cannot run these graphs, or not faster than in float32."""
        said = []
        for device in self.devices:
            if (unable := self.cannot_run(graphs, device=device)) is not None:
                said.append(f"{self.name} cannot run {unable} on {_PLACES[device]}")
            said += self.slow_on(graphs, device=device)
        return said

    def device(self, asked: str | None) -> str:
        """What runs where `asked` was asked for; None: its default."""
        return asked if asked is not None else self.devices[0]


BACKENDS = (
    Backend(
        "tensorrt",
        module="latentrt.backends.tensorrt.engine",
        package="tensorrt",
        extra="tensorrt",
        devices=("cuda",),
        computes=("fp32",),
        prebuilt=True,
    ),
    Backend(
        "tensorrt-rtx",
        module="latentrt.backends.tensorrt.engine",
        package="tensorrt_rtx",
        extra="tensorrt-rtx",
        devices=("cuda",),
        computes=("fp32",),
        prebuilt=True,
    ),
    Backend(
        "openvino",
        module="latentrt.backends.openvino",
        package="openvino",
        extra="openvino",
        devices=("cpu",),
        computes=("fp32", "bf16"),
        profiles=("cpu",),
    ),
    Backend(
        "onnxruntime",
        module="latentrt.backends.onnxruntime.engine",
        package="onnxruntime",
        extra="onnxruntime",
        devices=("cpu", "cuda"),
        computes=("fp32",),
        lacks={
            "cpu": {"bf16": "it has no bf16 kernels there"},
            "cuda": {"bf16": "Resize and GroupNorm have no bf16 kernels there"},
        },
        slow={
            "cpu": {
                "int8": "its convolutions stay in float and unpack their weights in every call (a step of Stable"
                " Diffusion 1.5: 6.6 s, 6.2 in float32, on a Xeon with AMX; 8.0 and 8.5 on an EPYC); use openvino,"
                " where it takes less than half of float32's time, or TensorRT"
            },
            "cuda": {
                precision: f"the provider turns {precision} back into float before it multiplies; use an fp16 bundle"
                for precision in ("int8", "fp8")
            },
        },
        device_extras={"cuda": "onnxruntime-gpu"},
        profiles=("cpu",),
    ),
)


ONNXRUNTIME = BACKENDS[-1].requirement()


def available() -> tuple[str, ...]:
    """Names of the installed backends that run any graph as it is, fastest first."""
    return tuple(row.name for row in BACKENDS if not row.prebuilt and row.installed())


def usable(graphs: Sequence[GraphFile], cache_dir: Path | None) -> tuple[str, ...]:
    """Names of the installed backends that can run these graphs here, fastest first; of prebuilt engines only those
    that can load one of each."""
    able = [row for row in BACKENDS if row.installed() and row.cannot_run(graphs) is None]
    return tuple(row.name for row in able if not row.prebuilt or _ready(row, graphs, cache_dir))


def needed(
    names: Sequence[str] | None, *, device: str | None = None, default: str | None = None
) -> tuple[Requirement, ...]:
    """What installs the backends of these names. `auto`, `all` and None take what there is; where there is nothing,
    `default` is needed, or the fastest that runs any graph. Of an unknown name `choose` complains."""
    if names is None or {*names} & {"auto", "all"}:
        able = [row for row in BACKENDS if row.offers(device=device, compute=None)]
        names = [default] if default is not None else [row.name for row in able if not row.prebuilt][:1]
        names = [] if any(row.installed() for row in able) else names
    return tuple(row.requirement(device) for row in BACKENDS if row.name in names)


def choose(
    name: str = "auto",
    *,
    device: str | None = None,
    compute: str | None = None,
    graphs: Sequence[GraphFile] = (),
    cache_dir: Path | None = None,
) -> Backend:
    """The backend called `name`, or for `auto` the fastest one that is installed and offers what is asked.

    Args:
        device, compute: None is the backend's own default.
        graphs: what is to run. `auto` passes over backends that have no kernels for them, and takes one of prebuilt
            engines only if it can load one of each here.
        cache_dir: where such engines may lie, beside the bundle.

    Raises:
        RequestError: an unknown name, or a backend that does not offer this device or arithmetic, or cannot run these
            graphs.
        EnvironmentLacks: a backend that is not installed, or in a version that is too old.
    """
    if name == "auto":
        return _fastest(device, compute, graphs, cache_dir)
    row = backend_row(name)
    for kind, asked, offered in (("device", device, row.devices), ("compute", compute, row.computes)):
        if asked is not None and asked not in offered:
            raise RequestError(
                f"{kind} '{asked}' is not offered by {name}",
                expected=" or ".join(offered),
                hint=_elsewhere(device, compute),
            )
    if (unable := row.cannot_run(graphs, device=device)) is not None:
        able = [
            r.name
            for r in BACKENDS
            if r.offers(device=device, compute=compute) and not r.cannot_run(graphs, device=device)
        ]
        raise RequestError(
            f"{name} cannot run {unable} on {_PLACES[row.device(device)]}",
            expected=f"one of the backends {', '.join(able)}" if able else None,
            hint="use one of them, or make an fp16 bundle of the float32 one: latentrt convert BUNDLE -o OTHER "
            "--precision fp16",
        )
    if not row.installed():
        raise EnvironmentLacks(f"the backend {name} is not installed", hint=_install(row, device))
    check_versions(*row.extras, what=f"the backend {name}")
    return row


def open_engine(
    graph: GraphFile,
    *,
    backend: str = "auto",
    device: str | None = None,
    compute: str | None = None,
    threads: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
    notify: Callable[[Preparation], None] | None = None,
) -> Engine:
    """An engine for `graph`, which loads it on first use. See `EngineOptions` for the arguments.

    Raises:
        RequestError: an unknown backend or an option that it does not offer.
        EnvironmentLacks: a backend that is not installed, or a device, arithmetic or prebuilt engine that the machine
            lacks.
        BackendError: an installed backend that cannot be imported.
    """
    (engine,) = open_engines(
        [graph],
        backend=backend,
        device=device,
        compute=compute,
        threads=threads,
        cache_dir=cache_dir,
        notify=notify,
    ).values()
    return engine


def open_engines(
    graphs: Sequence[GraphFile],
    *,
    backend: str = "auto",
    device: str | None = None,
    compute: str | None = None,
    threads: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
    notify: Callable[[Preparation], None] | None = None,
    residency: Residency | None = None,
    beside: Engine | None = None,
    profile: bool = False,
) -> dict[str, Engine]:
    """An engine for each graph, by component; on a device they share memory, also with the engine `beside` which they
    are to run. `residency` says which are loaded at a time; with `profile` they note what each node takes. Otherwise as
    `open_engine`."""
    if threads is not None and threads < 1:
        raise RequestError(f"threads is {threads}", expected="at least 1, or None for the backend's choice")
    folder = Path(cache_dir) if cache_dir is not None else None
    row = choose(backend, device=device, compute=compute, graphs=graphs, cache_dir=folder)
    if profile:
        _check_profiles(row, device)
    options = EngineOptions(
        device=device,
        compute=compute,
        threads=threads,
        cache_dir=folder,
        notify=notify,
        residency=residency,
        profile=profile,
    )
    for slow in row.slow_on(graphs, device=device):
        log.warning("%s", slow)
    module = _import(row)
    if hasattr(module, "open_engines"):
        opened: dict[str, Engine] = module.open_engines(graphs, options, row.name, beside)
        return opened
    return {graph.component: module.open_engine(graph, options) for graph in graphs}


def _check_profiles(row: Backend, device: str | None) -> None:
    """Raises RequestError unless the backend says what single nodes take."""
    place = row.device(device)
    if place not in row.profiles:
        able = [f"{each.name} on {_PLACES[where]}" for each in BACKENDS for where in each.profiles]
        raise RequestError(
            f"{row.name} says nothing of what single nodes take on {_PLACES[place]}", expected=" or ".join(able)
        )


def _in_formats(graphs: Sequence[GraphFile], formats: Collection[str]) -> str | None:
    """`step, decoder in bf16`: the graphs that are in one of these; None: no graph."""
    found = [graph for graph in graphs if graph.precision in formats]
    if not found:
        return None
    names = dict.fromkeys(str(graph.precision) for graph in found)
    return f"{', '.join(graph.component for graph in found)} in {' and '.join(names)}"


def _import(row: Backend) -> Any:
    try:
        return importlib.import_module(row.module)
    except ImportError as error:
        raise BackendError(
            f"the backend {row.name} is installed but cannot be imported: {error}", hint=_install(row)
        ) from error


def _fastest(device: str | None, compute: str | None, graphs: Sequence[GraphFile], cache_dir: Path | None) -> Backend:
    able = [row for row in BACKENDS if row.offers(device=device, compute=compute)]
    asked = ", ".join(f"{k} '{v}'" for k, v in (("device", device), ("compute", compute)) if v is not None)
    if not able:
        raise RequestError(f"no backend offers {asked}", expected=_offers())
    unable = {row.name: found for row in able if (found := row.cannot_run(graphs, device=device)) is not None}
    old: list[Backend] = []
    for row in able:
        if row.installed() and row.name in unable:
            log.info("backend auto passes over %s: it cannot run %s", row.name, unable[row.name])
        elif row.installed() and (problem := too_old(*row.extras)) is not None:
            old.append(row)
            floor, found_version = problem
            log.warning(
                "backend auto passes over %s: %s %s is too old, %s is needed",
                row.name,
                floor.name,
                found_version,
                floor.version,
            )
        elif row.installed() and (not row.prebuilt or _ready(row, graphs, cache_dir)):
            log.info("backend auto: %s", row.name)
            return row
    for row in old:
        check_versions(*row.extras, what=f"the backend {row.name}")
    wants = [f"offers {asked}"] * bool(asked) + [f"runs {found}" for found in dict.fromkeys(unable.values())]
    found = "no backend is installed" + (f" that {' and '.join(wants)}" if wants else "")
    others = [row for row in able if row.name not in unable]
    raise EnvironmentLacks(found, hint=_install(next((row for row in others if not row.prebuilt), able[0]), device))


def _ready(row: Backend, graphs: Sequence[GraphFile], cache_dir: Path | None) -> bool:
    """Whether engines of all graphs are built and can be loaded on this machine."""
    obstacle: str | None = _import(row).obstacle(graphs, cache_dir, row.name) if graphs else "no graphs to look for"
    if obstacle is not None:
        log.info("backend auto passes over %s: %s", row.name, obstacle)
    return obstacle is None


def backend_row(name: str) -> Backend:
    """The row of that name; a RequestError where there is none."""
    rows = {row.name: row for row in BACKENDS}
    if name in rows:
        return rows[name]
    near = difflib.get_close_matches(name.lower(), ["auto", *rows], n=1)
    raise RequestError(
        f"unknown backend '{name}'",
        expected=f"auto, {', '.join(rows)}",
        hint=f"did you mean '{near[0]}'?" if near else None,
    )


def _elsewhere(device: str | None, compute: str | None) -> str | None:
    able = [f"backend='{r.name}'" for r in BACKENDS if r.offers(device=device, compute=compute)]
    return f"use {' or '.join(able)}" if able else None


def _offers() -> str:
    return "; ".join(f"{r.name}: {'/'.join(r.devices)} in {'/'.join(r.computes)}" for r in BACKENDS)


def _install(row: Backend, device: str | None = None) -> str:
    return f"install it with: {install_command(row.requirement(device).extra)}"
