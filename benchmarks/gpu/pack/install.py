"""Puts together, there, what was packed here: joins pieces, unpacks them, and says where all of it lies.

    sh FOLDER/1/setup.sh TARGET PART ... && . TARGET/env.sh

It stands alone, on Python's own library, since it is what installs the rest. A part counts once it is whole: it is
unpacked beside its place and renamed. A piece that is missing or damaged is named, with what brings it.
"""

import hashlib
import io
import json
import lzma
import os
import shlex
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

INDEX = "pack.json"
ENVIRONMENT = "env.sh"
LACKS = 3  # exit code

Row = dict[str, Any]


class Lack(Exception):  # noqa: N818 - reads as a sentence
    """Something is missing or damaged; the text says what, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Installs the named parts; without names it only looks at the pieces beside it."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    here = Path(__file__).resolve().parent
    try:
        if not words:
            raise Lack("no folder to install to was given; expected: setup.sh TARGET PART ...")
        index = read_index(here)
        if len(words) == 1:
            check_pieces(index, here.parent, here.name)
            return 0
        for name in words[1:]:
            install(index, name, here.parent, Path(words[0]).resolve())
    except Lack as lack:
        print(f"setup: error: {lack}", file=sys.stderr)
        return LACKS
    return 0


def read_index(here: Path) -> Row:
    """What was packed, for this Python."""
    found: Row = json.loads((here / INDEX).read_text(encoding="utf-8"))
    running = ".".join(map(str, sys.version_info[:2]))
    if found["python"] not in (running, None):
        raise Lack(f"this is Python {running}, and it was packed for {found['python']}; pack with --python {running}")
    return found


def install(index: Row, name: str, folder: Path, target: Path) -> None:
    """Makes `target/name` of its pieces, and writes anew where Python and the loader look."""
    if name not in index["parts"]:
        raise Lack(f"there is no part {name}; expected one of {', '.join(index['parts'])}")
    part, place = index["parts"][name], target / name
    mark = place / f".{name}.sha256"
    if not (mark.is_file() and mark.read_text() == part["sha256"]):
        staging = target / f".{name}.part"
        for old in (staging, place):
            shutil.rmtree(old, ignore_errors=True)
        staging.mkdir(parents=True)
        unpack(name, part, folder, staging)
        (staging / mark.name).write_text(part["sha256"])
        staging.rename(place)
    write_environment(index, target)
    print(f"{name}: {place}")


def unpack(name: str, part: Row, folder: Path, into: Path) -> None:
    """Joins the pieces, in memory, and takes them apart."""
    data = b"".join(read_piece(row, folder) for row in part["pieces"])
    if hashlib.sha256(data).hexdigest() != part["sha256"]:
        raise Lack(f"the pieces of {name} do not make the whole; pack anew")
    with tarfile.open(fileobj=io.BytesIO(lzma.decompress(data))) as archive:
        archive.extractall(into, filter="data")


def read_piece(row: Row, folder: Path) -> bytes:
    """A piece, as it was packed."""
    path = folder / str(row["folder"]) / str(row["name"])
    brings = f"it comes with {folder.name}/{row['folder']}: bring that again"
    if not path.is_file():
        raise Lack(f"{path} is missing; {brings}")
    data: bytes = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise Lack(f"{path} is damaged: {len(data)} bytes, expected {row['bytes']} of another sum; {brings}")
    return data


def check_pieces(index: Row, folder: Path, number: str) -> None:
    """Looks at what one transfer brought."""
    rows = [row for part in index["parts"].values() for row in part["pieces"] if row["folder"] == number]
    for row in rows:
        read_piece(row, folder)
    print(f"{folder.name}/{number}: {len(rows)} pieces, as they were packed")


def write_environment(index: Row, target: Path) -> None:
    """`env.sh`, for the parts that are there."""
    places = [target / name for name in index["parts"] if (target / name).is_dir()]
    lines = [
        _exported("PYTHONPATH", places),
        _exported("LD_LIBRARY_PATH", list(library_folders([*places, *map(Path, sys.path)]))),
        f"export LATENTRT_COMMIT={shlex.quote(json.dumps(index['git']))}",
    ]
    beside = target / f".{ENVIRONMENT}.part"
    beside.write_text("\n".join(lines) + "\n")
    beside.replace(target / ENVIRONMENT)


def library_folders(places: Sequence[Path]) -> Iterator[Path]:
    """Those of NVIDIA's wheels: `nvidia/cu13/lib`, `nvidia/cudnn/lib` and the like."""
    for place in dict.fromkeys(each.resolve() for each in places):
        yield from sorted(each for each in place.glob("nvidia/*/lib") if each.is_dir())


def _exported(name: str, places: Sequence[Path]) -> str:
    """In front of what is there already; an empty entry would be the folder that one is in."""
    own = shlex.quote(os.pathsep.join(map(str, places)))
    return f'export {name}={own}"${{{name}:+:${name}}}"' if places else f': "{name} stays"'


if __name__ == "__main__":
    sys.exit(main())
