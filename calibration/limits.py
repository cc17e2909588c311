"""What can be known before hours of work: whether the parent, the place, the disk and the memory will do."""

from __future__ import annotations

import shutil
from pathlib import Path

from latentrt.backends import choose
from latentrt.backends.cache import graph_bytes
from latentrt.bundle import Bundle
from latentrt.calibration.collect import STEP, CalibrationSettings
from latentrt.calibration.formats import FORMATS
from latentrt.calibration.manifest import SEARCH, Policy
from latentrt.errors import BundleError, EnvironmentLacks, RequestError
from latentrt.export.parity.gates import REFERENCE, Evaluation
from latentrt.export.staging import available_memory, check_target
from latentrt.request import check_size

PARENTS = ("fp32", "fp16")
_SCRATCH_FACTOR = 1.3  # of the weights of what is quantised
_MEMORY_FACTOR = 2.5  # of the weights: as stored, as the backend packs them, and activations


def check_parent(parent: Bundle, output: Path, policy: Policy, *, overwrite: bool) -> None:
    """Raises BundleError or RequestError for a parent, a place or components that will not do."""
    check_target(output, overwrite=overwrite)
    if output.resolve() == parent.root.resolve():
        raise RequestError(f"{output} is the bundle itself", expected="another path", hint="a bundle is never changed")
    if not policy.quantised:
        raise RequestError(
            "no component is to be quantised",
            expected=f"one in {' or '.join(FORMATS)}",
            hint="for 16 bit alone: `latentrt convert`",
        )
    able = (STEP, "decoder", *parent.text_encoders)
    for name, form in policy.quantised.items():
        if name not in able:
            raise RequestError(
                f"component '{name}' in {form.name}",
                expected=f"one of {', '.join(able)}",
                hint="leave it in float, or convert it to 16 bit",
            )
    for name in policy.components:
        if (precision := parent.component(name).precision) not in PARENTS:
            raise BundleError(
                f"{name} of {parent.root} is {precision}",
                expected=" or ".join(PARENTS),
                hint="calibrate the float32 bundle that it was made from",
            )


def check_runs(parent: Bundle, policy: Policy, settings: CalibrationSettings, evaluation: Evaluation | None) -> None:
    """Raises RequestError or EnvironmentLacks for sizes, backends or searches that cannot be run."""
    for size in (*settings.sizes, *(() if evaluation is None else (evaluation.size,))):
        check_size(size, parent.family)
    if evaluation is None and (policy.alpha == SEARCH or policy.min_sqnr is not None):
        raise RequestError(
            "a search with nothing to measure on", expected="at least one image to judge", hint="leave out --images 0"
        )
    for backend in () if evaluation is None else evaluation.backends:
        choose(backend)
    if evaluation is not None and REFERENCE in evaluation.backends and "bf16" in policy.converted.values():
        raise RequestError(
            "bf16 components judged on ONNX Runtime, which runs none on a CPU",
            expected="another backend",
            hint="pass --backend openvino, or choose fp16",
        )


def check_room(parent: Bundle, output: Path, policy: Policy) -> None:
    """Raises EnvironmentLacks, with the numbers, for too little disk or memory."""
    size = sum(entry["bytes"] for entry in parent.manifest["files"].values())
    # The pass over the layers needs the float weights once more, and the rounded ones beside them.
    scratch = _SCRATCH_FACTOR * sum(parent.stored_bytes(name) for name in policy.quantised)
    needed = size + scratch
    folder = next(path for path in output.resolve().parents if path.exists())
    if (free := shutil.disk_usage(folder).free) < needed:
        raise EnvironmentLacks(
            f"{free / 1e6:.0f} MB are free on the disk of {folder}",
            expected=f"about {needed / 1e6:.0f} MB",
            hint="make room",
        )
    needed = _MEMORY_FACTOR * max(graph_bytes(part.graph) for part in parent.components.values())
    if (memory := available_memory()) is not None and memory < needed:
        raise EnvironmentLacks(
            f"{memory / 1e9:.1f} GB of memory are free",
            expected=f"about {needed / 1e9:.1f} GB",
            hint="end other programs",
        )
