"""The runtime in an environment that holds its own dependencies and nothing else."""

import importlib.metadata as metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

SCRIPT = """
import importlib.util, sys
for name in ("torch", "diffusers", "transformers", "onnx", "scipy"):
    assert importlib.util.find_spec(name) is None, name
import latentrt
with latentrt.load(sys.argv[1], backend=sys.argv[2], cache_dir=sys.argv[3]) as pipe:
    result = pipe.generate("a red circle on a white background", seed=7, steps=2, size=(64, 64))
assert result.images.shape == (1, 64, 64, 3), result.images.shape
print(result.images.mean())
"""


def closure(names: list[str]) -> set[str]:
    """Distributions that the named ones need, themselves included, extras left out."""
    found: set[str] = set()
    while names:
        name = names.pop()
        if name in found:
            continue
        found.add(name)
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names.append(requirement.name)
    return found


def link_environment(folder: Path, names: set[str]) -> None:
    """A site folder of links to the files of some distributions."""
    for name in names:
        distribution = metadata.distribution(name)
        for top in {Path(str(file)).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            target = folder / top
            if not target.exists():
                target.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    (folder / "latentrt").symlink_to(ROOT / "runtime")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_images_without_torch(backend: str, shapes_bundle: Path, tmp_path: Path):
    site = tmp_path / "site"
    site.mkdir()
    link_environment(site, closure(["filelock", "numpy", "pillow", "safetensors", "tokenizers", backend]))
    run = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT, str(shapes_bundle), backend, str(tmp_path / "cache")],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) > 0
