"""Graphs that a backend compiles on first use lie in no bundle; `inspect` lists and `build --prune` removes them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import latentrt
from latentrt.bundle import Bundle
from latentrt.loading import compiled_folder

BRIEF = {"steps": 1, "size": (64, 64), "seed": 1}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "latentrt" / "compiled"


def test_they_are_kept_for_the_user_listed_and_pruned(cli: Callable[..., Any], bundle_copy: Path, cache: Path):
    with latentrt.load(bundle_copy, backend="openvino") as pipe:
        pipe.generate("a red circle", **BRIEF)
    assert not (bundle_copy / "engines" / "openvino").exists()
    (row,) = cli("inspect", bundle_copy, "--json").document["compiled_graphs"]
    assert row["backend"] == "openvino" and Path(row["folder"]).is_relative_to(cache)
    assert row["graphs"] == 3 and row["bytes"] > 0
    assert "compiled    openvino: 3 graphs" in cli("inspect", bundle_copy).out
    removed = cli("build", bundle_copy, "--backend", "openvino", "--prune", "--json")
    assert removed.code == 0 and removed.document["removed"] == [row]
    assert cli("inspect", bundle_copy, "--json").document["compiled_graphs"] == []


def test_those_that_lie_in_the_bundle_are_found_as_well(cli: Callable[..., Any], bundle_copy: Path, cache: Path):
    entry = bundle_copy / "engines" / "openvino" / f"{5:032x}"
    entry.mkdir(parents=True)
    (entry / "graph.blob").write_bytes(bytes(5000))
    (row,) = cli("inspect", bundle_copy, "--json").document["compiled_graphs"]
    assert (row["graphs"], row["bytes"], row["folder"]) == (1, 5000, str(entry.parent))
    assert cli("build", bundle_copy, "--backend", "openvino", "--prune").code == 0
    assert not entry.exists()


def test_copies_of_a_bundle_share_them_and_others_do_not(bundle_copy: Path, cache: Path, tmp_path: Path):
    twin = shutil.copytree(bundle_copy, tmp_path / "twin" / bundle_copy.name)
    first, second = (compiled_folder(Bundle.open(path)) for path in (bundle_copy, twin))
    assert first == second and first is not None and first.parent == cache
    manifest = twin / "bundle.json"
    manifest.write_text(manifest.read_text() + "\n")
    assert compiled_folder(Bundle.open(twin)) != first
