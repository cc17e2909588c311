"""Runs the numeric tests as processors with fewer instructions would: `python tests/instruction_sets.py [FILE ...]`.

A row of `SETS` takes instructions away from each library that can be told: oneDNN (torch, OpenVINO), ATen, MKL, NumPy's
own loops and its OpenBLAS. ONNX Runtime has no such switch: it always takes what the processor has.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Without arguments: every file whose assertions compare numbers that kernels computed.
NUMERIC = (
    "tests/calibration",
    "tests/cli/test_cli_check.py",
    "tests/cli/test_cli_lora.py",
    "tests/export/convert/test_precision.py",
    "tests/export/convert/test_precision_passes.py",
    "tests/export/graphs/test_tiny_vae.py",
    "tests/parity",
    "tests/runtime",
)


def _numpy_without(*levels: str) -> str:
    """Of NumPy's levels those that it can do without and that this processor has: it warns of others."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return " ".join(name for name in __cpu_dispatch__ if name in levels and __cpu_features__[name])


SETS: Mapping[str, Mapping[str, str]] = {
    "all that there is": {},
    "AVX-512 without int8 and bf16": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "NPY_DISABLE_CPU_FEATURES": _numpy_without("AVX512_ICL", "AVX512_SPR"),
        "OPENBLAS_CORETYPE": "SkylakeX",
    },
    "AVX2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NPY_DISABLE_CPU_FEATURES": _numpy_without("X86_V4", "AVX512_ICL", "AVX512_SPR"),
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "AVX2 in oneDNN and ATen, less elsewhere": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",  # as little as is promised; torch without AVX2 draws other noise
        "MKL_CBWR": "COMPATIBLE",
        "NPY_DISABLE_CPU_FEATURES": _numpy_without("X86_V3", "X86_V4", "AVX512_ICL", "AVX512_SPR"),
        "OPENBLAS_CORETYPE": "Nehalem",
    },
}


def main(arguments: list[str]) -> int:
    """0 if all sets passed."""
    named = any(not argument.startswith("-") for argument in arguments)
    failed = []
    for name, variables in SETS.items():
        print(f"\n=== {name}: {' '.join(f'{k}={v!r}' for k, v in variables.items())}", flush=True)
        environment = {**os.environ, **{key: value for key, value in variables.items() if value}}
        command = [sys.executable, "-m", "pytest", "-m", "not full and not families", *arguments]
        if subprocess.run([*command, *([] if named else NUMERIC)], cwd=ROOT, env=environment).returncode:
            failed.append(name)
    print(f"\n=== {len(SETS) - len(failed)} of {len(SETS)} instruction sets passed" + f"; not {failed}" * bool(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
