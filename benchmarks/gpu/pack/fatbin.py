"""The GPU code in a library, for one architecture alone.

nvcc puts the code of a source file into a container, with an entry for each architecture, and all containers into the
ELF section `.nv_fatbin`. The driver takes the entry that fits its GPU best. `slim` keeps what it could take for one
architecture and moves it to the front of its container, as if nothing else had been compiled; what is left is zeros,
which a compressor makes nothing of. The container itself stays where the code that registers it expects it.

A source file that was compiled for one architecture alone holds what this one does in a way of its own, beside what
serves all of them: in onnxruntime these are products of grouped experts and of float8, more than half of the code for
sm_90. Unless all is asked for, the smallest code for another architecture takes its place, so that a launch of it is
refused as that of any code which a GPU lacks ("no kernel image is available").
"""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import Any

from latentrt.errors import EnvironmentLacks
from latentrt.files.atomic import write_whole

SECTION = ".nv_fatbin"
MARKER = ".slimmed.json"  # in the place of `.so`, beside the library
PTX, CUBIN = 1, 2

_MAGIC = 0xBA55ED50
_CONTAINER = struct.Struct("<IHHQ")  # magic, version, bytes of the header, bytes after it
_ENTRY = struct.Struct("<HHIQ")  # kind, version, bytes of the header, bytes after it
_ARCHITECTURE = 28  # in the header of an entry: 32 bits, 90 for sm_90
_ALIGNMENT = 8
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")  # ELF-64: name, type, flags, address, offset, size, ...


@dataclass(frozen=True, slots=True)
class Entry:
    """Code for one architecture: where it begins, with its header, and how long it is."""

    begin: int
    size: int
    _: KW_ONLY
    kind: int
    architecture: int


@dataclass(frozen=True, slots=True)
class Container:
    """The code of one source file: where it begins, bytes of its header, and its entries."""

    begin: int
    header: int
    entries: tuple[Entry, ...]

    @property
    def code_bytes(self) -> int:
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slimmed:
    """What became of a library.

    Args:
        architecture: the one that it still has code for.
        kept_bytes, removed_bytes: of GPU code.
        containers: how many there are.
        without: of these, how many had nothing for the architecture, and were left as they were.
        refused: of these, how many had code for it alone, which was taken out.
    """

    architecture: int
    kept_bytes: int
    removed_bytes: int
    containers: int
    without: int
    refused: int


def slim(library: Path, architecture: int, *, everything: bool = False) -> Slimmed:
    """Takes out of a library, in its place, what GPUs of one architecture do not run, and writes a note of it beside
    the library.

    Args:
        library: an ELF file of 64 bits.
        architecture: 90 for sm_90.
        everything: keep what was compiled for this architecture alone, too.

    Raises:
        EnvironmentLacks: it is no such file, has no GPU code, or none for this architecture.
    """
    data = bytearray(library.read_bytes())
    found = list(containers(data, *section(data, library)))
    stand_in = _smallest_other(data, found, architecture)
    kept = without = refused = 0
    for container in found:
        chosen = fitting(container.entries, architecture)
        if not chosen:
            without += 1
            kept += container.code_bytes
        elif not everything and _alone(container, architecture) and 0 < len(stand_in) <= container.code_bytes:
            refused += 1
            _fill(data, container, stand_in)
        else:
            kept += sum(entry.size for entry in chosen)
            _fill(data, container, b"".join(_bytes(data, entry) for entry in chosen))
    if without == len(found):
        raise EnvironmentLacks(
            f"{library.name} has no GPU code for sm_{architecture}",
            expected=f"one of {', '.join(f'sm_{each}' for each in architectures(found))}",
        )
    done = Slimmed(
        architecture=architecture,
        kept_bytes=kept,
        removed_bytes=sum(container.code_bytes for container in found) - kept,
        containers=len(found),
        without=without,
        refused=refused,
    )
    write_whole(library, bytes(data))
    library.chmod(0o755)
    write_whole(marker(library), json.dumps(asdict(done), indent=1).encode())
    return done


