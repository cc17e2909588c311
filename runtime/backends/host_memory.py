"""Memory of the machine that is not needed any more."""

import ctypes
import mmap
import sys
from collections.abc import Collection
from pathlib import Path


def give_back() -> None:
    """Returns freed memory to the system: glibc keeps blocks of up to 32 MB, as most weights are."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def release_mapped(files: Collection[Path]) -> None:
    """Lets go of what of these files is mapped for reading, on Linux: it is read again where it is needed again."""
    if sys.platform != "linux":
        return
    names = {str(path.resolve()) for path in files}
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, _, _, _, *name = line.split(maxsplit=5)
        if name and name[0] in names and "w" not in access:
            begin, end = (int(address, 16) for address in addresses.split("-"))
            ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)
