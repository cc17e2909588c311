"""Versions that are too old are named with what is needed, whichever package and extra it is."""

import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from latentrt import backends
from latentrt.environment import floors
from latentrt.environment.requirement import Requirement as Needs
from latentrt.environment.requirement import check_requirements
from latentrt.errors import EnvironmentLacks

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
USED = sorted({extra for row in backends.BACKENDS for extra in row.extras} | {"convert", "calibrate", "export"})


def stated(extra: str | None) -> dict[str, str]:
    """Floors by distribution, read by the reference for requirements."""
    found: dict[str, str] = {}
    for text in [*PROJECT["dependencies"], *EXTRAS.get(extra or "", [])]:
        requirement = Requirement(text)
        if requirement.name == "latentrt":
            for named in requirement.extras:
                found |= stated(named)
        else:
            (clause,) = requirement.specifier
            assert clause.operator == ">="
            found[requirement.name] = clause.version
    return found


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The metadata of pyproject.toml as it is now: an editable installation may be of an older one."""
    rows = [*PROJECT["dependencies"], *(f'{text}; extra == "{extra}"' for extra in USED for text in EXTRAS[extra])]
    monkeypatch.setattr(floors, "_requirements", lambda: rows)
    floors.floors.cache_clear()
    yield
    floors.floors.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Makes other versions look installed."""
    real = metadata.version
    monkeypatch.setattr(floors.metadata, "version", lambda name: versions.get(name.replace("-", "_")) or real(name))


@pytest.mark.parametrize("extra", [None, *USED])
def test_floors_are_those_of_pyproject(extra: str | None, project):
    assert {floor.name: floor.version for floor in floors.floors(extra)} == stated(extra)


@pytest.mark.parametrize(("extra", "name"), [(extra, name) for extra in USED for name in stated(extra)])
def test_every_one_below_its_floor_is_named(extra: str, name: str, project, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(floors.Floor, "found", lambda floor: {name: "0.0.9"}.get(floor.name))
    with pytest.raises(EnvironmentLacks, match=rf"{name} 0\.0\.9 is too old.*pip install \"{name}>="):
        floors.check_versions(extra, what="this")
    monkeypatch.setattr(floors.Floor, "found", lambda floor: {name: stated(extra)[name]}.get(floor.name))
    floors.check_versions(extra, what="this")


@pytest.mark.parametrize("versions", ["2026.1.0 2026.2", "2.0rc1 2.0.1", "1.9.9 1.10", "25.12 26", "2.12.9+cpu 2.13"])
def test_versions_are_ordered_as_packaging_orders_them(versions: str):
    low, high = versions.split()
    assert Version(low) < Version(high)
    assert floors._release(low) < floors._release(high)
    assert floors._release(f"{high}.0") == floors._release(high)


def test_a_backend_that_is_too_old_is_no_fault_of_the_bundle(project, monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, openvino="2026.1.0")
    with pytest.raises(EnvironmentLacks, match=r"needs openvino 2026\.2, and openvino 2026\.1\.0 is too old"):
        backends.choose("openvino")


def test_the_extra_of_another_device_has_a_floor_too(project, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(floors.Floor, "found", lambda floor: {"onnxruntime-gpu": "1.20.0"}.get(floor.name))
    with pytest.raises(EnvironmentLacks, match=r"onnxruntime-gpu 1\.20\.0 is too old"):
        backends.choose("onnxruntime")


def test_auto_passes_over_one_that_is_too_old_and_says_so(project, monkeypatch: pytest.MonkeyPatch, caplog):
    install(monkeypatch, openvino="2026.0.0")
    assert backends.choose("auto").name == "onnxruntime"
    assert "openvino 2026.0.0 is too old" in caplog.text
    install(monkeypatch, openvino="2026.0.0", onnxruntime="1.20.0")
    with pytest.raises(EnvironmentLacks, match="openvino 2026"):
        backends.choose("auto")


def test_a_command_says_so_too(project, monkeypatch: pytest.MonkeyPatch):
    install(monkeypatch, onnx="1.19.1")
    with pytest.raises(EnvironmentLacks, match=r"latentrt convert .*onnx 1\.20.*1\.19\.1"):
        check_requirements("latentrt convert", [Needs(extra="convert", packages=("onnx",))])


def test_what_is_not_installed_as_a_distribution_is_not_judged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(floors, "DISTRIBUTION", "a-distribution-of-nobody")
    floors.floors.cache_clear()
    assert floors.floors("openvino") == ()
    floors.floors.cache_clear()
