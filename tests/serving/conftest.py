"""Servers that tests share or have for themselves."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from live_server import Live, Serve, serving

PROTOCOLS = ("test_openai", "test_sdapi", "test_tasks", "test_limits", "test_web")
ALONE = pytest.param("alone", id=pytest.HIDDEN_PARAM)
LOCALLY = pytest.param("ray-locally", marks=pytest.mark.ray)
ON_RAY = pytest.param("ray", marks=pytest.mark.ray)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What clients see is the same whatever a server runs on: one process, Ray Serve's local testing mode, or replicas
    behind Ray's proxy."""
    if metafunc.module.__name__ in PROTOCOLS:
        for fixture, ways in (("live", [ALONE, LOCALLY, ON_RAY]), ("serve", [ALONE, LOCALLY])):
            if fixture in metafunc.fixturenames:
                scope = "module" if fixture == "live" else "function"
                metafunc.parametrize(fixture, ways, indirect=True, scope=scope)


@pytest.fixture(scope="module")
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server without a key; a test leaves its gate open."""
    with way(getattr(request, "param", "alone"))(tmp_path_factory.mktemp("live")) as made:
        yield made


@pytest.fixture
def serve(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serve]:
    """Makes servers that one test has for itself."""
    with ExitStack() as stack:

        def make(settings=None, **options) -> Live:
            folder = tmp_path / f"server{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            return stack.enter_context(way(getattr(request, "param", "alone"))(folder, settings, **options))

        yield make


def way(name: str):
    if name == "alone":
        return serving
    import ray_server

    return {"ray-locally": ray_server.serving_locally, "ray": ray_server.serving_on_ray}[name]
