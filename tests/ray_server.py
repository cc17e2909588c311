"""Servers of fakes on Ray Serve: in this process (its local testing mode), or on a cluster of this machine's processes.

What runs in processes of Ray is imported there by this module's name: `cluster` puts this folder on their path.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from live_server import Gate, Live, free_port, running, until

from latentrt.environment.ray_cluster import import_ray
from latentrt.serving.ray_app import application
from latentrt.serving.ray_app.fleet import Fleet
from latentrt.serving.ray_app.front import Front
from latentrt.serving.ray_app.images import Images
from latentrt.serving.service import Service
from latentrt.testing import fake_pipeline

NAME = "latentrt"


def fake(path: str):
    """The pipeline of a bundle `FOLDER/SECONDS`, whose steps take so long."""
    folder = Path(path).parent if Path(path).parent.is_dir() else Path(tempfile.mkdtemp())
    (folder / "fake").mkdir(exist_ok=True)
    pipe = fake_pipeline(folder / "fake")
    engine, seconds = pipe.engines["step"], float(Path(path).name)
    made = engine.function

    def step(feed):
        time.sleep(seconds)
        return made(feed)

    engine.function = step
    return pipe


class FakeImages(Images):
    """Replicas of fakes."""

    gates: dict[str, Gate] | None = None

    def _check(self, config) -> None:
        pass

    def _ready(self, name) -> Service:
        return self._new_service(name, self._config)  # without the picture that counts would show

    def _new_service(self, name, config) -> Service:
        pipe = fake(config.models[name])
        service = Service({name: pipe}, queue=1 << 16, batch_gain=0, loras=config.loras)
        if self.gates is not None:
            self.gates[name] = Gate(pipe)
        return service

    def memory(self) -> tuple[str, int, list[str]]:
        """Its name, process, and the models that it has in memory."""
        return self.name, os.getpid(), list(self._opened)


class FakeFleet(Fleet):
    def _source(self, path):
        return fake(path)


class FakeFront(Front):
    """A front of fakes, which tells what it has."""

    made: "list[FakeFront] | None" = None
    settings = None

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        if self.made is not None:
            self.made.append(self)

    def _settings(self, config):
        return super()._settings(config) if self.settings is None else self.settings

    def _new_fleet(self, config, former):
        return FakeFleet(config, self._replicas, asyncio.get_running_loop(), former=former)

    def jobs(self) -> list[SimpleNamespace]:
        rows = self.fleet.jobs()
        return [
            SimpleNamespace(id=job.id, state=str(job.state), request=job.request, replica=job.replica) for job in rows
        ]


@contextmanager
def serving_locally(folder: Path, settings=None, **options) -> Iterator[Live]:
    """A service of fakes in Ray Serve's local testing mode, behind HTTP of our own: it has no proxies."""
    import_ray()
    from ray import serve

    gates, fronts = {}, []
    images = type("LocalImages", (FakeImages,), {"gates": gates})
    front = type("LocalFront", (FakeFront,), {"made": fronts, "settings": settings})
    given = {"queue": options.get("queue", 64), "keep_s": options.get("keep_s", 600)}
    given |= {"loras": {name: str(path) for name, path in options.get("loras", {}).items()}}
    args = {"models": {"fake": str(folder / "0")}, "open_to_everyone": True, **given}
    serve.run(application(args, images=images, front=front), _local_testing_mode=True)
    until(lambda: fronts[0].present is not None and "fake" in gates, "the configuration")
    (made,) = fronts

    async def present(scope, receive, send):
        await made.present(scope, receive, send)

    try:
        with running(present) as (url, seen):
            yield Live(url, made.fleet, gates["fake"], seen, made.doors, full=503, lag_s=0.5)
    finally:
        gates["fake"].open()
        made.fleet.close()


class Remote:
    """What tests ask a service for, of one behind a handle of its front."""

    def __init__(self, handle) -> None:
        self._handle = handle
        self.models = fake_models()

    def jobs(self):
        return self._handle.jobs.remote().result()

    def job(self, id: str):
        found = next(job for job in self.jobs() if job.id == id)
        found.wait = lambda seconds: until(lambda: self.job(id).state in ("done", "failed", "cancelled")) is None
        return found


def fake_models():
    service = Service({"fake": fake("/fake/0")})
    try:
        return service.models
    finally:
        service.close()


@contextmanager
def cluster(cpus: int = 2) -> Iterator[object]:
    """A Ray cluster of this machine's processes, with HTTP on a port of its own; gives `ray.serve`."""
    tests = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    ray = import_ray()
    from ray import serve

    ray.init(
        "local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=100 << 20,
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
        yield serve
        serve.shutdown()
    finally:
        ray.shutdown()


ARGS = {
    "models": {"fake": "/fake/0"},
    "open_to_everyone": True,
    "replicas": {
        "num_replicas": 2,
        "ray_actor_options": {"num_cpus": 0.5},
        "health_check_period_s": 1,
        "graceful_shutdown_wait_loop_s": 0.2,
        "graceful_shutdown_timeout_s": 60,
    },
    "front": {"ray_actor_options": {"num_cpus": 0.1}, "graceful_shutdown_wait_loop_s": 0.2},
}


def address(serve) -> str:
    from ray.serve._private.api import _get_global_client

    options = _get_global_client().http_config
    return f"http://127.0.0.1:{options.port}"


def build_fakes(args):
    """As `latentrt.serving.ray_app:build`."""
    return application(args, images=FakeImages, front=FakeFront)


def deploy(serve, **changed):
    """Fakes as an application: two replicas of half a core."""
    args = ARGS | changed
    serve.run(application(args, images=FakeImages, front=FakeFront), name=NAME, route_prefix="/")
    return serve.get_app_handle(NAME)


@contextmanager
def serving_on_ray(folder: Path, settings=None) -> Iterator[Live]:
    """A service of fakes on a cluster, behind Ray's own proxy."""
    assert settings is None
    with cluster() as serve:
        handle = deploy(serve)
        yield Live(address(serve), Remote(handle), None, [], None, full=503, inside=False)
