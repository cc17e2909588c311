"""Servers that tests share or have for themselves."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from live_server import Live, Serve, serving

LOCALLY = pytest.param("ray-locally", marks=pytest.mark.ray)
ON_RAY = pytest.param("ray", marks=pytest.mark.ray)


@pytest.fixture(scope="module", params=["alone", LOCALLY, ON_RAY])
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server without a key; a test leaves its gate open. It is one process, or in Ray Serve's local testing mode, or
    replicas behind Ray's proxy."""
    with way(request.param)(tmp_path_factory.mktemp("live")) as made:
        yield made


@pytest.fixture(params=["alone", LOCALLY])
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serve]:
    """Makes servers that one test has for itself."""
    with ExitStack() as stack:

        def make(settings=None, **options) -> Live:
            folder = tmp_path / f"server{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            return stack.enter_context(way(request.param)(folder, settings, **options))

        yield make


def way(name: str):
    if name == "alone":
        return serving
    import ray_server

    return {"ray-locally": ray_server.serving_locally, "ray": ray_server.serving_on_ray}[name]
