"""Opening a bundle for use: check it, choose a backend, make an engine of each component."""

import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path

from latentrt.backends import Backend, choose, open_engines
from latentrt.backends.cache import LIMIT_BYTES, trim
from latentrt.backends.host_memory import Call, MemoryLimit
from latentrt.bundle import MANIFEST, Bundle, sha256_file
from latentrt.engine import EngineSet, Preparation
from latentrt.errors import RequestError
from latentrt.files.atomic import check_once
from latentrt.graph import GraphFile
from latentrt.images.tiles import Tile
from latentrt.lora import LoraLike, as_loras, merge
from latentrt.names import BackendName, ComputeName, DeviceName
from latentrt.pipeline import Pipeline
from latentrt.values import FilePath, Flag, Function, Kind, Named, Optional, Text, Whole, check

log = logging.getLogger(__name__)

_ARGUMENTS: Mapping[str, Kind] = {
    "path": FilePath(),
    "backend": Text(),
    "device": Optional(Text()),
    "compute": Optional(Text()),
    "threads": Optional(Whole(1, 1024)),
    "cache_dir": Optional(FilePath()),
    "notify": Optional(Function()),
    "embeddings": Optional(Named(FilePath())),
    "follow_links": Optional(Flag()),
    "memory": Optional(Whole(1)),
}

COMPILED = "compiled"


def load(
    path: str | PathLike[str],
    *,
    backend: BackendName = "auto",
    device: DeviceName | None = None,
    compute: ComputeName | None = None,
    threads: int | None = None,
    cache_dir: str | PathLike[str] | None = None,
    notify: Callable[[Preparation], None] | None = None,
    lora: Sequence[LoraLike] = (),
    embeddings: Mapping[str, str | PathLike[str]] | None = None,
    tile: Tile = "auto",
    follow_links: bool | None = None,
    memory: int | None = None,
) -> Pipeline:
    """Opens a bundle. Engines load and compile when they are first needed; `Pipeline.prepare` does it ahead.

    Args:
        path: the bundle's directory.
        backend: `openvino`, `onnxruntime`, `tensorrt-rtx` or `tensorrt` (of engines that `latentrt build` made), or
            `auto`, the fastest that is installed and offers what is asked; of the latter two only with engines
            that this machine can load.
        device: `cpu` or `cuda`; None is the backend's choice.
        compute: `fp32` or `bf16` arithmetic for a float32 bundle; None is `fp32`.
        threads: threads within one engine call; None is the backend's choice.
        cache_dir: where compiled graphs are kept, and prebuilt engines are looked for as well; None is the user's cache
            for the former (`compiled_folder`), the bundle for the latter.
        notify: called when an engine begins and ends to load or compile.
        lora: paths of LoRA files, (path, scale) or `Lora`s, all added to the weights; `Pipeline.set_lora` changes them.
        embeddings: files of textual inversion by the name that stands in prompts, as `<name>`; `Pipeline.add_embedding`
            adds more.
        tile: side in pixels of the overlapping parts that pictures are decoded and encoded in. `auto` takes parts of
            512 px for pictures of more than 1024x1024 pixels, None never.
        follow_links: whether links in the bundle may lead to files elsewhere. None: only if the environment variable
            LATENTRT_FOLLOW_LINKS is 1.
        memory: bytes of the machine's memory that a run may take, by an estimate (docs/memory.md). Where they do not
            hold all graphs at a time, text encoders, step and VAE are loaded by turns. None: all stay loaded.

    Raises:
        BundleError: missing, incomplete, damaged or malformed.
        RequestError: an unknown backend, or one that does not offer the device or the arithmetic; a LoRA or
            an embedding that cannot be read or does not belong to the bundle; memory that lasts for no picture, or with
            a GPU.
        EnvironmentLacks: a backend, a device or a prebuilt engine that this machine does not have.
    """
    check(_ARGUMENTS, path=path, backend=backend, device=device, compute=compute, threads=threads)
    check(_ARGUMENTS, cache_dir=cache_dir, notify=notify, embeddings=embeddings, follow_links=follow_links)
    check(_ARGUMENTS, memory=memory)
    loras = as_loras(lora)
    bundle = Bundle.open(path, follow_links=follow_links)
    merged = merge(bundle, loras)
    every = merged.over(bundle)
    graphs = [every[graph.component] for graph in loop_graphs(bundle)]
    cache = cache_folder(bundle, cache_dir)
    chosen = choose(backend, device=device, compute=compute, graphs=graphs, cache_dir=cache)
    limit = None if memory is None else _memory_limit(bundle, memory, chosen, device, compute)
    verify_once(bundle, cache)
    place = cache if chosen.prebuilt or device == "cuda" else compiled_folder(bundle, cache_dir)
    open_all = partial(open_engines, backend=chosen.name, device=device, compute=compute, threads=threads)
    open_all = partial(open_all, cache_dir=place, notify=notify, residency=None if limit is None else limit.residency)
    opened = open_all(graphs)
    engines = EngineSet(opened, graphs=every, opens=partial(open_all, beside=opened["step"]))
    pipe = Pipeline(bundle, engines, merged=merged, tile=tile, memory=limit)
    for name, file in (embeddings if embeddings is not None else {}).items():
        pipe.add_embedding(name, file)
    return pipe


