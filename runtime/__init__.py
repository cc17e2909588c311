"""LatentRT: a lean runtime for compiled Stable Diffusion.

import latentrt

with latentrt.load("bundles/shapes") as pipe:
    result = pipe.generate("a red circle on a white background", seed=7)
    result.images  # uint8 [B, H, W, 3]
"""

from latentrt.backends import available as available_backends
from latentrt.bundle import Bundle
from latentrt.environment.privacy import RUNTIME, decline_reports
from latentrt.environment.version import VERSION
from latentrt.errors import (
    BackendError,
    BundleError,
    CheckpointError,
    EnvironmentLacks,
    GateError,
    IntegrityError,
    InUseError,
    LatentRTError,
    RequestError,
    VersionError,
)
from latentrt.images.control import Control
from latentrt.images.edges import canny, lineart
from latentrt.images.start import Image, Inpaint, Latent, Outpaint, Text
from latentrt.images.upscale import Upscale
from latentrt.loading import load
from latentrt.lora import Lora
from latentrt.output.result import Result, Step, Timings
from latentrt.pipeline import Pipeline
from latentrt.request import Guidance, Request, SkipLayers
from latentrt.samplers import sampler_names, schedule_names
from latentrt.samplers.step_cache import StepCache

__version__ = VERSION

decline_reports(RUNTIME)  # here, since every way to ONNX Runtime through this package begins here

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "Control",
    "EnvironmentLacks",
    "GateError",
    "Guidance",
    "Image",
    "InUseError",
    "Inpaint",
    "IntegrityError",
    "Latent",
    "LatentRTError",
    "Lora",
    "Outpaint",
    "Pipeline",
    "Request",
    "RequestError",
    "Result",
    "SkipLayers",
    "Step",
    "StepCache",
    "Text",
    "Timings",
    "Upscale",
    "VersionError",
    "available_backends",
    "canny",
    "lineart",
    "load",
    "sampler_names",
    "schedule_names",
]
