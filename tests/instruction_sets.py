"""Runs the numeric tests as processors with fewer instructions would: `python tests/instruction_sets.py [FILE ...]`.

A row of `SETS` takes instructions away from each library that can be told: oneDNN (torch, OpenVINO), ATen, MKL, NumPy's
own loops and its OpenBLAS. Two cannot. ONNX Runtime takes what the processor has; only int8 the runtime has it compute
in float where oneDNN is told to do without such products. OpenVINO follows its oneDNN alone (convolutions, products of
int8, activations); its own kernels (MatMul of float32, MVN, Reduce, Interpolate) ask the processor.

OpenVINO is therefore told to do without int8 products, and no less. As AVX2 it ends in a segmentation fault wherever
an MVN (a layer or group norm) has rows that are no multiple of 16 values, as at 64x64 px: the kernel is still one of
AVX-512, and its part that loads a row's end is made for AVX2 and overwrites its own register. A model of one
`openvino.opset13.mvn` over [1, 32, 2, 2] shows it on a processor with AVX-512, and runs where the processor itself
has AVX2 and no more (`qemu-x86_64 -cpu Haswell`): the fault is the switch's, not the processor's.
Two steps in int8 are as far from those with VNNI there as they are here without int8 products: 21.07 dB.

What the sets change on an AMD EPYC with AVX-512, VNNI and BF16, by the bits of a few operators: without int8 and bf16,
the products of int8 in OpenVINO, and nothing in float32; as AVX2, also convolutions, softmax and attention in torch,
and products in NumPy; with less elsewhere, also torch's products (on AMD, MKL takes no notice of
MKL_ENABLE_INSTRUCTIONS) and NumPy's exponential.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCH_ONEDNN = "TESTS_TORCH_ONEDNN_ISA"  # what torch's oneDNN is told, if not what OpenVINO's is
# Without arguments: the files whose assertions compare numbers that kernels computed, by any tolerance or gate.
NUMERIC = (
    "tests/calibration/test_budget.py",
    "tests/calibration/test_calibrate.py",
    "tests/calibration/test_calibrate_inpainting.py",
    "tests/calibration/test_check_quantised.py",
    "tests/calibration/test_fp8.py",
    "tests/calibration/test_layers.py",
    "tests/calibration/test_lora_int8.py",
    "tests/calibration/test_observers.py",
    "tests/calibration/test_quantize.py",
    "tests/cli/test_cli_commands.py::test_latents_of_all_batches_make_one_file",
    "tests/cli/test_cli_lora.py",
    "tests/export/checkpoint/test_latents.py",
    "tests/export/checkpoint/test_own_scheduler.py",
    "tests/export/controlnets/test_controlnet.py",
    "tests/export/convert/test_precision.py",
    "tests/export/convert/test_precision_passes.py",
    "tests/export/graphs/test_tiny_vae.py",
    "tests/export/test_pooled_bundle.py",
    "tests/export/passes/test_cuda_numbers.py",
    "tests/families/test_cached.py",
    "tests/families/test_controlled.py",
    "tests/families/test_families.py",
    "tests/families/test_pooled.py",
    "tests/families/test_vae_overflow.py",
    "tests/families/test_without_middle.py",
    "tests/parity/test_check_controls.py",
    "tests/parity/test_check_inpainting.py",
    "tests/parity/test_components.py",
    "tests/parity/test_control_latents.py",
    "tests/parity/test_gates.py",
    "tests/parity/test_half.py",
    "tests/parity/test_images.py",
    "tests/parity/test_lora_images.py",
    "tests/parity/test_metric.py",
    "tests/parity/test_prompt_images.py",
    "tests/parity/test_references.py",
    "tests/parity/test_starts.py",
    "tests/parity/test_step_cache.py",
    "tests/runtime/backends/test_backends.py",
    "tests/runtime/backends/test_onnxruntime_rewrite.py",
    "tests/runtime/backends/test_openvino_memory.py",
    "tests/runtime/denoise/test_denoising_end.py",
    "tests/runtime/denoise/test_guidance.py",
    "tests/runtime/images/test_control.py",
    "tests/runtime/images/test_start.py",
    "tests/runtime/images/test_tiles.py",
    "tests/runtime/lora/test_lora.py",
    "tests/runtime/lora/test_lora_layouts.py",
    "tests/runtime/samplers/test_noise_schedule.py",
    "tests/runtime/samplers/test_samplers.py",
    "tests/runtime/samplers/test_torch_rng.py",
    "tests/runtime/test_pipeline.py",
    "tests/runtime/text/test_conditioning.py",
)
# Files with a tolerance in which no kernel is asked, or that run full-size models.
WITHOUT_KERNELS = (
    "tests/benchmarks/test_augment_study.py",
    "tests/benchmarks/test_gpu_check.py",
    "tests/calibration/test_calibrate_cli.py",
    "tests/calibration/test_calibrate_full.py",
    "tests/calibration/test_histogram.py",
    "tests/calibration/test_shapes_gates.py",
    "tests/cli/test_cli_bench.py",
    "tests/export/engines/test_engines.py",
    "tests/export/passes/test_cuda_passes.py",
    "tests/parity/test_report.py",
    "tests/runtime/augment/test_augment_labels.py",
    "tests/runtime/augment/test_augment_run.py",
    "tests/runtime/backends/test_processor.py",
    "tests/runtime/backends/test_profiling.py",
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
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        TORCH_ONEDNN: "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "NPY_DISABLE_CPU_FEATURES": _numpy_without("X86_V4", "AVX512_ICL", "AVX512_SPR"),
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "AVX2 in oneDNN and ATen, less elsewhere": {
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        TORCH_ONEDNN: "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",  # as little as is promised; torch without AVX2 draws other noise
        "MKL_CBWR": "COMPATIBLE",
        "NPY_DISABLE_CPU_FEATURES": _numpy_without("X86_V3", "X86_V4", "AVX512_ICL", "AVX512_SPR"),
        "OPENBLAS_CORETYPE": "Nehalem",
    },
}


def pytest_configure() -> None:
    """As a plugin of pytest: lets torch's oneDNN read its own limit, which it does once, before OpenVINO's reads the
    variable that both share."""
    if TORCH_ONEDNN in os.environ:
        import torch

        shared = os.environ["ONEDNN_MAX_CPU_ISA"]
        os.environ["ONEDNN_MAX_CPU_ISA"] = os.environ[TORCH_ONEDNN]
        image = torch.ones(1, 4, 8, 8).to_mkldnn()
        torch.nn.functional.conv2d(image, torch.ones(4, 4, 3, 3).to_mkldnn())
        os.environ["ONEDNN_MAX_CPU_ISA"] = shared


def main(arguments: list[str]) -> int:
    """0 if all sets passed."""
    chosen = () if any(not argument.startswith("-") for argument in arguments) else NUMERIC
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "instruction_sets",
        "-m",
        "not full and not families and not page and not ray",
    ]
    failed = []
    for name, variables in SETS.items():
        print(f"\n=== {name}: {' '.join(f'{k}={v!r}' for k, v in variables.items())}", flush=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}  # where the plugin lies
        environment |= {key: value for key, value in variables.items() if value}
        if subprocess.run([*pytest, *arguments, *chosen], cwd=ROOT, env=environment).returncode:
            failed.append(name)
    print(f"\n=== {len(SETS) - len(failed)} of {len(SETS)} instruction sets passed" + f"; not {failed}" * bool(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
