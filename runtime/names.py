"""The names that a caller may give, as types that an editor completes and a type checker knows.

The registries stay what counts: a test holds these to them.
"""

from typing import Literal, TypeAlias

SamplerName: TypeAlias = Literal[
    "euler",
    "euler-a",
    "ddim",
    "ddpm",
    "heun",
    "dpm2",
    "dpm2-a",
    "lms",
    "pndm",
    "dpmpp-2m",
    "dpmpp-2m-sde",
    "dpmpp-3m",
    "dpmpp-2s",
    "unipc",
    "deis",
    "lcm",
    "tcd",
    "flow-euler",
    "flow-heun",
]
ScheduleName: TypeAlias = Literal["default", "linspace", "leading", "trailing", "karras", "exponential", "beta"]
BackendName: TypeAlias = Literal["auto", "tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]
DeviceName: TypeAlias = Literal["cpu", "cuda"]
ComputeName: TypeAlias = Literal["fp32", "bf16"]
SyntaxName: TypeAlias = Literal["weighted", "plain"]
OutputName: TypeAlias = Literal["image", "latent"]
