"""The GPU and what is installed for it: asked in a process of its own, since a broken driver can end one."""

import importlib
import importlib.util
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu.pack.fatbin import slimmed
from benchmarks.gpu.pack.parts import PROVIDER

# Dense float16 matrix products with float32 accumulation, TFLOP/s, by the vendor's datasheets. The first row
# whose words are all in the card's name counts, so that a variant stands before the plain name.
PEAK_TFLOPS: tuple[tuple[str, float], ...] = (
    ("H200 NVL", 835.5),
    ("H200", 989.4),
    ("GH200", 989.4),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.5),
    ("H100", 989.4),
    ("A100", 311.8),
    ("A30", 165.0),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("T4", 65.0),
    ("RTX 6000 Ada", 364.2),
    ("RTX 5090", 209.5),
    ("RTX 5080", 112.6),
    ("RTX 4090", 165.2),
    ("RTX 4080", 97.5),
    ("RTX 3090", 71.2),
    ("RTX 3080", 59.5),
)
_OTHER_CHIPS = ("Laptop", "Max-Q", "SUPER", "Ti", "D")  # they share a name with a faster or slower card

CARD_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


def peak_tflops(name: str) -> float | None:
    """The peak of a card by its name as the driver gives it; None for a card that the table does not have."""
    words = name.replace("-", " ").split()
    if any(word in words for word in _OTHER_CHIPS):
        return None
    return next((peak for card, peak in PEAK_TFLOPS if all(word in words for word in card.split())), None)


def nvidia_smi(*fields: str) -> dict[str, str] | None:
    """What the driver says of the first GPU; None where there is no nvidia-smi, or it fails."""
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    cells = [cell.strip() for cell in done.stdout.strip().split(",")]
    return dict(zip(fields, cells, strict=True)) if len(cells) == len(fields) else None


def used_memory_mb() -> float | None:
    """Memory in use on the first GPU, by whichever process, in 10^6 bytes."""
    row = nvidia_smi("memory.used")
    try:
        return None if row is None else float(row["memory.used"]) * 2**20 / 1e6
    except ValueError:
        return None


@contextmanager
def open_survey(options: Mapping[str, Any]) -> Iterator[Callable[[Mapping[str, Any]], dict[str, Any]]]:
    """The opener: answers with the card, and with each variant's version and whether it can be used."""

    def survey(_: Mapping[str, Any]) -> dict[str, Any]:
        variants = {name: _tried(probe) for name, probe in _VARIANTS.items()}
        return {
            "card": _card(),
            "driver": nvidia_smi(*CARD_FIELDS),
            "variants": variants,
            "slimmed_provider": _provider_note(),
        }

    yield survey


def provider_note(package: Path) -> dict[str, Any] | None:
    """What is left of a CUDA provider that was packed for one architecture; None: it is whole, or there is none.

    Args:
        package: the folder `onnxruntime`.
    """
    return slimmed(package.parent / PROVIDER)


def _provider_note() -> dict[str, Any] | None:
    spec = importlib.util.find_spec("onnxruntime")
    return None if spec is None or spec.origin is None else provider_note(Path(spec.origin).parent)


def _card() -> dict[str, Any] | None:
    """The first GPU as torch sees it."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    facts = torch.cuda.get_device_properties(0)
    return {
        "name": facts.name,
        "compute_capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "memory_gb": round(facts.total_memory / 1e9, 1),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "peak_tflops": peak_tflops(facts.name),
    }


def _torch() -> tuple[str, str | None]:
    import torch

    return torch.__version__, None if torch.cuda.is_available() else "it sees no CUDA device"


def _onnxruntime() -> tuple[str, str | None]:
    import onnxruntime

    providers, cuda = onnxruntime.get_available_providers(), "CUDAExecutionProvider"
    if cuda not in providers:
        return onnxruntime.__version__, f"its providers are {', '.join(providers)}"
    onnxruntime.preload_dlls()
    return onnxruntime.__version__, None if provider_loads(cuda) else f"its {cuda} does not load; the log says why"


def provider_loads(provider: str) -> bool:
    """Whether ONNX Runtime really takes a provider: where one does not load, it goes on with the CPU's."""
    import onnxruntime
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[provider])
    return provider in session.get_providers()


def _tensorrt(module: str) -> tuple[str, str | None]:
    return importlib.import_module(module).__version__, None


_VARIANTS: Mapping[str, Callable[[], tuple[str, str | None]]] = {
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "tensorrt": lambda: _tensorrt("tensorrt"),
    "tensorrt-rtx": lambda: _tensorrt("tensorrt_rtx"),
}


def _tried(probe: Callable[[], tuple[str, str | None]]) -> dict[str, Any]:
    try:
        version, lack = probe()
    except Exception as error:  # libraries that do not load raise whatever they like
        return {"version": None, "lacks": f"{type(error).__name__}: {error}"}
    return {"version": version, "lacks": lack}
