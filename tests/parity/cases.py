"""The table of gates: what is compared with what, and how near it must be.

Image gates are dB of PSNR of the worst image of a batch. Every sampler is judged in two unlike combinations of
size, batch and guidance, both small, and two of them also at the native size and so that each two of these settings
meet: `latentrt check` judges every sampler in all eight, by the defaults of the family.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from latentrt.export.parity.cases import Case
from latentrt.export.references.schedulers import REFERENCES
from latentrt.samplers import registry

COMPONENTS = ("text_encoder", "step", "decoder", "encoder")
BACKENDS = ("onnxruntime", "openvino")

DETERMINISTIC_DB = {"onnxruntime": 50.0, "openvino": 45.0}
STOCHASTIC_DB = {"onnxruntime": 45.0, "openvino": 45.0}

FLOW_SAMPLERS = {name for name in REFERENCES if name.startswith("flow-")}  # need a flow-matching checkpoint
SAMPLERS = tuple(name for name in REFERENCES if name not in FLOW_SAMPLERS)


# What the example checkpoint was trained to draw, at its native size.
PROMPTS = (
    "a red circle on a white background",
    "a blue star left of a yellow ring on a black background",
    "a green square above an orange triangle on a white background",
)

# From 15 steps on, diffusers ends some solvers at their full order.
SMALL: dict[str, Any] = {"size": (64, 64), "steps": 16}


def shapes_case(
    sampler: str, *, size: tuple[int, int] = (128, 128), prompts: Sequence[str] = PROMPTS[:1], **changes: Any
) -> Case:
    return Case(sampler, size, tuple(prompts), **changes)


@dataclass(frozen=True, slots=True)
class Gate:
    """One comparison of images."""

    case: Case
    backend: str

    @property
    def limit_db(self) -> float:
        table = STOCHASTIC_DB if registry.SAMPLERS[self.case.sampler].stochastic else DETERMINISTIC_DB
        return table[self.backend]

    def __str__(self) -> str:
        return f"{self.backend}, {self.case}"


def image_gates() -> list[Gate]:
    """Ordered by case, so that a reference is made once for all backends."""
    unlike = {"prompts": PROMPTS, "size": (72, 104), "guidance": 1.0}
    all_unlike = {**unlike, "steps": 10}
    every = [shapes_case(name, **changes) for name in SAMPLERS for changes in (SMALL, all_unlike)]
    for name in ("dpmpp-2m", "euler-a"):
        every += [shapes_case(name, **changes) for changes in ({}, *({**SMALL, key: unlike[key]} for key in unlike))]
    openvino = {shapes_case(name, **all_unlike) for name in ("euler", "dpmpp-2m", "ddpm")}
    openvino |= {shapes_case(name, **SMALL) for name in ("unipc", "lcm", "heun")}
    return [
        Gate(case, backend) for case in every for backend in BACKENDS if backend == "onnxruntime" or case in openvino
    ]


@dataclass(frozen=True, slots=True)
class HalfGate:
    """One component in 16 bit against float32 torch. `compute` is the arithmetic asked of the backend; None is its
    default, in which OpenVINO computes a 16-bit graph in float32: the weights' rounding alone."""

    component: str
    precision: str
    backend: str
    compute: str | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, (self.precision, self.component, self.backend, self.compute)))


# ONNX Runtime's CPU provider has no bf16 kernels.
HALF_BACKENDS = (("fp16", "onnxruntime", None), ("fp16", "openvino", None), ("bf16", "openvino", "bf16"))
HALF_GATES = tuple(HalfGate(name, *row) for name in COMPONENTS for row in HALF_BACKENDS)
