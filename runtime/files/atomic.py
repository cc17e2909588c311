"""Files that appear whole or not at all, and what the file system refuses as an error of ours."""

import errno
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from latentrt.errors import EnvironmentLacks, LatentRTError

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHOOSE = "choose a folder that you may write to"
HINTS = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some of your disk quota",
    errno.EFBIG: "raise the limit on the size of a file",
    errno.EACCES: _CHOOSE,
    errno.EPERM: _CHOOSE,
    errno.EROFS: _CHOOSE,
    errno.EIO: "check the disk",
    errno.ENOTDIR: "choose another path: a part of it is a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "choose another path: its links lead in a circle",
}
"""What to do about an error of the file system, by its number; others than these are no condition of the machine."""

_NUMPY_WRITES = re.compile(r"\bwrit(ing|ten)\b")  # it says what of an array could not be written, without a number
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how libraries in Rust (safetensors, tokenizers) say the number


def write_whole(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Writes beside and renames; a file that is there already is replaced. `durable` is as in `written_beside`.

    Raises:
        EnvironmentLacks: disk full, no such folder, no permission.
    """
    try:
        with written_beside(path, durable=durable) as beside:
            beside.write_bytes(data)
    except OSError as error:
        hints = {**HINTS, errno.ENOENT: "create the folder first"}
        raise EnvironmentLacks(f"cannot write {path} ({error.strerror})", hint=hints.get(error.errno or 0)) from error


@contextmanager
def written_beside(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when all of it is written; `durable`: when the disk holds
    all of it."""
    beside = path.parent / f".latentrt-{secrets.token_hex(4)}.tmp"
    try:
        yield beside
        if durable:
            with beside.open("rb") as file:
                os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def check_once(check: Callable[[], None], *, stamp: Any, note: Path | None) -> None:
    """Calls `check`, unless the note says that it passed for the same stamp, a JSON value; without a note, always."""
    if note is not None:
        try:
            if json.loads(note.read_text(encoding="utf-8")) == stamp:
                return
        except (OSError, ValueError):
            log.debug("%s is missing or unreadable, checking", note)
    check()
    if note is not None:
        write_if_possible(note, json.dumps(stamp).encode())


def write_if_possible(path: Path, data: bytes) -> None:
    """As `write_whole`, for what only saves time: where it cannot be written, the log says so."""
    try:
        write_whole(path, data)
    except EnvironmentLacks as error:
        log.info("%s", error)


def remove_parts(folder: Path) -> None:
    """Removes what a killed process left of files that it was writing to this folder."""
    for part in folder.glob(".latentrt-*.tmp"):
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


@contextmanager
def storage_errors(place: Path, *, room: str = "room for what is written", again: str = "make room") -> Iterator[None]:
    """Turns what the file system refuses into one of our errors.

    Args:
        place: what is being written, which need not exist yet.
        room: what a full disk should have had.
        again: what to do then.

    Raises:
        EnvironmentLacks: the disk is full, or the place cannot be written to.
    """
    try:
        yield
    except OSError as error:
        raise _storage_error(error, place, room, again) from error
    except Exception as error:
        number = _OS_ERROR.search(str(error))
        if number is None or isinstance(error, LatentRTError):
            raise
        code = int(number[1])
        raise _storage_error(OSError(code, os.strerror(code)), place, room, again) from error


def _storage_error(error: OSError, place: Path, room: str, again: str) -> EnvironmentLacks:
    if error.errno in FULL or (error.errno is None and _NUMPY_WRITES.search(str(error)) is not None):
        there = next((folder for folder in (place, *place.parents) if folder.is_dir()), Path())
        free = shutil.disk_usage(there).free
        what = f"the disk of {there} is full" if error.errno != errno.EFBIG else f"a file in {there} is too large"
        return EnvironmentLacks(f"{what} ({free / 1e6:.0f} MB free)", expected=room, hint=again)
    hint = HINTS.get(error.errno or 0, "check the path and its permissions")
    what = str(error) if error.strerror is None else error.strerror
    where = f": {error.filename}" if error.filename is not None else ""
    return EnvironmentLacks(f"{place} cannot be written ({what}{where})", hint=hint)
