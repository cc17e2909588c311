"""Which processor this is: what kernels are laid out for, and what int8 is computed with."""

import os
import platform
from pathlib import Path

_PRODUCTS = {"avx512_vnni", "avx_vnni"}
_WITHOUT = {"SSE41", "AVX", "AVX2", "AVX512_CORE"}  # oneDNN's names; what it is told to be content with


_CPUINFO = Path("/proc/cpuinfo")


def processor(cpuinfo: Path = _CPUINFO) -> str:
    """Its name and instructions, as the system tells them of the first core."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    return " ".join([platform.machine(), *(told[name] for name in ("model name", "flags", "Features") if name in told)])


def has_int8_products(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether sums of int8 products are exact in oneDNN, which OpenVINO computes with.

    On an x86-64 processor without such an instruction (VNNI: Intel before Cascade Lake, AMD before Zen 4) it halves
    int8 weights and rounds them, so that pairs of products fit into 16 bits (`wei_adj_scale` in oneDNN). Where the
    system does not tell, they are taken for granted.
    """
    told = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", ""))
    if told.upper() in _WITHOUT:
        return False
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)
    return flags is None or bool(flags & _PRODUCTS)
