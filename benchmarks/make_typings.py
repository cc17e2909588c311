"""Type stubs of TensorRT's Python API, from the bindings themselves: what mypy knows of modules that need libraries.

python benchmarks/make_typings.py [--tensorrt 11.4.0.106] [-o typings]

Downloads the wheel of the bindings alone, gives it libraries that do nothing (a C compiler is needed), lets
pybind11-stubgen (`pip install pybind11-stubgen`) read the module, and keeps the classes and members that the code uses,
without texts: one that is newly used takes this command.
"""

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection
from pathlib import Path

# What is used, and what those take or give; of all else an annotation says nothing.
CLASSES = (
    *("Builder", "BuilderFlag", "CudaGraphStrategy", "DataType", "DynamicShapesKernelSpecializationStrategy"),
    *("ExecutionContextAllocationStrategy", "IAttention", "IAttentionBoundaryLayer", "IBuilderConfig", "ICudaEngine"),
    *("IExecutionContext", "IHostMemory", "ILayer", "ILogger", "INetworkDefinition", "IOptimizationProfile"),
    *("IProgressMonitor", "IRuntimeCache", "IRuntimeConfig", "ITensor", "ITimingCache", "LayerType", "OnnxParser"),
    *("ParserError", "Runtime", "TensorIOMode", "TensorLocation", "ComputeCapability"),
)
USERS = (Path("runtime/backends/tensorrt"), Path("export/engines"))

