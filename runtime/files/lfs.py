"""Git LFS pointers: the few lines of text that stand for a large file where only the repository was cloned."""

from pathlib import Path

_BEGINS = b"version https://git-lfs.github.com/spec/"
POINTER = "a Git LFS pointer, not the file itself"
HINT = "run git lfs pull in that folder, or download the file"


def is_pointer(data: bytes) -> bool:
    """Whether these first bytes of a file are those of a pointer."""
    return data.startswith(_BEGINS)


def is_pointer_file(path: Path) -> bool:
    """Whether a file is a pointer; False where there is none."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return is_pointer(file.read(len(_BEGINS)))
