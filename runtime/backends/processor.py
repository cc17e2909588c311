"""Which processor this is: what kernels are laid out for, and what int8 is computed with."""

import os
import platform
from pathlib import Path

_PRODUCTS = {"avx512_vnni", "avx_vnni"}
_WITHOUT = {"SSE41", "AVX", "AVX2", "AVX512_CORE"}  # oneDNN's names; what it is told to be content with
_CPUINFO = Path("/proc/cpuinfo")


def told(cpuinfo: Path = _CPUINFO) -> dict[str, str]:
    """What the system tells of the first core, by its own names; nothing where it does not."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}


def processor() -> str:
    """Its name and instructions."""
    known = told()
    return " ".join(
        [platform.machine(), *(known[name] for name in ("model name", "flags", "Features") if name in known)]
    )


def has_int8_products(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether sums of int8 products are exact in oneDNN, which OpenVINO computes with.

    On an x86-64 processor without such an instruction (VNNI: Intel before Cascade Lake, AMD before Zen 4) it halves
    int8 weights and rounds them, so that pairs of products fit into 16 bits (`wei_adj_scale` in oneDNN). Where the
    system does not tell, they are taken for granted.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    if limit.upper() in _WITHOUT:
        return False
    flags = told(cpuinfo).get("flags")
    return flags is None or not _PRODUCTS.isdisjoint(flags.split())
