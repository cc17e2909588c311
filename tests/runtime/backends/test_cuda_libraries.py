"""Where CUDA's libraries are looked for; what they do needs a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from latentrt.backends.cuda_libraries import load_cuda_libraries

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
