"""Fixtures in the place of `conftest`'s, which imports torch: the one bundle that `lowest.py` is given."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shapes_bundle() -> Path:
    return Path(os.environ["LOWEST_BUNDLE"])


@pytest.fixture(scope="session")
def tiny_bundle(shapes_bundle: Path) -> Path:
    return shapes_bundle


def _not_here() -> Path:
    pytest.skip("this bundle is made with torch")


controlled_bundle = pytest.fixture(scope="session", name="controlled_bundle")(_not_here)
shapes_fp16 = pytest.fixture(scope="session", name="shapes_fp16")(_not_here)
shapes_bf16 = pytest.fixture(scope="session", name="shapes_bf16")(_not_here)
