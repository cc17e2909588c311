"""Engines that are outdated are listed and removed; all others stay. Plans are the stand-in's but for one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from standin.engines import build

from latentrt import Bundle
from latentrt.backends.tensorrt.records import built_engines
from latentrt.cli import main
from latentrt.export.engines.prune import prune_engines
from latentrt.export.engines.variants import open_toolkit, variant

RTX = variant("tensorrt-rtx")
pytestmark = pytest.mark.skipif(not RTX.installed(), reason="TensorRT for RTX has wheels for x86-64 Linux and Windows")


@pytest.fixture
def bundle(shapes_bundle: Path, tmp_path: Path) -> Bundle:
    """A copy with four engines: of use, of another version, of another graph, of another variant."""
    root = shutil.copytree(shapes_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    bundle = Bundle.open(root)
    fill(bundle, root / "engines")
    return bundle


def fill(bundle: Bundle, folder: Path) -> None:
    here = open_toolkit(RTX).version
    step = bundle.component("step")
    other = replace(bundle, components={"step": replace(step, graph=replace(step.graph, digest="of another graph"))})
    build(bundle, folder, variant="tensorrt-rtx", version=here, components=("step",))
    build(bundle, folder, variant="tensorrt-rtx", version="1.6.0", components=("decoder",))
    build(other, folder, variant="tensorrt-rtx", version=here, components=("step",))
    build(bundle, folder, variant="tensorrt", version="10.0", components=("step",))


def there(folder: Path) -> list[tuple[str, str, bool]]:
    """Component, version, and whether the graph is the bundle's, of each engine."""
    return sorted(
        (found.record.component, found.record.version, found.record.graph != "of another graph")
        for name in ("tensorrt-rtx", "tensorrt")
        for found in built_engines(folder, name)
    )


def test_outdated_engines_are_removed_after_building_and_no_others(bundle: Bundle, capsys):
    here = open_toolkit(RTX).version
    folder = bundle.root / "engines"
    before = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    command = [
        "build",
        str(bundle.root),
        "--backend",
        "tensorrt-rtx",
        "--components",
        "text_encoder",
        "--size",
        "64x64",
    ]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == []
    assert len(there(folder)) == 5
    built = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) - before

    assert main([*command, "--prune", "--json"]) == 0
    out, err = capsys.readouterr()
    removed = {row["reason"]: row for row in json.loads(out)["removed"]}
    assert removed.keys() == {"its graph is not in the bundle", f"built with 1.6.0, and {here} is installed"}
    assert sum("removed: " in line for line in err.splitlines()) == 2
    assert there(folder) == sorted([("step", "10.0", True), ("step", here, True), ("text_encoder", here, True)])
    after = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert before + built - after == sum(row["bytes"] for row in removed.values())
    assert not any(Path(row["folder"]).exists() for row in removed.values())

    assert main([*command, "--prune"]) == 0
    assert capsys.readouterr().out.strip().endswith("; none was outdated")


def test_in_a_folder_of_several_bundles_unknown_graphs_stay(bundle: Bundle, tmp_path: Path):
    folder = tmp_path / "shared"
    fill(bundle, folder)
    (removed,) = prune_engines(bundle, backend="tensorrt-rtx", folder=folder)
    assert removed.built.record.version == "1.6.0"
    assert len(there(folder)) == 3


def test_inspect_lists_what_is_outdated(bundle: Bundle, capsys):
    """The other variant is not installed, so that of its engines only the graph can be judged."""
    assert main(["inspect", str(bundle.root), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["outdated_engines"]
    assert {(row["component"], row["backend"], row["version"] == "1.6.0") for row in rows} == {
        ("decoder", "tensorrt-rtx", True),
        ("step", "tensorrt-rtx", False),
    }
    assert main(["inspect", str(bundle.root)]) == 0
    text = capsys.readouterr().out
    assert "outdated    tensorrt-rtx: step, " in text
    assert ": its graph is not in the bundle" in text
    assert f"latentrt build {bundle.root} --backend tensorrt-rtx --prune removes what is outdated" in text
    assert len(there(bundle.root / "engines")) == 4
