"""Runs the runtime's tests on the lowest versions that pyproject.toml allows: `python tests/lowest.py BUNDLE`.

The lowest of each requirement is asked of pip; they go into a virtual environment of their own, without torch. Of
tests/runtime those files run that import nothing but the runtime, its dependencies and onnx, which some make graphs
with; fixtures are those of `lowest_fixtures`.
"""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
VENV = ROOT / "build" / "lowest"
EXTRAS = ("onnxruntime", "openvino", "shards", "remote", "convert")  # the last makes graphs, without torch
TESTING = ("pytest", "hypothesis", "packaging", "pytest-xdist", "jsonschema")  # not under test: any version
ABSENT = {"torch", "diffusers", "transformers", "scipy", "peft"}
NEED_A_CHECKPOINT = (
    "test_tensorrt_control.py",
    "test_memory_estimate.py",
)  # bundles with a ControlNet, and the CLI's fixtures


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for extra in EXTRAS for text in extras[extra])]
    return [Requirement(text) for text in dict.fromkeys(texts)]


def lowest(requirement: Requirement) -> str:
    """`numpy==2.0.1`: the lowest version on offer that the requirement allows."""
    command = [sys.executable, "-m", "pip", "index", "versions", requirement.name]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = next(line for line in listed.splitlines() if line.startswith("Available versions:"))
    versions = [text.strip() for text in line.partition(":")[2].split(",")]
    return f"{requirement.name}=={min(requirement.specifier.filter(versions), key=Version)}"


def imports(path: Path) -> set[str]:
    """All that a test file imports, and what the helpers beside it do."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    for name in list(found):
        for helper in (path.parent / f"{name}.py", ROOT / "tests" / f"{name}.py"):
            if helper.is_file():
                found |= imports(helper)
    return found


def torch_free() -> list[Path]:
    files = sorted((ROOT / "tests" / "runtime").rglob("test_*.py"))
    beyond = ("latentrt.export", "latentrt.calibration")
    return [
        file
        for file in files
        if file.name not in NEED_A_CHECKPOINT
        and not any(name.split(".")[0] in ABSENT or name.startswith(beyond) for name in imports(file))
    ]


def main(bundle: Path, arguments: list[str]) -> int:
    pins = [lowest(requirement) for requirement in requirements()]
    print("lowest:", *pins, flush=True)
    python = VENV / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
    install = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, *pins, *TESTING], check=True)
    subprocess.run([*install, "--no-deps", "--force-reinstall", ROOT], check=True)
    paths = ":".join(str(ROOT / "tests" / folder) for folder in ("", "standin"))
    environment = {**os.environ, "LOWEST_BUNDLE": str(bundle.resolve()), "PYTHONPATH": paths}
    tests = [str(file.relative_to(ROOT)) for file in torch_free()]
    print(len(tests), "files:", *(Path(test).stem for test in tests), flush=True)
    command = [python, "-m", "pytest", "--noconftest", "-p", "lowest_fixtures", *tests, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
