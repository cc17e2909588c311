"""Checkpoints and bundles that tests share. They are made once a session and read-only: copy what you damage."""

from pathlib import Path

import pytest

from latentrt.bundle import Bundle
from latentrt.export.checkpoint import Checkpoint
from latentrt.export.package import export_bundle
from latentrt.export.precision import convert_bundle
from latentrt.export.synthetic import make_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shapes_checkpoint() -> Path:
    """The trained checkpoint that ships: its outputs depend on every input, as random weights' hardly do."""
    return ROOT / "examples" / "shapes" / "checkpoint"


@pytest.fixture(scope="session")
def shapes_bundle(shapes_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `shapes_checkpoint`, its components compared with torch."""
    output = tmp_path_factory.mktemp("bundles") / "shapes"
    return export_bundle(Checkpoint.open(shapes_checkpoint), output).root


@pytest.fixture(scope="session")
def shapes_fp16(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shapes_bundle` in fp16, with the quick range check."""
    return _converted(shapes_bundle, tmp_path_factory, "fp16")


@pytest.fixture(scope="session")
def shapes_bf16(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`shapes_bundle` in bf16."""
    return _converted(shapes_bundle, tmp_path_factory, "bf16")


def _converted(bundle: Path, tmp_path_factory: pytest.TempPathFactory, precision: str) -> Path:
    source = Bundle.open(bundle)
    output = tmp_path_factory.mktemp("bundles") / f"shapes-{precision}"
    return convert_bundle(source, output, precision=dict.fromkeys(source.components, precision)).root


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the architecture of Stable Diffusion 1.5, at a thousandth of its size."""
    return make_checkpoint("tiny-sd15", tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def tiny_bundle(shapes_bundle: Path) -> Path:
    """A bundle for tests to which the weights do not matter."""
    return shapes_bundle
