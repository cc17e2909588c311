"""The architectures of GPUs by the names that they are sold under."""

import re
from collections.abc import Mapping
from types import MappingProxyType

_NOISE = re.compile(r"[\s_-]\d+gb|[\s_-]|nvidia|geforce|tesla|quadro")
_VARIANT = re.compile(r"(ti|super|laptop|mobile|maxq|d|sxm\d?|pcie|nvl)+$")

# Compute capabilities as NVIDIA lists them: https://developer.nvidia.com/cuda-gpus
_CARDS = {
    75: "t4 t4g gtx1650 gtx1660 rtx2060 rtx2070 rtx2080 titanrtx rtx3000 rtx4000 rtx5000 rtx6000 rtx8000 t1000",
    80: "a100 a800 a30",
    86: "rtx2050 rtx3050 rtx3060 rtx3070 rtx3080 rtx3090 a2 a10 a10g a16 a40 rtxa2000 rtxa4000 rtxa4500 rtxa5000"
    " rtxa5500 rtxa6000 a2000 a4000 a4500 a5000 a5500 a6000",
    89: "rtx4050 rtx4060 rtx4070 rtx4080 rtx4090 l4 l40 l40s l20 l2 rtx2000ada rtx4000ada rtx4500ada rtx5000ada"
    " rtx6000ada",
    90: "h100 h200 h20 h800 gh200",
    100: "b100 b200 gb200",
    103: "b300 gb300",
    120: "rtx5050 rtx5060 rtx5070 rtx5080 rtx5090 rtxpro6000 rtxpro5000 rtxpro4500 rtxpro4000",
    121: "gb10",
}
CARDS: Mapping[str, int] = MappingProxyType({name: sm for sm, names in _CARDS.items() for name in names.split()})
"""Compute capability by name, in lower case and without what all or some variants have in it."""


def architecture(gpu: str) -> str:
    """`sm89` of `rtx4090`, `RTX 4070 Ti SUPER` or `NVIDIA L40S`; a name that is no card's, as it is."""
    name = _NOISE.sub("", gpu.lower()).removesuffix("generation")
    for candidate in (name, _VARIANT.sub("", name)):
        if candidate in CARDS:
            return f"sm{CARDS[candidate]}"
    return gpu
