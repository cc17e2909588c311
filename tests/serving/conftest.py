"""Servers that tests share or have for themselves."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from live_server import Live, Serve, serving


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server without a key; a test leaves its gate open."""
    with serving(tmp_path_factory.mktemp("live")) as made:
        yield made


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Makes servers that one test has for itself."""
    with ExitStack() as stack:

        def make(settings=None, **options) -> Live:
            folder = tmp_path / f"server{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            return stack.enter_context(serving(folder, settings, **options))

        yield make
