# ruff: noqa: N801, N815 - the names are CUDA's
"""The CUDA runtime by ctypes, with the names, arguments and results of `cuda.bindings.runtime`: for backends that bring
the library and not those bindings."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

_PROPERTIES_BYTES = 1 << 14  # more than any version's cudaDeviceProp has; its first 256 are the name
_NAME_BYTES = 256
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor and -Minor


class cudaError_t(IntEnum):
    """Those errors that mean something to us."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100


class cudaMemcpyKind(IntEnum):
    """Directions of copies."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(IntEnum):
    """What other threads may not do during a capture."""

    cudaStreamCaptureModeThreadLocal = 1


@dataclass(frozen=True, slots=True)
class Out:
    """A parameter by which a function gives a value back."""

    kind: Any


_P, _N, _I, _U = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint
# Parameters in the order of CUDA's runtime API.
_FUNCTIONS: Mapping[str, tuple[Any, ...]] = {
    "cudaGetDeviceCount": (Out(_I),),
    "cudaDriverGetVersion": (Out(_I),),
    "cudaRuntimeGetVersion": (Out(_I),),
    "cudaDeviceGetAttribute": (Out(_I), _I, _I),
    "cudaMemGetInfo": (Out(_N), Out(_N)),
    "cudaGetLastError": (),
    "cudaMalloc": (Out(_P), _N),
    "cudaFree": (_P,),
    "cudaHostAlloc": (Out(_P), _N, _U),
    "cudaFreeHost": (_P,),
    "cudaStreamCreateWithFlags": (Out(_P), _U),
    "cudaStreamSynchronize": (_P,),
    "cudaStreamDestroy": (_P,),
    "cudaMemcpyAsync": (_P, _P, _N, _I, _P),
    "cudaMemcpy2DAsync": (_P, _N, _P, _N, _N, _N, _I, _P),
    "cudaMemsetAsync": (_P, _I, _N, _P),
}


class Cudart:
    """The functions of a loaded `libcudart`. Each returns a tuple, the error code first.

    Args:
        library: as ctypes loaded it.
    """

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking = 1

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        for name, parameters in _FUNCTIONS.items():
            setattr(self, name, _wrapped(getattr(library, name), parameters))
        library.cudaGetErrorString.restype = ctypes.c_char_p

    def cudaGetErrorString(self, error: Any) -> tuple[int, bytes]:  # noqa: N802
        """What a code means."""
        return 0, self._library.cudaGetErrorString(_I(int(error))) or b"unknown error"

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:  # noqa: N802
        """Name, compute capability and memory of a device, whatever else its version's structure holds."""
        data = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        code = int(self._library.cudaGetDeviceProperties(data, _I(device)))
        name = data.raw[:_NAME_BYTES].split(b"\0")[0]
        facts: list[int] = []
        for attribute in (_MAJOR, _MINOR):
            failed, value = self.cudaDeviceGetAttribute(attribute, device)  # type: ignore[attr-defined]
            code, facts = code or failed, [*facts, value]
        failed, _, total = self.cudaMemGetInfo()  # type: ignore[attr-defined]
        return code or failed, SimpleNamespace(name=name, major=facts[0], minor=facts[1], totalGlobalMem=total)


def _wrapped(function: Any, parameters: tuple[Any, ...]) -> Callable[..., tuple[Any, ...]]:
    """A function of C that takes its inputs and returns its code and outputs."""
    kinds = [ctypes.POINTER(each.kind) if isinstance(each, Out) else each for each in parameters]
    function.argtypes, function.restype = kinds, _I

    def call(*arguments: Any) -> tuple[Any, ...]:
        given = iter(arguments)
        values = [each.kind() if isinstance(each, Out) else next(given) for each in parameters]
        outs = [value for value, each in zip(values, parameters, strict=True) if isinstance(each, Out)]
        passed = [
            ctypes.byref(value) if isinstance(each, Out) else value
            for value, each in zip(values, parameters, strict=True)
        ]
        return int(function(*passed)), *(out.value for out in outs)

    return call
