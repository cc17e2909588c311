"""CUDA's libraries from NVIDIA's wheels, for a process that nobody else has loaded them into."""

from __future__ import annotations

import ctypes
import logging
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from latentrt.backends.cuda.cudart import Cudart
from latentrt.errors import EnvironmentLacks

log = logging.getLogger(__name__)

# In the order in which they need each other; with the wheel of each, which until CUDA 12 ended in `-cu12`.
WHEELS = {
    "libcudart": "nvidia-cuda-runtime",
    "libnvrtc": "nvidia-cuda-nvrtc",
    "libcublasLt": "nvidia-cublas",
    "libcublas": "nvidia-cublas",
    "libcurand": "nvidia-curand",
    "libcufft": "nvidia-cufft",
    "libcudnn": "nvidia-cudnn",
}
_OPENED_BY_NAME = "libcudnn.so.9"  # so that no table lists it
_DRIVER = "libcuda.so.1"
_SONAME = re.compile(r"(lib\w+)\.so\.(\d+)")
Load = Callable[[str], object]


def load_cuda_libraries(folders: Iterable[Path] | None = None, *, load: Load | None = None) -> list[Path]:
    """Loads what the wheels have, so that libraries which name them find them; what cannot be loaded is logged.

    Wheels may lie in several folders of packages, each with its own `nvidia/`, and hold their libraries in
    `cu13/lib`, `cudnn/lib` and the like.

    Args:
        folders: each a folder `nvidia`; None: all that Python finds.
        load: loads a file; None: so that all of the process sees its symbols.

    Returns:
        The files that were loaded.
    """
    loaded = []
    places = list(wheel_folders() if folders is None else folders)
    for name in WHEELS:
        for path in _files(places, f"{name}.so.*"):
            try:
                (load if load is not None else _load)(str(path))
            except OSError as error:
                log.info("%s cannot be loaded: %s", path, error)
                continue
            loaded.append(path)
            break
    return loaded


def check_cuda_libraries(
    names: Sequence[str], *, who: str, folders: Iterable[Path] | None = None, load: Load | None = None
) -> None:
    """Loads these libraries, from the wheels or from where the system looks.

    Args:
        names: such as `libcudart.so.13`.
        who: needs them, for messages.

    Raises:
        EnvironmentLacks: one cannot be loaded; says which file, what there is of other versions, which wheel holds
            it, and where was looked.
    """
    places = list(wheel_folders() if folders is None else folders)
    for name in sorted(names, key=_order):
        why: OSError | None = None
        for path in (*map(str, _files(places, f"{name}*")), name):
            try:
                (load if load is not None else _load)(path)
                break
            except OSError as error:
                why = error
        else:
            raise _lacking(name, places, who=who, why=why)


def needed_libraries(library: Path) -> list[str]:
    """The libraries of CUDA that an ELF file names, and those that onnxruntime opens by name.

    Raises:
        EnvironmentLacks: it is no 64-bit ELF file.
    """
    found = [name for name in _elf_needed(library) if _stem(name) in WHEELS or name == _DRIVER]
    return [*found, _OPENED_BY_NAME]


def open_cudart(provider: Path) -> Cudart:
    """The CUDA runtime that a library names, or the one that is loaded.

    Raises:
        EnvironmentLacks: it cannot be loaded.
    """
    names = _elf_needed(provider) if provider.is_file() else []
    name = next((name for name in names if _stem(name) == "libcudart"), "libcudart.so.13")
    check_cuda_libraries([name], who="CUDA")
    return Cudart(ctypes.CDLL(name))


def wheel_folders() -> list[Path]:
    """Every folder `nvidia` that Python finds."""
    spec = find_spec("nvidia")
    found = spec.submodule_search_locations if spec is not None else None
    return [Path(folder) for folder in found or ()]


def _lacking(name: str, places: Sequence[Path], *, who: str, why: OSError | None) -> EnvironmentLacks:
    if name == _DRIVER:
        return EnvironmentLacks(
            f"{name} cannot be loaded: no NVIDIA driver is installed",
            expected=f"the driver, and a GPU, for {who}",
            hint="use device='cpu' or backend='openvino' on a machine without one",
        )
    stem, major = _stem(name), name.rpartition(".")[2]
    others = sorted({path.name for path in _files(places, f"{stem}.so.*")} - {name})
    looked = ", ".join([*map(str, places), "the folders of the system's loader and LD_LIBRARY_PATH"])
    there = f", there is {', '.join(others)}" if others else ""
    return EnvironmentLacks(
        f"{name} cannot be loaded ({why}){there}; looked in {looked}",
        expected=f"the file that {who} was built for",
        hint=f"it is in the wheel: pip install {_wheel(stem, name, int(major))}",
    )


def _wheel(stem: str, name: str, major: int) -> str:
    """The wheel that has a library; those of cuRAND and cuFFT count their own versions."""
    wheel = WHEELS[stem]
    if stem == "libcudnn":
        return f"'{wheel}-cu13=={major}.*' (or -cu12)"
    if stem in ("libcudart", "libcublas", "libcublasLt", "libnvrtc"):
        return f"'{wheel}=={major}.*'" if major >= 13 else f"{wheel}-cu{major}"
    return f"{wheel} (or {wheel}-cu12), the one with {name}"


def _files(places: Sequence[Path], pattern: str) -> list[Path]:
    return sorted(file for place in places for file in place.glob(f"*/lib/{pattern}"))


def _stem(name: str) -> str:
    found = _SONAME.match(name)
    return found[1] if found is not None else name


def _order(name: str) -> int:
    """The driver first, since nothing works without; the others as they need each other."""
    return list(WHEELS).index(_stem(name)) if _stem(name) in WHEELS else -1


def _elf_needed(path: Path) -> list[str]:
    """DT_NEEDED of an ELF file (System V ABI, chapter 5), read where they lie: it may have hundreds of megabytes."""
    with path.open("rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01":
            raise EnvironmentLacks(f"{path} is no library of this system", hint="install the package again")
        table, count = struct.unpack_from("<Q", head, 32)[0], struct.unpack_from("<H", head, 56)[0]
        file.seek(table)
        rows = [struct.unpack("<IIQQQQQQ", file.read(56)) for _ in range(count)]
        _, _, offset, _, _, size, _, _ = next(row for row in rows if row[0] == 2)  # PT_DYNAMIC
        file.seek(offset)
        entries = list(struct.iter_unpack("<qQ", file.read(size)))
        address = next(value for tag, value in entries if tag == 5)  # DT_STRTAB
        length = next(value for tag, value in entries if tag == 10)  # DT_STRSZ
        start = next(row[2] + address - row[3] for row in rows if row[0] == 1 and row[3] <= address < row[3] + row[5])
        file.seek(start)
        texts = file.read(length)
    names = [value for tag, value in entries if tag == 1]  # DT_NEEDED
    return [texts[at : texts.index(b"\0", at)].decode() for at in names]


def _load(path: str) -> object:
    return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
