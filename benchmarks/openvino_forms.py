"""Whether OpenVINO is faster on other forms of the blocks of Stable Diffusion 1.5.

    python -m benchmarks.openvino_forms

Each level's self-attention with the heads padded with zeros to a multiple of 16, 32 and 64 values, and its GEGLU as two
products instead of one that is split. A form is compared with the plain block, whose numbers it gives, by turns in one
run: the ratio of medians, below 1 where the form is faster. 512x512, two rows, as in a guided step.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from latentrt.arrays import FloatArray
from latentrt.backends.openvino import capabilities
from latentrt.environment.privacy import not_installed

with not_installed("openvino_telemetry"):
    import openvino as ov
    from openvino import opset13 as op

ROWS, HEADS = 2, 8
LEVELS = ((4096, 320), (1024, 640), (256, 1280))
"""Tokens and channels."""
MULTIPLES = (16, 32, 64)
LIMIT = 1e-4  # of the largest value, in float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print("| block | form | compute | plain ms | ratio |\n|---|---|---|---|---|")
    for tokens, channels in LEVELS:
        x = np.random.default_rng(0).standard_normal((ROWS, tokens, channels), np.float32)
        for block, plain, forms in blocks(channels, x.shape):
            for compute in ("f32", *(["bf16"] if "BF16" in capabilities() else [])):
                first = runner(plain, x, compute)
                for name, form in forms.items():
                    other = runner(form, x, compute)
                    if compute == "f32":
                        judge(first(), other(), f"{block}: {name}")
                    ms, ratio = compared(first, other, options.rounds)
                    print(f"| {block}, {tokens} tokens | {name} | {compute} | {ms:.1f} | {ratio:.2f} |", flush=True)


def blocks(channels: int, shape: tuple[int, ...]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, plain graph and other forms of what a level has."""
    wide = channels // HEADS
    padded = {f"heads of {to}": to for to in sorted({-(-wide // by) * by for by in MULTIPLES} - {wide})}
    plain = attention(channels, shape, wide)
    yield f"heads of {wide}", plain, {name: attention(channels, shape, to) for name, to in padded.items()}
    yield "GEGLU", geglu(channels, shape, split=True), {"two products": geglu(channels, shape, split=False)}


def attention(channels: int, shape: tuple[int, ...], head: int) -> Any:
    """Self-attention between its products; what is padded multiplies zeros."""
    rng = np.random.default_rng(1)
    wide = channels // HEADS
    pad = ((0, 0), (0, 0), (0, head - wide))
    weights = [
        np.pad(weight(rng, channels, channels).reshape(channels, HEADS, wide), pad).reshape(channels, -1)
        for _ in range(4)
    ]
    x = op.parameter(shape, np.float32)
    heads = [
        op.transpose(op.reshape(op.matmul(x, w, False, False), [0, 0, HEADS, head], True), [0, 2, 1, 3])
        for w in weights[:3]
    ]
    scale = op.constant(np.float32(wide**-0.5))
    mask = op.constant(np.zeros((1, 1, 1, 1), np.float32))
    seen = op.scaled_dot_product_attention(*heads, mask, scale)
    joined = op.reshape(op.transpose(seen, [0, 2, 1, 3]), [0, 0, HEADS * head], True)
    return ov.Model([op.matmul(joined, weights[3], False, True)], [x])


def geglu(channels: int, shape: tuple[int, ...], *, split: bool) -> Any:
    rng = np.random.default_rng(2)
    value, gate = (weight(rng, channels, 4 * channels) for _ in range(2))
    x = op.parameter(shape, np.float32)
    if split:
        both = op.matmul(x, np.concatenate([value, gate], axis=1), False, False)
        a, b = op.split(both, op.constant(np.int64(2)), 2).outputs()
    else:
        a, b = (op.matmul(x, w, False, False) for w in (value, gate))
    return ov.Model([op.multiply(a, op.gelu(b, "erf"))], [x])


def weight(rng: np.random.Generator, rows: int, columns: int) -> FloatArray:
    return rng.standard_normal((rows, columns), np.float32) / np.float32(rows**0.5)


def runner(model: Any, x: FloatArray, compute: str) -> Callable[[], FloatArray]:
    config = {"INFERENCE_PRECISION_HINT": compute, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    request.set_input_tensor(ov.Tensor(x, shared_memory=True))

    def run() -> FloatArray:
        request.infer()
        found: FloatArray = request.get_output_tensor().data
        return found

    run()
    return run


def judge(expected: FloatArray, found: FloatArray, what: str) -> None:
    off = np.abs(found - expected).max() / np.abs(expected).max()
    if off > LIMIT:
        sys.exit(f"{what} gives other numbers: {off:.1e} of the largest apart, at most {LIMIT:g} expected")


def compared(plain: Callable[[], object], form: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Milliseconds of the plain block, and the other's time over it."""
    times: dict[Callable[[], object], list[float]] = {plain: [], form: []}
    for _ in range(rounds):
        for run, found in times.items():
            began = time.perf_counter()
            run()
            found.append(1e3 * (time.perf_counter() - began))
    ms = statistics.median(times[plain])
    return ms, statistics.median(times[form]) / ms


if __name__ == "__main__":
    main()
