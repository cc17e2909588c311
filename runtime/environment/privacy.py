"""Nothing that is imported here reports on its use (docs/privacy.md).

Each library is asked in the one way that it offers, before it is imported: a variable that the user has set stands, no
opt-out file is written, and no loaded module is touched.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

RUNTIME = {"ORT_DISABLE_TELEMETRY": "1"}
"""ONNX Runtime reads it when it is imported; `disable_telemetry_events` comes too late for its thread and id."""
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0"}
"""What a cluster that is started here would report, and the figures that its nodes would collect."""
EXPORT = {"HF_HUB_DISABLE_TELEMETRY": "1", "DISABLE_SAFETENSORS_CONVERSION": "1"}
"""Facts about the machine in requests to a model hub, and transformers' request that a hub convert weights."""


def decline_reports(variables: Mapping[str, str]) -> None:
    """Sets environment variables that are not set."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


@contextmanager
def not_installed(package: str) -> Iterator[None]:
    """Within the block an import of `package` fails as if it were not installed; what was loaded before is back after.

    OpenVINO sends its event while it is imported, by `openvino_telemetry`, and takes a stub of its own without it.
    """
    loaded = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if loaded is None:
            del sys.modules[package]
        else:
            sys.modules[package] = loaded
