"""Where CUDA's libraries are looked for, and what is said of those that are missing; what they do needs a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from latentrt.backends.cuda.api import Cuda
from latentrt.backends.cuda.libraries import (
    check_cuda_libraries,
    load_cuda_libraries,
    needed_libraries,
    open_cudart,
)
from latentrt.errors import EnvironmentLacks

WHEELS = {"one": ["cu13/lib/libcudart.so.13", "cu13/lib/libcublasLt.so.13"], "two": ["cudnn/lib/libcudnn.so.9"]}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for place, files in WHEELS.items():
        for file in files:
            path = tmp_path / place / "nvidia" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return [tmp_path / place / "nvidia" for place in WHEELS]


def test_libraries_of_several_folders_of_packages_are_loaded_in_order(folders: list[Path]):
    asked: list[str] = []
    found = load_cuda_libraries(folders, load=asked.append)
    assert [path.name for path in found] == ["libcudart.so.13", "libcublasLt.so.13", "libcudnn.so.9"]
    assert asked == [str(path) for path in found]


def test_a_library_that_cannot_be_loaded_is_passed_over_and_logged(
    folders: list[Path], caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="latentrt")
    assert load_cuda_libraries(folders) == [], "empty files are no libraries"
    assert "libcudart.so.13 cannot be loaded" in caplog.text


def test_every_folder_of_the_namespace_is_looked_into(folders: list[Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(folder.parent) for folder in folders])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert len(load_cuda_libraries(load=lambda path: None)) == 3


def present(*names: str):
    """A loader that finds these files and no others."""

    def load(path: str) -> None:
        if Path(path).name not in names or path == Path(path).name:
            raise OSError(f"{path}: cannot open shared object file")

    return load


def test_all_that_is_needed_is_found_in_the_wheels(folders: list[Path]):
    names = ["libcudnn.so.9", "libcudart.so.13", "libcublasLt.so.13"]
    check_cuda_libraries(names, who="onnxruntime", folders=folders, load=present(*names))


@pytest.mark.parametrize(
    ("name", "wheel"),
    [
        ("libcublas.so.13", "nvidia-cublas==13.*"),
        ("libcublas.so.12", "nvidia-cublas-cu12"),
        ("libcudart.so.12", "nvidia-cuda-runtime-cu12"),
        ("libcudnn.so.10", "nvidia-cudnn-cu13==10.*"),
        ("libcurand.so.10", "nvidia-curand"),
    ],
)
def test_a_missing_library_is_named_with_its_wheel_and_where_was_looked(name: str, wheel: str, folders: list[Path]):
    with pytest.raises(EnvironmentLacks) as caught:
        check_cuda_libraries([name], who="onnxruntime 1.31.1", folders=folders, load=present("libcudart.so.13"))
    for part in (f"{name} cannot be loaded", "onnxruntime 1.31.1", wheel, *map(str, folders), "LD_LIBRARY_PATH"):
        assert part in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_library_of_another_major_version_is_told(folders: list[Path]):
    with pytest.raises(EnvironmentLacks, match=r"libcudart\.so\.12 cannot be loaded .*there is libcudart\.so\.13"):
        check_cuda_libraries(["libcudart.so.12"], who="x", folders=folders, load=present("libcudart.so.13"))


def test_without_a_driver_nothing_else_is_asked_for(folders: list[Path]):
    with pytest.raises(EnvironmentLacks, match="no NVIDIA driver is installed"):
        check_cuda_libraries(["libcublas.so.13", "libcuda.so.1"], who="x", folders=folders, load=present())


def test_the_names_are_read_from_the_file_that_needs_them(tmp_path: Path):
    """Of an ELF file that is there: the runtime's own wheels hold one, which needs libraries of the system."""
    import numpy

    (extension, *_) = Path(numpy.__file__).parent.rglob("_multiarray_umath*.so")
    assert needed_libraries(extension) == ["libcudnn.so.9"], "it needs none of CUDA; that one is opened by name"
    other = tmp_path / "libother.so"
    other.write_bytes(b"MZ, a file of another system")
    with pytest.raises(EnvironmentLacks, match="no library of this system"):
        needed_libraries(other)
    data = bytearray(extension.read_bytes())
    at = data.index(b"libm.so.6\0")
    data[at : at + 10] = b"libcudart\0"  # as long
    other.write_bytes(data)
    assert needed_libraries(other) == ["libcudart", "libcudnn.so.9"]


def test_the_real_runtime_answers_without_a_driver():
    load_cuda_libraries()
    try:
        cudart = open_cudart(Path("no provider"))
    except EnvironmentLacks:
        pytest.skip("needs libcudart.so.13, of the wheel nvidia-cuda-runtime")
    if cudart.cudaGetDeviceCount()[0] == 0:
        pytest.skip("there is a GPU")
    code, version = cudart.cudaRuntimeGetVersion()
    assert (code, version // 1000) == (0, 13)
    assert b"driver" in cudart.cudaGetErrorString(35)[1]
    with pytest.raises(EnvironmentLacks, match="NVIDIA"):
        Cuda(cudart)
