"""How long it takes to switch LoRAs, and how near a bundle with one is to a float bundle with it.

    python -m benchmarks.lora BUNDLE [--backend NAME] [--lora FILE[:SCALE]] [--record WHAT]
    python -m benchmarks.lora BUNDLE --against FLOAT_BUNDLE [--lora FILE[:SCALE]]

Without a file it is a random one for all attention and feed-forward layers of the network. A switch is `set_lora` and
`prepare`: read, merge, and load or compile again. Compiled graphs begin in an empty cache. With `--record` the times
are written to benchmarks/results/<date>-WHAT.json as well.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

import latentrt
from benchmarks.result_file import write_result
from latentrt import Bundle, Lora, Request
from latentrt.arrays import to_host
from latentrt.bench.machine import provenance
from latentrt.bench.runner import first_order
from latentrt.cli.arguments import lora as parse_lora
from latentrt.lora.targets import bundle_parts
from latentrt.names import BackendName

STRENGTH = 0.2  # of the random one: of its weight's magnitude
SEED, TIMESTEP = 0, 500  # in the middle of the noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--against", type=Path, metavar="FLOAT_BUNDLE")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--lora", type=parse_lora)
    parser.add_argument("--rank", type=int, default=16, help="of the random one (16)")
    parser.add_argument("--record", metavar="WHAT", help="part of the name of a file of results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lora = options.lora
        if lora is None:
            lora = Lora(random_lora(Bundle.open(options.bundle), Path(folder) / "random.safetensors", options.rank))
        size = Path(lora.path).stat().st_size
        print(f"{options.bundle}, {options.backend}, {lora} of {size / 1e6:.1f} MB")
        if options.against is None:
            rows = []
            for row in switches(
                options.bundle, lora, backend=options.backend, threads=options.threads, cache=Path(folder)
            ):
                print("  {to:<24} {seconds:6.2f} s, {cpu_seconds:6.2f} s of the processors".format(**row), flush=True)
                rows.append(row)
            if options.record is not None:
                record(options.record, options.bundle, backend=options.backend, lora_bytes=size, rows=rows)
        else:
            compare(options.bundle, options.against, lora, backend=options.backend, cache=Path(folder))
    print(f"peak memory {peak_bytes() / 1e6:.0f} MB")


def random_lora(bundle: Bundle, path: Path, rank: int) -> Path:
    """Writes one in kohya's layout and half precision for every linear layer of the denoiser's transformer blocks."""
    rng = np.random.default_rng(SEED)
    denoiser = bundle_parts(bundle)[0]
    tensors = {}
    for name, target in denoiser.targets.items():
        if "transformer_blocks" not in name or len(target.shape) != 2:
            continue
        outer, inner = target.shape
        # An entry of a weight is about inner**-0.5; one of a product of standard normal matrices rank**0.5.
        up = rng.standard_normal((outer, rank)) * STRENGTH / np.sqrt(inner * rank)
        tensors[f"lora_unet_{name}.lora_up.weight"] = up.astype(np.float16)
        tensors[f"lora_unet_{name}.lora_down.weight"] = rng.standard_normal((rank, inner)).astype(np.float16)
        tensors[f"lora_unet_{name}.alpha"] = np.array(rank, np.float16)
    save_file(tensors, path)
    return path


def switches(
    bundle: Path, lora: Lora, *, backend: BackendName, threads: int | None, cache: Path
) -> Iterator[dict[str, Any]]:
    """What loading takes, and each switch: seconds, processor time, and the largest memory until then."""

    def row(to: str) -> dict[str, Any]:
        seconds, cpu_seconds = time.perf_counter() - began[0], time.process_time() - began[1]
        return {"to": to, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak_bytes()}

    began = time.perf_counter(), time.process_time()
    with latentrt.load(bundle, backend=backend, threads=threads, cache_dir=cache) as pipe:
        pipe.prepare()
        yield row("the bundle, loaded")
        other = Lora(lora.path, -0.5 * lora.scale)
        for applied in ([lora], [other], [lora], []):
            began = time.perf_counter(), time.process_time()
            pipe.set_lora(applied)
            pipe.prepare()
            yield row(", ".join(map(str, applied)) if applied else "none")


def record(what: str, bundle: Path, *, backend: BackendName, lora_bytes: int, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a file of results."""
    found: dict[str, Any] = {
        "provenance": provenance(Bundle.open(bundle), packages=("numpy", backend)),
        "backend": backend,
        "lora_bytes": lora_bytes,
        "switches": rows,
    }
    print(f"wrote {write_result(found, what=what)}")


def peak_bytes() -> int:
    """The most memory that the process has held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare(bundle: Path, against: Path, lora: Lora, *, backend: BackendName, cache: Path) -> None:
    """Prints the signal-to-noise ratio of one call's output, with the LoRA in both bundles and in neither."""
    cases: Sequence[Sequence[Lora]] = ([], [lora])
    exact, found = (outputs(each, cases, backend=backend, cache=cache) for each in (against, bundle))
    for applied, x, y in zip(cases, exact, found, strict=True):
        ratio = 10 * np.log10(np.square(x).sum() / np.square(x - y).sum())
        moved = 10 * np.log10(np.square(exact[0]).sum() / np.square(x - exact[0]).sum()) if applied else np.inf
        note = f" (the LoRA itself: {moved:.1f} dB)" if applied else ""
        print(f"  {'with' if applied else 'without':<8} {ratio:6.1f} dB{note}")


def outputs(bundle: Path, cases: Sequence[Sequence[Lora]], *, backend: BackendName, cache: Path) -> list[np.ndarray]:
    """The model's idea of the final latent after one call, by case."""
    found = []
    with latentrt.load(bundle, backend=backend, cache_dir=cache) as pipe:
        sampler = first_order(pipe.bundle.family.noise)
        request = Request(
            "a red circle on a white background", seed=SEED, timesteps=(TIMESTEP,), guidance=1.0, sampler=sampler
        )
        for applied in cases:
            pipe.set_lora(applied)
            (step,) = pipe.steps(request)
            found.append(np.array(to_host(step.denoised)))
    return found


if __name__ == "__main__":
    main()