_MADE = ("Builder", "ILogger", "IProgressMonitor", "OnnxParser", "Runtime")  # by name; the rest is given by others
_BUILTINS = {
    "bool",
    "int",
    "float",
    "str",
    "bytes",
    "list",
    "tuple",
    "None",
    "object",
    "memoryview",
    "Severity",
    "typing",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tensorrt", default="11.4.0.106", metavar="VERSION", help="of tensorrt-cu13-bindings, or cu12"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("typings"), metavar="FOLDER")
    options = parser.parse_args()
    major = options.tensorrt.partition(".")[0]
    wheel = f"tensorrt-cu{13 if int(major) >= 11 else 12}-bindings=={options.tensorrt}"
    with tempfile.TemporaryDirectory() as folder:
        packages, libraries = _unpacked(wheel, Path(folder))
        text = _stubs("tensorrt_bindings.tensorrt", Path(folder), packages=packages, libraries=libraries)
        _write(options.output / f"tensorrt{major}" / "tensorrt", text, wheel)
        if major == "11":
            import tensorrt_rtx

            text = _stubs("tensorrt_rtx_bindings.tensorrt_rtx", Path(folder))
            _write(
                options.output / "rtx" / "tensorrt_rtx", text, f"tensorrt-rtx-cu13-bindings=={tensorrt_rtx.__version__}"
            )
    return 0


def _unpacked(wheel: str, folder: Path) -> tuple[Path, Path]:
    """The bindings, and libraries with the names and functions that they want."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wheel]
    subprocess.run(pip, check=True)
    packages, libraries = folder / "packages", folder / "libraries"
    libraries.mkdir()
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        file.extractall(packages)
    (module,) = packages.rglob("tensorrt.so")
    dynamic = subprocess.run(["readelf", "-d", module], capture_output=True, text=True, check=True).stdout
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", module], capture_output=True, text=True, check=True
    ).stdout
    names = re.findall(r" U ((?:create|get[A-Z]|init)\w+)$", undefined, re.MULTILINE)
    source = folder / "nothing.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in names))
    for library in re.findall(r"\[(libnv\w+\.so\.\d+)\]", dynamic):
        command = ["cc", "-w", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", libraries / library, source]
        subprocess.run(command, check=True)
    return packages, libraries


def _stubs(module: str, folder: Path, *, packages: Path | None = None, libraries: Path | None = None) -> str:
    paths = [str(packages)] if packages is not None else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    environment |= {"LD_LIBRARY_PATH": str(libraries)} if libraries is not None else {}
    command = [sys.executable, "-m", "pybind11_stubgen", module, "-o", str(folder / "stubs")]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return (folder / "stubs" / Path(*module.split("."))).with_suffix(".pyi").read_text(encoding="utf-8")


def _write(package: Path, text: str, origin: str) -> None:
    package.mkdir(parents=True, exist_ok=True)
    head = f'"""Of {origin}, by benchmarks/make_typings.py: what is used of it, without texts."""\n\n'
    (package / "__init__.pyi").write_text(head + reduced(text, used_names()), encoding="utf-8")


def used_names() -> set[str]:
    """Every attribute that the code which drives TensorRT asks for, of whatever."""
    files = [path for folder in USERS for path in sorted(folder.glob("*.py"))]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    names = {each.attr for tree in trees for each in ast.walk(tree) if isinstance(each, ast.Attribute)}
    texts = {str(each.value) for tree in trees for each in ast.walk(tree) if isinstance(each, ast.Constant)}
    return names | texts | {"__init__", "__buffer__", "SM89"}


def reduced(text: str, used: Collection[str]) -> str:
    """The classes of `CLASSES` in a stub file, with the members that are used, without texts."""
    pieces = re.split(r"^(?=class )", text, flags=re.MULTILINE)
    kept = [piece for piece in pieces if re.split(r"[ (:]", piece + " ", maxsplit=2)[1] in CLASSES]
    classes = [node for piece in kept for node in ast.parse(_python(piece)).body if isinstance(node, ast.ClassDef)]
    known = {node.name for node in classes}
    for node in classes:
        node.bases = [base for base in node.bases if isinstance(base, ast.Name) and base.id in known]
        if node.name == "IHostMemory":  # it is a buffer, which pybind11 does not say
            node.body += ast.parse("def __buffer__(self, flags: int, /) -> memoryview: ...").body
        _thin(node, known | _BUILTINS, used)
    body = "\n\n".join(ast.unparse(node) for node in classes)
    body = re.sub(r":\n\s+\.\.\.$", ": ...", re.sub(r"\n\n(?=    )", "\n", body), flags=re.MULTILINE)
    return f"import typing\nfrom typing import Any\n\n__version__: str\n\n{body}\n"


def _python(text: str) -> str:
    """Without signatures that are none: keywords as names, defaults before parameters that have none."""

    def checked(line: str) -> str:
        found = re.match(r"(\s+)def (\w+)\(.*:$", line)
        if found is None:
            return line
        try:
            ast.parse(line.strip() + " ...")
        except SyntaxError:
            return f"{found[1]}def {found[2]}(self, *arguments: typing.Any) -> typing.Any:"
        return line

    return "\n".join(map(checked, text.splitlines()))


def _thin(node: ast.ClassDef, known: set[str], used: Collection[str]) -> None:
    members: list[ast.stmt] = []
    for each in node.body:
        if isinstance(each, ast.ClassDef):
            _thin(each, known, used)
        elif isinstance(each, ast.FunctionDef):
            if each.name not in used or (each.name == "__init__" and node.name not in _MADE):
                continue
            each.body = [ast.Expr(ast.Constant(...))]
            arguments = [*each.args.posonlyargs, *each.args.args, *each.args.kwonlyargs]
            static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in each.decorator_list)
            for argument in arguments if static else arguments[1:]:
                argument.annotation = _plain(argument.annotation, known)
            each.args.defaults = [ast.Constant(...) for _ in each.args.defaults]
            each.args.kw_defaults = [
                None if default is None else ast.Constant(...) for default in each.args.kw_defaults
            ]
            each.returns = _plain(each.returns, known)
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.target.id in used:
            each.annotation, each.value = _plain(each.annotation, known), None
        else:
            continue
        members.append(each)
    # Overloads that say the same once their own classes are unknown are one function that takes anything.
    vague = {
        each.name
        for each in members
        if isinstance(each, ast.FunctionDef) and _overloaded(each) and "Any" in ast.unparse(each.args)
    }
    for name in vague:
        first = next(i for i, each in enumerate(members) if isinstance(each, ast.FunctionDef) and each.name == name)
        members[first] = ast.parse(f"def {name}(self, *arguments: Any, **named: Any) -> Any: ...").body[0]
        members = [
            each
            for i, each in enumerate(members)
            if i == first or not (isinstance(each, ast.FunctionDef) and each.name == name)
        ]
    node.body = members or [ast.Expr(ast.Constant(...))]


def _overloaded(function: ast.FunctionDef) -> bool:
    return any("overload" in ast.unparse(mark) for mark in function.decorator_list)


def _plain(annotation: ast.expr | None, known: set[str]) -> ast.expr:
    """An annotation whose names are all known, or one that says nothing."""
    if annotation is None:
        return ast.Name("Any")
    nodes = list(ast.walk(annotation))
    subscripted = {id(each.value) for each in nodes if isinstance(each, ast.Subscript)}
    names = [each for each in nodes if isinstance(each, ast.Name)]
    bare = any(each.id in ("list", "tuple") and id(each) not in subscripted for each in names)
    constant = any(isinstance(each, ast.Constant) and each.value is not None for each in nodes)
    if {each.id for each in names} <= known and not bare and not constant:
        return annotation
    return ast.Name("Any")


if __name__ == "__main__":
    sys.exit(main())
