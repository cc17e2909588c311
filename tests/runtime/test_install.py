"""How what is missing is installed: from a checkout, and where no index has this distribution."""

import importlib
import importlib.metadata
import json
from pathlib import Path

import pytest

from latentrt.environment import floors, install
from latentrt.environment.requirement import importable

REQUIRES = [
    "numpy>=2.0",
    'onnx>=1.20; extra == "convert"',
    'onnx-ir>=1.0; extra == "convert"',
    'latentrt[convert]; extra == "export"',
    "torch>=2.9; extra == 'export'",
    'latentrt[tensorrt-rtx]; (sys_platform == "linux") and extra == "dev"',
    'tensorrt-rtx-cu13>=1.7; extra == "tensorrt-rtx"',
]


@pytest.fixture(autouse=True)
def no_memory():
    """Of what the metadata said."""
    floors.floors.cache_clear()
    yield
    floors.floors.cache_clear()


class Distribution:
    def __init__(self, origin: dict | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


def installed(monkeypatch: pytest.MonkeyPatch, origin: dict | None) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution(origin))
    monkeypatch.setattr(floors, "_requirements", lambda: REQUIRES)


def test_a_checkout_is_installed_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder = tmp_path / "a checkout"
    folder.mkdir()
    (folder / "pyproject.toml").touch()
    installed(monkeypatch, {"url": folder.as_uri(), "dir_info": {"editable": True}})
    assert install.install_command("export") == f'pip install --editable "{folder}[export]"'


@pytest.mark.parametrize("origin", [None, {"url": "file:///wheels/latentrt-0.1.0-py3-none-any.whl", "archive_info": {}},
                                    {"url": "file:///gone", "dir_info": {"editable": True}}])  # fmt: skip
def test_elsewhere_the_packages_are_named(monkeypatch: pytest.MonkeyPatch, origin: dict | None):
    """All of them at once: `export` includes `convert`."""
    installed(monkeypatch, origin)
    assert install.install_command("export") == 'pip install "onnx>=1.20" "onnx-ir>=1.0" "torch>=2.9"'
    assert install.extra_packages("dev") == ("tensorrt-rtx-cu13>=1.7",)


def test_a_bare_copy_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    def lost(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", lost)
    monkeypatch.setattr(floors, "_requirements", list)
    assert "'openvino'" in install.install_command("openvino")


def test_several_extras_are_one_command(monkeypatch: pytest.MonkeyPatch):
    installed(monkeypatch, None)
    command = install.install_command("convert", "tensorrt-rtx")
    assert command == 'pip install "onnx>=1.20" "onnx-ir>=1.0" "tensorrt-rtx-cu13>=1.7"'


@pytest.mark.parametrize(
    ("there", "begins"),
    [
        ((), "pip install"),
        (("onnxruntime",), "pip uninstall onnxruntime && pip install"),
        (("onnxruntime", "onnxruntime-gpu"), "pip uninstall onnxruntime onnxruntime-gpu && pip install"),
    ],
)
def test_of_wheels_that_write_into_one_package_all_go_first(there, begins, monkeypatch: pytest.MonkeyPatch):
    def distribution(name: str) -> Distribution:
        if name == "latentrt" or name in there:
            return Distribution(None)
        raise importlib.metadata.PackageNotFoundError(name)

    installed(monkeypatch, None)
    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    assert install.install_command("onnxruntime-gpu").startswith(begins)
    assert install.install_command("export").startswith("pip install")


def test_a_folder_that_was_left_behind_is_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Both wheels installed and one uninstalled: its files are gone for both."""
    (tmp_path / "left_behind" / "capi").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert not importable("left_behind")
    (tmp_path / "left_behind" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert importable("left_behind")


def test_every_extra_that_is_named_exists():
    declared = importlib.metadata.metadata("latentrt").get_all("Provides-Extra")
    assert {"openvino", "onnxruntime", "convert", "calibrate", "export"} <= set(declared)
    assert "torch" in " ".join(install.extra_packages("export"))
    assert "onnx-ir" in " ".join(install.extra_packages("calibrate"))
