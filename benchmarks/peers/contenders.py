"""Who is compared, and what each does differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentrt.bench.runner import Candidate
from latentrt.bundle import Bundle
from latentrt.cli.bench import own_candidate

TORCH, ONNX, GENAI = "torch", "optimum-onnx", "openvino-genai"  # environments


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A candidate with what a table has to say of it.

    Args:
        candidate: in the environment of its interpreter, with `cache_dir` among its options.
        environment: its name, or None for this one.
        files: what it loads, in bytes on disk.
        differs: what it does differently from this runtime, and what was switched off.
    """

    candidate: Candidate
    environment: str | None
    files: Path
    differs: str


def torch_contenders(checkpoint: Path, python: Path, cache: Path) -> list[Contender]:
    """Three ways of diffusers on torch."""
    rows = (
        ("torch fp32", "fp32", None, "eager; keeps no cache"),
        (
            "torch bf16 channels-last",
            "bf16",
            None,
            "eager; weights and text in bf16, sampler in bf16 as well; keeps no cache",
        ),
        (
            "torch.compile bf16 channels-last",
            "bf16",
            "1",
            "text encoder, network and decoder compiled for this size alone (Inductor), which counts as loading; the"
            " memory is without the compiler's own processes",
        ),
    )
    return [
        Contender(
            candidate=Candidate(
                name,
                "latentrt.export.bench_torch:open_diffusers",
                {
                    "path": str(checkpoint),
                    "compute": compute,
                    "compiled": compiled,
                    "cache_dir": str(cache / name.replace(" ", "-")),
                },
                precision=dict.fromkeys(("text_encoder", "step", "decoder"), compute),
                interpreter=str(python),
            ),
            environment=TORCH,
            files=checkpoint,
            differs=differs,
        )
        for name, compute, compiled, differs in rows
    ]


def onnx_contender(folder: Path, python: Path, cache: Path) -> Contender:
    """optimum-onnx on graphs that it exported itself."""
    return Contender(
        candidate=Candidate(
            "optimum-onnx fp32",
            "benchmarks.peers.openers:open_optimum_onnx",
            {"path": str(folder), "cache_dir": str(cache / ONNX)},
            precision=dict.fromkeys(("text_encoder", "step", "decoder"), "fp32"),
            interpreter=str(python),
        ),
        environment=ONNX,
        files=folder,
        differs="guidance and sampler in torch, between calls of ONNX Runtime at its defaults; keeps no cache",
    )


def genai_contenders(folder: Path, python: Path, cache: Path, computes: Sequence[str]) -> list[Contender]:
    """OpenVINO GenAI on an IR of optimum-intel with fp16 weights."""
    return [
        Contender(
            candidate=Candidate(
                f"OpenVINO GenAI {compute}",
                "benchmarks.peers.openers:open_genai",
                {"path": str(folder), "compute": compute, "cache_dir": str(cache / f"{GENAI}-{compute}")},
                precision=dict.fromkeys(("text_encoder", "step", "decoder"), compute),
                interpreter=str(python),
            ),
            environment=GENAI,
            files=folder,
            differs="weights in fp16, without its exporter's 8-bit compression; compiled for this size; its"
            " step cache (TaylorSeer) is off",
        )
        for compute in computes
    ]


def own_contenders(bundle: Path, cache: Path, pairs: Sequence[tuple[str, str]]) -> list[Contender]:
    """This runtime, in this environment."""
    opened = Bundle.open(bundle)
    found = []
    for backend, compute in pairs:
        folder = cache / f"latentrt-{bundle.name}-{backend}-{compute}"
        candidate = own_candidate(opened, backend=backend, compute=compute, cache_dir=str(folder))
        named = Candidate(
            f"LatentRT {candidate.name}", candidate.opener, candidate.options, precision=candidate.precision
        )
        found.append(Contender(candidate=named, environment=None, files=bundle, differs=""))
    return found