def _memory_limit(bundle: Bundle, memory: int, chosen: Backend, device: str | None, compute: str | None) -> MemoryLimit:
    """The limit of a pipeline's memory, which lasts for a picture of the smallest size at least.

    Raises:
        RequestError: it does not, or there is a GPU.
    """
    if chosen.device(device) != "cpu":
        raise RequestError(
            f"memory with {chosen.name} on {chosen.device(device)}",
            expected="it with a backend on the CPU",
            hint="leave it out: engines on a GPU make room for each other by themselves",
        )
    arithmetic = compute if compute is not None else chosen.computes[0]
    limit = MemoryLimit(bundle, memory, backend=chosen.name, compute=arithmetic)
    low = bundle.family.size_range_px[0]
    limit.check([Call(size=(low, low), branches=1)])
    return limit


def loop_graphs(bundle: Bundle) -> list[GraphFile]:
    """What every run needs: text encoders, step and decoder."""
    return [bundle.component(name).graph for name in (*bundle.text_encoders, "step", "decoder")]


def verify_once(bundle: Bundle, cache: Path | None) -> None:
    """Checks every file's sha256, unless sizes and times of change are those of an earlier check."""
    stamp = {
        name: [(status := (bundle.root / name).stat()).st_size, status.st_mtime_ns, entry["sha256"]]
        for name, entry in bundle.manifest["files"].items()
    }
    check_once(
        bundle.verify, stamp=stamp, note=None if cache is None else cache / f"verified-{_slug(bundle.root)}.json"
    )


def cache_folder(bundle: Bundle, asked: str | PathLike[str] | None) -> Path | None:
    """A writable folder for derived files, or None where there is none."""
    return _writable([bundle.root / "engines", user_cache()] if asked is None else [Path(asked)])


def compiled_folder(bundle: Bundle, asked: str | PathLike[str] | None = None) -> Path | None:
    """A writable folder for graphs that a backend compiles on first use, or None where there is none.

    By default it is no part of the bundle, which would be copied along with it, but lies in the user's cache, named by
    the digest of the manifest: copies of a bundle share it. All bundles together keep `LIMIT_BYTES` there.
    """
    if asked is not None:
        return _writable([Path(asked)])
    place = user_cache() / COMPILED
    trim(place, limit_bytes=LIMIT_BYTES)
    return _writable([place / f"{bundle.name[:40]}-{sha256_file(bundle.root / MANIFEST)[:16]}"])


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/latentrt`, or `~/.cache/latentrt`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentrt"


def _writable(folders: Sequence[Path]) -> Path | None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError as error:
            log.info("no cache in %s: %s", folder, error)
    log.warning("no writable cache folder; compiled graphs are not kept")
    return None


def _slug(root: Path) -> str:
    return str(root.resolve()).strip("/\\").replace(os.sep, "-").replace(":", "")[-100:]
