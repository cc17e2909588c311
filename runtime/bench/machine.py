"""What a measurement was made on."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import latentrt
from latentrt.backends.processor import told
from latentrt.bundle import MANIFEST, Bundle, sha256_file

PACKAGES = ("numpy", "tokenizers", "openvino", "onnxruntime", "torch", "diffusers", "transformers")
"""What a measurement may depend on."""


def provenance(bundle: Bundle, *, packages: Sequence[str]) -> dict[str, Any]:
    """Date, machine, versions and the bundle's digest (sha256 of its manifest, which holds those of all files)."""
    return machine_facts(packages) | {"bundle": {"name": bundle.name, "sha256": sha256_file(bundle.root / MANIFEST)}}


def machine_facts(packages: Sequence[str]) -> dict[str, Any]:
    """Date, machine, and the versions of those packages that are installed."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "load_average": round(os.getloadavg()[0], 2),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": platform.platform(),
        "versions": {"latentrt": latentrt.__version__, "python": platform.python_version(), **_versions(packages)},
    }


def cpu_model() -> str:
    """As the system names it."""
    return told().get("model name") or platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
