"""Datasets by a real Ray of two nodes in processes of this machine: the bytes of one process, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from latentrt.datasets.request_file import read_lines
from latentrt.datasets.shards import FORMS
from latentrt.datasets.target import Layout
from latentrt.environment.ray_cluster import connected, import_ray
from latentrt.errors import EnvironmentLacks
from latentrt.ray_data.opening import Opening
from latentrt.ray_data.resources import Wish
from latentrt.ray_data.run import RayDataset
from latentrt.request import Request

pytestmark = pytest.mark.ray

PROMPTS = [
    f"a {colour} {shape}" for colour in ("red", "blue", "green", "pink") for shape in ("circle", "star", "heart")
]
OPTIONS = ("--seed", "1", "--size", "64x64", "--steps", "4", "--backend", "onnxruntime", "--batch", "2", "--json")
ACTORS = ("--ray-actors", "2", "--ray-cpus", "0.5")
WAIT_S = 120


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and another node, with a core each."""
    import_ray()
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


Command = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def command(tiny_bundle: Path, prompts: Path) -> Command:
    """`latentrt generate` as a process."""

    def start(folder: Path, *more: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "latentrt.cli", "generate", str(tiny_bundle), "--prompts", str(prompts)]
        return subprocess.Popen(
            [*words, "-o", str(folder), *OPTIONS, *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture(scope="module")
def whole(command: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes without Ray."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    finish(command(folder))
    return contents(folder)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, err
    return dict(json.loads(out))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def images(folder: Path) -> dict[str, int]:
    """When each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}


def actors() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("MapBatches(Maker)" in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def wait_for(condition: Callable[[], Any]) -> Any:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen")


@pytest.fixture
def dataset(cluster: Any, tiny_bundle: Path, prompts: Path) -> Iterator[Callable[..., RayDataset]]:
    """The same from within a program."""
    opening = Opening(bundle=str(tiny_bundle), backend="onnxruntime")
    with connected(cluster.address) as ray:

        def make(
            folder: Path | str, *, actors: int = 2, cpus: float = 0.5, steps: int = 4, **options: Any
        ) -> RayDataset:
            defaults = Request("", size=(64, 64), steps=steps)
            lines, _ = read_lines(prompts.read_text().split("\n"), defaults=defaults, root=Path())
            wish = Wish(actors=actors, cpus=cpus)
            return RayDataset(ray, opening, lines, folder, wish=wish, seed=1, **options)

        yield make


@pytest.mark.parametrize(("count", "form"), [(3, None), (2, "parquet")])
def test_files_are_those_of_one_process(count, form, dataset, whole, tmp_path):
    layout = Layout(None if form is None else FORMS[form], shard=5)
    made = dataset(tmp_path, actors=count, layout=layout)
    assert sorted(name for part in made.make(batch=2) for name in part.names) == sorted(whole.keys() & images_of(whole))
    if form is not None:
        assert len(list(tmp_path.glob("images-*"))) == 3
        back = dataset(tmp_path, actors=count)
        assert list(back.make(batch=2)) == []
    assert contents(tmp_path) == whole


def images_of(files: dict[str, bytes]) -> set[str]:
    return {name for name in files if name.endswith(".png")}


def test_a_killed_worker_is_replaced_and_no_image_is_lost_or_made_twice(dataset, whole, tmp_path):
    names, before = [], {}
    for part in dataset(tmp_path).make(batch=2):
        if not names:
            before = images(tmp_path)
            for process in actors():
                process.kill()
        names += part.names
    assert sorted(names) == sorted(images_of(whole))
    assert before.items() <= images(tmp_path).items()
    assert contents(tmp_path) == whole


def test_a_killed_driver_goes_on_where_it_was(cluster, command, whole, tmp_path):
    folder = tmp_path / "out"
    first = command(folder, "--ray", cluster.address, *ACTORS)
    wait_for(lambda: images(folder) if folder.exists() else None)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    wait_for(lambda: not actors())
    before = images(folder)
    assert len(before) < len(PROMPTS)
    result = finish(command(folder, "--ray", cluster.address, *ACTORS))
    assert result["made"] == len(PROMPTS) - len(before)
    assert before.items() <= images(folder).items()
    assert contents(folder) == whole


def test_a_killed_node_gives_its_rows_to_the_others(cluster, dataset, whole, tmp_path):
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    names = []
    for part in dataset(tmp_path, actors=3, cpus=1.0, steps=60).make(batch=1):
        if not names:
            wait_for(lambda: len(actors()) == 3)  # one a node
            cluster.remove_node(node, allow_graceful=False)
        names += part.names
    assert sorted(names) == sorted(images_of(whole))
    assert images_of(contents(tmp_path)) == images_of(whole)


def test_what_nodes_do_not_share_is_refused_before_any_work(dataset, tmp_path):
    with pytest.raises(EnvironmentLacks, match="memory://out is not the driver's folder"):
        dataset("memory://out")


def test_an_actor_that_no_node_has_room_for_is_refused(cluster, command, tmp_path):
    process = command(tmp_path / "out", "--ray", cluster.address, "--ray-gpus", "1")
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 3
    assert "no node of the cluster has 1 CPUs and 1 GPUs" in err
    assert not (tmp_path / "out").exists()


def test_bad_lines_are_reported_as_without_ray(cluster, command, tmp_path, tiny_bundle):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('a fox\n{"prompt": "a", "size": "64x65"}\n')
    process = command(tmp_path / "out", "--prompts", str(texts), "--ray", cluster.address, *ACTORS)
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert "line 2: height is 65 px" in err
    assert not (tmp_path / "out").exists()


def test_an_address_where_nobody_answers_is_refused_before_any_work(command, tmp_path):
    process = command(tmp_path / "out", "--ray", "127.0.0.1:1")
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 3
    assert "nobody answers at 127.0.0.1:1" in err
    assert not (tmp_path / "out").exists()


def test_a_cluster_of_the_command_alone_ends_with_it(command, whole, tmp_path):
    """Also where the command is killed; a process without Ray goes on."""
    folder = tmp_path / "out"
    first = command(folder, "--ray", "local", *ACTORS)
    wait_for(lambda: images(folder) if folder.exists() else None)
    begun = psutil.Process(first.pid).children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    wait_for(lambda: not [process for process in begun if process.is_running() and process.status() != "zombie"])
    finish(command(folder))
    assert contents(folder) == whole
