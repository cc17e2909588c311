"""A bundle travels without its weights and is whole again with the checkpoint's."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu.carry import main, pack, unpack
from latentrt.bundle import Bundle
from latentrt.errors import BundleError
from latentrt.export.checkpoint.family import read_family
from latentrt.export.checkpoint.folder import Checkpoint
from latentrt.export.graphs.components import component_specs
from latentrt.export.parity.components import compare, reference_runs


@pytest.fixture(scope="module")
def packed(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(shapes_bundle, tmp_path_factory.mktemp("packed") / "shapes")


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_what_travels_is_small(packed: Path, shapes_bundle: Path):
    assert size_of(packed) < 2_000_000 < 20_000_000 < size_of(shapes_bundle)
    assert not list(packed.rglob("*.weights"))


def test_the_same_checkpoint_gives_the_same_bytes(packed, shapes_bundle: Path, shapes_checkpoint: Path, tmp_path: Path):
    made = Bundle.open(unpack(packed, shapes_checkpoint, tmp_path / "again"))
    made.verify()
    assert made.manifest["files"] == Bundle.open(shapes_bundle).manifest["files"]


def test_other_weights_of_the_same_shapes_take_their_place(packed: Path, shapes_checkpoint: Path, tmp_path: Path):
    """As if another torch had drawn other random numbers: small weights, inside the graph, are replaced too."""
    other = shutil.copytree(shapes_checkpoint, tmp_path / "other")
    path = other / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: value * 0.98 + 0.01 for name, value in load_file(path).items()}, path)
    made = Bundle.open(unpack(packed, other, tmp_path / "made"))
    made.verify()
    graph = made.component("decoder").graph
    for checkpoint, passes in ((other, True), (shapes_checkpoint, False)):
        source = Checkpoint.open(checkpoint)
        (spec,) = [spec for spec in component_specs(source, read_family(source)) if spec.name == "decoder"]
        feed = {"latent": np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)}
        runs = reference_runs(spec.reference(), spec.inputs, cases=[("one image", feed)])
        assert [result.passed for result in compare("decoder", graph, runs)] == [passes]


def test_a_checkpoint_of_another_size_is_refused(packed: Path, tiny_checkpoint: Path, tmp_path: Path):
    with pytest.raises(BundleError, match=r"in the checkpoint; expected|has no"):
        unpack(packed, tiny_checkpoint, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_the_command_line_says_what_it_made_and_what_is_wrong(packed, shapes_bundle: Path, tmp_path: Path, capsys):
    assert main(["pack", str(shapes_bundle), "-o", str(tmp_path / "p")]) == 0
    assert json.loads((tmp_path / "p" / "bundle.json").read_text())["format"] == "latentrt-bundle"
    assert main(["pack", str(shapes_bundle), "-o", str(tmp_path / "p")]) == 2
    assert "exists; expected a new path" in capsys.readouterr().err
    assert main(["unpack", str(tmp_path), "--checkpoint", "x", "-o", str(tmp_path / "q")]) == 2
    assert "expected a folder made by `carry pack`" in capsys.readouterr().err
