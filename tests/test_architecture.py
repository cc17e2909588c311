"""The rules that keep the project in shape."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUNTIME = sorted((ROOT / "runtime").rglob("*.py"))
EXPORT = sorted((ROOT / "export").rglob("*.py"))
CALIBRATION = sorted((ROOT / "calibration").rglob("*.py"))

FORBIDDEN = {"torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir", "scipy"}
ALWAYS_THERE = {"filelock", "numpy", "PIL", "safetensors", "tokenizers", "latentrt"}
ONE_BACKEND_ONLY = {"onnxruntime", "openvino"}  # tensorrt and tensorrt_rtx are imported by name, one module for both
CUDA_ONLY = {"cuda"}
LATE = {"filelock", "PIL", "safetensors", "tokenizers", "tensorrt", "tensorrt_rtx"}
FAMILY_NAMES = re.compile(r"""==\s*["'](sd|sdxl|flux|lcm|stablediffusion)[\w.-]*["']""", re.IGNORECASE)


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", RUNTIME, ids=relative)
def test_the_runtime_imports_only_what_its_install_brings(path: Path):
    roots = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert not roots & FORBIDDEN
    allowed = ALWAYS_THERE | (ONE_BACKEND_ONLY if path.parent.name == "backends" else set())
    allowed |= CUDA_ONLY if path == ROOT / "runtime" / "backends" / "tensorrt" / "cuda.py" else set()
    allowed |= {"shtab"} if path == ROOT / "runtime" / "cli" / "completion.py" else set()
    assert roots <= allowed


@pytest.mark.parametrize("path", RUNTIME, ids=relative)
def test_the_runtime_knows_nothing_of_export_and_calibration(path: Path):
    assert not [name for name in imports(path) if name.startswith(("latentrt.export", "latentrt.calibration"))]


@pytest.mark.parametrize("path", CALIBRATION, ids=relative)
def test_calibration_needs_no_torch(path: Path):
    roots = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert roots <= {"numpy", "ml_dtypes", "onnx", "onnx_ir", "onnxruntime", "latentrt"}


@pytest.mark.parametrize("path", EXPORT, ids=relative)
def test_export_knows_nothing_of_calibration(path: Path):
    assert not [name for name in imports(path) if name.startswith("latentrt.calibration")]


def test_importing_calibration_loads_no_torch():
    modules = ", ".join(f"latentrt.calibration.{path.stem}" for path in CALIBRATION if path.stem != "__init__")
    code = f"import sys, {modules}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {"torch", "diffusers", "transformers", "scipy"}


@pytest.mark.parametrize("path", [*RUNTIME, *EXPORT, *CALIBRATION], ids=relative)
def test_no_code_compares_the_name_of_a_family(path: Path):
    assert not FAMILY_NAMES.search(path.read_text())


def test_no_folder_shadows_the_package():
    assert not (ROOT / "latentrt").exists()


def test_every_package_is_listed_for_the_wheel():
    listed = (ROOT / "pyproject.toml").read_text()
    bases = {"runtime": "latentrt", "export": "latentrt.export", "calibration": "latentrt.calibration"}
    for base, package in ((ROOT / folder, name) for folder, name in bases.items()):
        for init in base.rglob("__init__.py"):
            name = ".".join([package, *init.parent.relative_to(base).parts])
            assert f'"{name}"' in listed, f"{name} is missing from packages in pyproject.toml"


def test_everything_exported_is_there_and_listed_once():
    import latentrt

    assert sorted(set(latentrt.__all__)) == sorted(latentrt.__all__)
    assert all(hasattr(latentrt, name) for name in latentrt.__all__)


def test_importing_the_runtime_loads_nothing_heavy():
    code = "import sys, latentrt; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & (FORBIDDEN | ONE_BACKEND_ONLY | CUDA_ONLY | LATE)


def test_the_tracked_tree_is_small():
    """30 MiB is the limit; what is tracked travels with every clone."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if names.returncode:
        pytest.skip("not a git checkout")
    sizes = [(ROOT / name).stat().st_size for name in names.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert sum(sizes) < 30 * 2**20
