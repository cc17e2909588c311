"""Files that appear whole or not at all."""

import errno
import secrets
from pathlib import Path

from latentrt.errors import EnvironmentLacks

_HINTS = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some of your disk quota",
    errno.ENOENT: "create the folder first",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
}


def write_whole(path: Path, data: bytes) -> None:
    """Writes beside and renames; a file that is there already is replaced.

    Raises:
        EnvironmentLacks: disk full, no such folder, no permission.
    """
    beside = path.parent / f".latentrt-{secrets.token_hex(4)}.tmp"
    try:
        try:
            beside.write_bytes(data)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise EnvironmentLacks(f"cannot write {path} ({error.strerror})", hint=_HINTS.get(error.errno or 0)) from error


def remove_parts(folder: Path) -> None:
    """Removes what a killed process left of files that it was writing to this folder."""
    for part in folder.glob(".latentrt-*.tmp"):
        part.unlink(missing_ok=True)
