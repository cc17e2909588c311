"""Stable Diffusion 1.5 in full size, random weights, from existing graphs: time, memory and the estimate for a GPU.

Checkpoint and bundles are made under build/ where they are missing, and stay: they take minutes and 11 GB of disk.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentrt import Bundle
from latentrt.export.engines.variants import variant

ROOT = Path(__file__).parents[3]

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(
        not variant("tensorrt-rtx").installed(), reason="TensorRT for RTX has wheels for x86-64 Linux and Windows"
    ),
]


def python(*arguments: object) -> str:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="module")
def full_fp16() -> Path:
    checkpoint, bundles = ROOT / "build" / "checkpoints" / "sd15", ROOT / "build" / "bundles"
    whole, half = bundles / "sd15", bundles / "sd15-fp16"
    if not (half / "bundle.json").is_file():
        if not (whole / "bundle.json").is_file():
            if not (checkpoint / "model_index.json").is_file():
                python("latentrt.export.synthetic.checkpoints", "sd15", "-o", checkpoint)
            python("latentrt.cli", "export", checkpoint, "-o", whole, "--no-check")
        python("latentrt.cli", "convert", whole, "-o", half, "--precision", "fp16", "--range-check", "none")
    return half


def test_all_engines_are_built_within_minutes_and_fit_a_small_gpu(full_fp16: Path, tmp_path: Path):
    arguments = ["latentrt.cli", "build", full_fp16, "--backend", "tensorrt-rtx", "--gpus", "sm80+"]
    output = tmp_path / "engines.json"
    began = time.perf_counter()
    with output.open("w") as file:
        command = [sys.executable, "-m", *map(str, arguments), "--cache-dir", str(tmp_path), "--json"]
        process = subprocess.Popen(command, stdout=file)
        _, status, usage = os.wait4(process.pid, 0)
    seconds, peak_gb = time.perf_counter() - began, usage.ru_maxrss / 1e6
    assert status == 0
    document = json.loads(output.read_text())
    engines = {row["component"]: row for row in document["engines"]}
    assert set(engines) == set(Bundle.open(full_fp16).components)
    assert 1.7e9 < engines["step"]["weights_bytes"] < 1.8e9  # 860 million parameters
    facts = json.loads(python("latentrt.cli", "inspect", full_fp16, "--cache-dir", tmp_path, "--vram", 4, "--json"))
    (group,) = facts["engines"]
    print({name: (row["seconds"], row["bytes"], row["activation_bytes"]) for name, row in engines.items()})
    print(f"{seconds:.0f} s, peak {peak_gb:.1f} GB, plans {group['memory']['plans']}")
    assert group["memory"]["size"] == [512, 512]
    assert group["memory"]["fits_with"] == "all resident"
    assert peak_gb < 10
