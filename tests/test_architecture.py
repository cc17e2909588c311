"""The rules that keep the project in shape."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from instruction_sets import NUMERIC, WITHOUT_KERNELS
from order import LONGEST

from latentrt.samplers.registry import SAMPLERS

ROOT = Path(__file__).parents[1]
RUNTIME = sorted((ROOT / "runtime").rglob("*.py"))
EXPORT = sorted((ROOT / "export").rglob("*.py"))
CALIBRATION = sorted((ROOT / "calibration").rglob("*.py"))
SERVING = sorted((ROOT / "serving").rglob("*.py"))

FORBIDDEN = {"torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx_ir", "scipy"}
ALWAYS_THERE = {"filelock", "numpy", "PIL", "safetensors", "tokenizers", "latentrt"}
ONE_BACKEND_ONLY = {"onnxruntime", "openvino"}  # tensorrt and tensorrt_rtx are imported by name, one module for both
CUDA_ONLY = {"cuda"}
LATE = {"filelock", "PIL", "safetensors", "tokenizers", "tensorrt", "tensorrt_rtx"}
FAMILY = re.compile(r"(sd|sdxl|flux|lcm|stablediffusion|stable-diffusion)([\d._-].*|xl.*)?", re.IGNORECASE)
PACKAGES = {
    "runtime": "latentrt",
    "export": "latentrt.export",
    "calibration": "latentrt.calibration",
    "serving": "latentrt.serving",
}
TOLERANCE = re.compile(r"allclose|assert_close|approx\(|psnr_db\(|signal_to_noise_db\(|rtol=|atol=|SQNR")
SEARCHES = ("startswith", "endswith", "removeprefix", "count", "find", "index")  # of texts
BEYOND = ("latentrt.export", "latentrt.calibration", "latentrt.serving")  # the runtime
MOST_MODULES = 15  # of a room


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
    allowed = ALWAYS_THERE | (ONE_BACKEND_ONLY if path.parent.name in ("backends", "onnxruntime") else set())
    allowed |= CUDA_ONLY if path == ROOT / "runtime" / "backends" / "cuda" / "api.py" else set()
    allowed |= {"yaml"} if path.parent == ROOT / "runtime" / "augment" else set()
    allowed |= {"tensorrt", "tensorrt_rtx"} if path.parent.name == "tensorrt" else set()  # as types alone
    on_ray = path.parent == ROOT / "runtime" / "ray_data" or path.name == "ray_cluster.py"
    allowed |= {"ray"} if on_ray else set()
    allowed |= {"fsspec", "pyarrow", "webdataset"} if path.parent == ROOT / "runtime" / "datasets" else set()
    allowed |= {"shtab"} if path == ROOT / "runtime" / "cli" / "completion.py" else set()
    assert roots <= allowed


@pytest.mark.parametrize("path", RUNTIME, ids=relative)
def test_the_runtime_knows_nothing_of_what_stands_on_it(path: Path):
    assert not [name for name in imports(path) if name.startswith(BEYOND)]


@pytest.mark.parametrize("path", CALIBRATION, ids=relative)
def test_calibration_needs_no_torch(path: Path):
    roots = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert roots <= {"numpy", "ml_dtypes", "onnx", "onnx_ir", "onnxruntime", "latentrt"}


@pytest.mark.parametrize("path", SERVING, ids=relative)
def test_serving_knows_the_runtime_alone_and_needs_no_torch(path: Path):
    assert not {name.split(".")[0] for name in imports(path)} & FORBIDDEN
    assert not [name for name in imports(path) if name.startswith(BEYOND[:2])]


@pytest.mark.parametrize("path", EXPORT, ids=relative)
def test_export_knows_nothing_of_calibration(path: Path):
    assert not [name for name in imports(path) if name.startswith("latentrt.calibration")]


def test_importing_calibration_loads_no_torch():
    modules = ", ".join(f"latentrt.calibration.{path.stem}" for path in CALIBRATION if path.stem != "__init__")
    code = f"import sys, {modules}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {"torch", "diffusers", "transformers", "scipy"}


def modules() -> dict[str, Path]:
    """Files by the full names that they are imported by."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            *inner, name = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *inner, *([] if name == "__init__" else [name])])] = path
    return found


MODULES = modules()