def marker(library: Path) -> Path:
    """Where the note lies that says that a library was slimmed."""
    return library.with_suffix(MARKER)


def slimmed(library: Path) -> dict[str, Any] | None:
    """What the note beside a library says; None: it is whole."""
    path = marker(library)
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def section(data: bytes | bytearray, path: Path) -> tuple[int, int]:
    """Begin and end of the section with the GPU code.

    Raises:
        EnvironmentLacks: no ELF file of 64 bits, or no such section.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise EnvironmentLacks(f"{path} is no library of this system", expected="an ELF file of 64 bits")
    (table,) = struct.unpack_from("<Q", data, 40)
    _, count, names = struct.unpack_from("<HHH", data, 58)
    rows = [_SECTION_HEADER.unpack_from(data, table + index * _SECTION_HEADER.size) for index in range(count)]
    texts = rows[names][4]
    for name, _, _, _, offset, size, *_ in rows:
        at = texts + name
        if data[at : data.index(b"\0", at)] == SECTION.encode():
            return offset, offset + size
    raise EnvironmentLacks(f"{path} has no section {SECTION}", expected="a library with GPU code")


def containers(data: bytes | bytearray, begin: int, end: int) -> Iterator[Container]:
    """Those between two places; there is room between them."""
    at = begin
    while at + _CONTAINER.size <= end:
        magic, _, header, size = _CONTAINER.unpack_from(data, at)
        if magic != _MAGIC:
            at += _ALIGNMENT
            continue
        yield Container(at, header, tuple(_entries(data, at + header, at + header + size)))
        at += header + size


def fitting(entries: Sequence[Entry], architecture: int) -> list[Entry]:
    """What a driver may take for a GPU: machine code for its own architecture, else for an earlier one of the same
    major version, else the latest text (PTX) that it can compile."""
    machine_code = [
        each
        for each in entries
        if each.kind == CUBIN and each.architecture // 10 == architecture // 10 and each.architecture <= architecture
    ]
    text = [each for each in entries if each.kind == PTX and each.architecture <= architecture]
    candidates = machine_code or text
    best = max((each.architecture for each in candidates), default=0)
    return [each for each in candidates if each.architecture == best]


def architectures(found: Sequence[Container]) -> list[int]:
    """Of all machine code."""
    return sorted({entry.architecture for each in found for entry in each.entries if entry.kind == CUBIN})


def _entries(data: bytes | bytearray, begin: int, end: int) -> Iterator[Entry]:
    at = begin
    while at < end:
        kind, _, header, size = _ENTRY.unpack_from(data, at)
        (architecture,) = struct.unpack_from("<I", data, at + _ARCHITECTURE)
        yield Entry(at, header + size, kind=kind, architecture=architecture)
        at += header + size


def _alone(container: Container, architecture: int) -> bool:
    return {entry.architecture for entry in container.entries} == {architecture}


def _smallest_other(data: bytearray, found: Sequence[Container], architecture: int) -> bytes:
    """Code that no GPU of this architecture takes; none where there is no other."""
    others = [
        entry
        for container in found
        for entry in container.entries
        if entry.kind == CUBIN and entry.architecture // 10 != architecture // 10
    ]
    return _bytes(data, min(others, key=lambda entry: entry.size)) if others else b""


def _bytes(data: bytearray, entry: Entry) -> bytes:
    return bytes(data[entry.begin : entry.begin + entry.size])


def _fill(data: bytearray, container: Container, code: bytes) -> None:
    """Makes `code`, which is no longer than what is there, all that a container has."""
    magic, version, header, _ = _CONTAINER.unpack_from(data, container.begin)
    _CONTAINER.pack_into(data, container.begin, magic, version, header, len(code))
    begin = container.begin + header
    data[begin : begin + container.code_bytes] = code + bytes(container.code_bytes - len(code))
