"""Folders as archives in pieces: each small enough for a transfer, with its sum."""

import hashlib
import lzma
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.pack.fatbin import Slimmed, slim
from latentrt.errors import BundleError, EnvironmentLacks

PROVIDER = Path("onnxruntime/capi/libonnxruntime_providers_cuda.so")
# Of onnxruntime-gpu, what this runtime never loads: the library for C programs, another provider, tools for models.
UNUSED = (
    "onnxruntime/capi/libonnxruntime.so.*",
    "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
    "onnxruntime/transformers",
    "onnxruntime/tools",
)
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """A file of a part: its name, bytes and sha256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is unpacked as a whole: its name, the sha256 of its archive, and the pieces of that."""

    name: str
    sha256: str
    pieces: tuple[Piece, ...]

    @property
    def bytes(self) -> int:
        return sum(piece.bytes for piece in self.pieces)


def make_part(name: str, tree: Path, into: Path, *, piece_bytes: int, preset: int = 9) -> Part:
    """Packs a folder with xz and cuts the archive. The same files give the same bytes."""
    archive = into / f"{name}.tar.xz"
    with lzma.open(archive, "wb", preset=preset) as compressed, tarfile.open(fileobj=compressed, mode="w") as tar:
        for path in sorted(tree.rglob("*")):
            if path.is_file():
                tar.add(path, path.relative_to(tree).as_posix(), filter=_plain)
    sha256 = hashlib.sha256()
    pieces = []
    with archive.open("rb") as file:
        for number, data in enumerate(iter(lambda: file.read(piece_bytes), b""), start=1):
            sha256.update(data)
            piece = Piece(f"{archive.name}.{number:03}", len(data), hashlib.sha256(data).hexdigest())
            (into / piece.name).write_bytes(data)
            pieces.append(piece)
    archive.unlink()
    return Part(name, sha256.hexdigest(), tuple(pieces))


def trim_onnxruntime(tree: Path, architecture: int | None, *, everything: bool = False) -> Slimmed | None:
    """Takes out of an unpacked onnxruntime-gpu what is not needed, and GPU code as `slim` does; None keeps the
    provider whole.

    Raises:
        EnvironmentLacks: it has no CUDA provider.
    """
    if not (tree / PROVIDER).is_file():
        raise EnvironmentLacks(f"{tree} has no {PROVIDER}", expected="an onnxruntime-gpu")
    for pattern in UNUSED:
        for path in tree.glob(pattern):
            for file in _files(path):
                file.unlink()
    return None if architecture is None else slim(tree / PROVIDER, architecture, everything=everything)


def bundle_tree(bundles: Sequence[Path], into: Path) -> None:
    """Bundles without their weights, each in a folder of its name.

    Raises:
        BundleError: one that is none.
    """
    from benchmarks.gpu.carry import pack

    into.mkdir(parents=True)
    for bundle in bundles:
        if not (bundle / "bundle.json").is_file():
            raise BundleError(
                f"{bundle} is no bundle",
                expected="what the check will need there",
                hint="make it: python -m benchmarks.gpu --only prepare --work DIR",
            )
        pack(bundle, into / bundle.name)


def _files(path: Path) -> Iterator[Path]:
    return iter([path]) if path.is_file() else (each for each in path.rglob("*") if each.is_file())


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nothing of this machine: no owner, no time."""
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info
