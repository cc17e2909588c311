"""Stable Diffusion 1.5 in full size, random weights, calibrated briefly: memory, size and quality.

Checkpoint and bundle are made under build/ where they are missing, and stay: they take minutes and 8 GB of disk.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMORY_GB = 12.0
SIZE_LIMIT = 0.30  # of float32
SQNR_LIMIT_DB = 25.0
BRIEF = ("--count", "1", "--steps", "2", "--images", "1", "--backend", "onnxruntime,openvino")

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def full_bundle() -> Path:
    checkpoint, bundle = ROOT / "build" / "checkpoints" / "sd15", ROOT / "build" / "bundles" / "sd15"
    if not (bundle / "bundle.json").is_file():
        if not (checkpoint / "model_index.json").is_file():
            subprocess.run(
                [sys.executable, "-m", "latentrt.export.synthetic.checkpoints", "sd15", "-o", checkpoint], check=True
            )
        command = [sys.executable, "-m", "latentrt.cli", "export", checkpoint, "-o", bundle, "--no-check"]
        subprocess.run(command, check=True)
    return bundle


def test_it_calibrates_within_memory_to_a_third_of_the_bytes_and_25_db(full_bundle: Path, tmp_path: Path):
    output = tmp_path / "answer.json"
    command = [sys.executable, "-m", "latentrt.cli", "calibrate", full_bundle, "-o", tmp_path / "sd15-int8", *BRIEF]
    with output.open("w") as file:
        process = subprocess.Popen([*map(str, command), "--json"], stdout=file)
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, output.read_text()
    document = json.loads(output.read_text())
    print(json.dumps({"peak_gb": usage.ru_maxrss * 1024 / 1e9, "seconds": document["seconds"]}))
    assert usage.ru_maxrss * 1024 / 1e9 < MEMORY_GB
    assert document["bytes_after"] / document["bytes_before"] <= SIZE_LIMIT
    ratios = [row["value"] for row in document["calibration"]["judged"] if row["unit"] == "dB SQNR"]
    assert len(ratios) == 4
    assert min(ratios) >= SQNR_LIMIT_DB
    step = document["calibration"]["components"]["step"]
    assert len(step["quantised"]) > 200
    assert all(layer["sqnr_db"] is not None for layer in step["layers"] if layer["precision"] == "int8")