def rooms() -> dict[str, int]:
    """The line of docs/architecture.md that each room stands in, such as `runtime/text`."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    lines, found, package = text[text.index("## The rooms") : text.index("## The way")].splitlines(), {}, ""
    for number, line in enumerate(lines):
        names = re.findall(r"`([\w/]+)`", line.split("|")[1]) if line.startswith("| `") else []
        if names and names[0].endswith("/"):
            package = names[0]
        else:
            found |= {name if name == package.rstrip("/") else package + name: number for name in names}
    return found


ROOMS = rooms()


def room_of(path: Path) -> str:
    """The innermost room with a line of its own."""
    place = path.relative_to(ROOT).with_suffix("")
    return next((str(part) for part in (place, *place.parents) if str(part) in ROOMS), place.parts[0])


def imported(path: Path) -> set[str]:
    """Full names of our modules that a file imports, `from package import module` too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names.values()}
    return found & MODULES.keys()


def upwards(path: Path) -> list[str]:
    """What a file imports from rooms that do not stand above its own in the document."""
    own = room_of(path)
    others = {name: room_of(MODULES[name]) for name in imported(path)}
    return [
        f"{own} -> {room} ({name})"
        for name, room in others.items()
        if room != own and room.split("/")[0] == own.split("/")[0] and not ROOMS[room] < ROOMS[own]
    ]


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in (*RUNTIME, *EXPORT, *SERVING)
        if path not in (ROOT / "export/__init__.py", ROOT / "serving/__init__.py")
    ],
    ids=relative,
)
def test_a_room_imports_what_stands_above_it(path: Path):
    assert room_of(path) in ROOMS, "docs/architecture.md has no line for it"
    assert not upwards(path)


def test_an_arrow_that_leads_upwards_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = ROOT / "runtime" / "backends" / "probe.py"
    for line, seen in (
        ("from latentrt.request import Request", True),
        ("def f():\n    from latentrt.denoise import batch", True),
        ("import latentrt.text.chunking", True),
        ("from latentrt import graph", False),
    ):
        monkeypatch.setattr(Path, "read_text", lambda self, line=line: line)
        assert bool(upwards(path)) is seen, line


def test_every_room_is_there_and_none_is_overcrowded():
    for room in ROOMS:
        assert (ROOT / room).is_dir() or (ROOT / f"{room}.py").is_file(), room
    for folder in {path.parent for path in (*RUNTIME, *EXPORT, *SERVING)}:
        assert len(list(folder.glob("*.py"))) <= MOST_MODULES, folder


def comparisons(tree: ast.AST) -> Iterator[str]:
    """Texts that something is compared with: by operators, `in`, `match`, and methods of text."""
    for node in ast.walk(tree):
        compared: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            compared = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            compared = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SEARCHES:
            compared = [*node.args]
        for each in compared:
            inner = each.elts if isinstance(each, ast.Tuple | ast.List | ast.Set) else [each]
            texts = (one.value for one in inner if isinstance(one, ast.Constant) and isinstance(one.value, str))
            yield from (text for text in texts if text not in SAMPLERS)  # one is called lcm


@pytest.mark.parametrize("path", [*RUNTIME, *EXPORT, *CALIBRATION, *SERVING], ids=relative)
def test_no_code_compares_the_name_of_a_family(path: Path):
    assert not [text for text in comparisons(ast.parse(path.read_text())) if FAMILY.fullmatch(text)]


@pytest.mark.parametrize(
    "code",
    [
        'name == "sdxl"',
        '"StableDiffusionXL" == name',
        'name in ("sd15", "flux")',
        'name.startswith("sd3")',
        'name.startswith(("sd", "lcm"))',
        'match name:\n    case "sdxl-turbo":\n        pass',
        '"sdxl" in name',
    ],
)
def test_a_comparison_with_a_family_is_seen(code: str):
    assert [text for text in comparisons(ast.parse(code)) if FAMILY.fullmatch(text)]


def test_no_folder_shadows_the_package():
    assert not (ROOT / "latentrt").exists()


def test_every_package_is_listed_for_the_wheel():
    listed = (ROOT / "pyproject.toml").read_text()
    for base, package in ((ROOT / folder, name) for folder, name in PACKAGES.items()):
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


def test_every_file_with_a_tolerance_is_tried_under_several_instruction_sets():
    listed = {name.partition("::")[0] for name in (*NUMERIC, *WITHOUT_KERNELS)}
    assert {name for name in listed if not (ROOT / name).is_file()} == set()
    tolerant = {relative(path) for path in ROOT.glob("tests/**/test_*.py") if TOLERANCE.search(path.read_text())}
    assert tolerant - listed - {relative(Path(__file__))} == set()


def test_files_that_begin_early_are_there():
    assert len(LONGEST) == len(set(LONGEST))
    assert {name for name in LONGEST if not (ROOT / "tests" / name).is_file()} == set()
