"""A server on Ray Serve: replicas that die, are full, are replaced, have more models than fit; and what is refused."""

import base64
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from live_server import free_port, until
from PIL import Image
from ray_server import ARGS, NAME, address, cluster, deploy, fake, serving_locally

from latentrt import Request
from latentrt.environment import ray_cluster
from latentrt.environment.requirement import Requirement
from latentrt.errors import EnvironmentLacks, RequestError
from latentrt.serving import ray_app
from latentrt.serving.errors import QueueFull
from latentrt.serving.ray_app.config import Config
from latentrt.serving.web.fields import FieldError

ROOT = Path(__file__).parents[2]
ray_needed = pytest.mark.ray


# What needs no Ray.


def test_errors_go_to_other_processes_whole():
    for error in (
        QueueFull(3, retry_after=2.5),
        FieldError("size", "size is 1", expected="2", hint="ask for 2"),
        RequestError("steps is 0", expected="at least 1"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.__dict__) == (type(error), str(error), error.__dict__)


WRONG = {
    "no models": ({"open_to_everyone": True}, "models"),
    "an empty list": ({"models": {}, "open_to_everyone": True}, "no model"),
    "a relative path": ({"models": {"a": "bundles/a"}, "open_to_everyone": True}, "absolute"),
    "a relative LoRA": ({"models": {"a": "/a"}, "loras": {"b": "b"}, "open_to_everyone": True}, "absolute"),
    "a name with a plus": ({"models": {"a+b": "/a"}, "open_to_everyone": True}, "a\\+b"),
    "an alias of nothing": ({"models": {"a": "/a"}, "aliases": {"b": "c"}, "open_to_everyone": True}, "aliases of c"),
    "nobody said who may ask": ({"models": {"a": "/a"}}, "open_to_everyone"),
    "an unknown argument": ({"models": {"a": "/a"}, "replica": 2, "open_to_everyone": True}, "replica"),
    "no number": ({"models": {"a": "/a"}, "queue": "many", "open_to_everyone": True}, "queue"),
    "half a model": ({"models": {"a": "/a"}, "models_in_memory": 0.5, "open_to_everyone": True}, "models_in_memory"),
    "an unknown option": (
        {"models": {"a": "/a"}, "replicas": {"replica_count": 2}, "open_to_everyone": True},
        "replica_count",
    ),
}


@pytest.mark.parametrize(("args", "said"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused_before_anything_is_deployed(args, said):
    with pytest.raises(RequestError, match=said):
        ray_app.build(args)


def test_without_ray_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch):
    lacking = Requirement(extra="ray", packages=("ray_that_is_not_here",))
    monkeypatch.setattr(ray_cluster, "RAY", lacking)
    monkeypatch.setattr(ray_app, "SERVE", lacking)
    for use in (ray_cluster.import_ray, lambda: ray_app.build({"models": {"a": "/a"}})):
        with pytest.raises(EnvironmentLacks, match="install with"):
            use()


@pytest.mark.parametrize("other", [{"latentrt": "0.0.9"}, {"ray": "not installed"}, {"Python": "3.1"}])
def test_other_versions_are_named(other):
    own = ray_cluster.versions()
    ray_cluster.check_same(own, where="a node")
    (name, version) = next(iter(other.items()))
    with pytest.raises(EnvironmentLacks, match=f"a node has {name} {version}.*{own[name]}"):
        ray_cluster.check_same(own | other, where="a node")


def test_places_that_are_none_and_where_nobody_answers():
    for place in ("nowhere", "host:", "host:0", "ray://host", ":10001", "host:99999"):
        with pytest.raises(RequestError, match="address"), ray_cluster.connected(place):
            pass
    for place in (f"127.0.0.1:{free_port()}", f"ray://127.0.0.1:{free_port()}"):
        with pytest.raises(EnvironmentLacks, match="nobody answers"), ray_cluster.connected(place):
            pass


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0"), "other versions.*2.59.0"),
        (ConnectionError("Failed to connect"), "no connection to auto"),
    ],
)
def test_what_ray_says_of_a_connection_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch, raised, said):
    class Ray:
        def is_initialized(self):
            return False

        def init(self, address, **options):
            raise raised

    monkeypatch.setattr(ray_cluster, "import_ray", Ray)
    with pytest.raises(EnvironmentLacks, match=said), ray_cluster.connected("auto"):
        pass


def test_options_of_a_deployment_go_over_the_usual_ones():
    assert ray_app.options(ray_app.REPLICAS, {"num_replicas": 3})["num_replicas"] == 3
    scaled = ray_app.options(ray_app.REPLICAS, {"autoscaling_config": {"max_replicas": 4}})
    assert "num_replicas" not in scaled
    config = Config.of({"models": {"a": "/a"}, "open_to_everyone": True, "cors": ["https://a.example"]})
    assert json.loads(json.dumps(config.live())) == config.live()
    assert Config.of(config.live()) == config


def test_the_files_in_examples_are_what_ray_takes_and_ask_for_what_there_is():
    from ray.serve.schema import ServeDeploySchema

    folder = ROOT / "examples" / "ray"
    service = yaml.safe_load((folder / "rayservice.yaml").read_text())["spec"]
    assert service["rayClusterConfig"]["rayVersion"] == ray_cluster.versions()["ray"]
    for rows in (yaml.safe_load((folder / "serve.yaml").read_text()), yaml.safe_load(service["serveConfigV2"])):
        (application,) = ServeDeploySchema.model_validate(rows).applications
        assert application.import_path == "latentrt.serving.ray_app:build"
        ray_app.build(application.args)


# What Ray's local testing mode shows: in this process, without a cluster.


def test_a_local_deployment_answers_as_the_server_does(tmp_path: Path):
    (tmp_path / "alone").mkdir()
    with serving_locally(tmp_path) as live, live.client() as http:
        made = http.post("/v1/images/generations", json={"prompt": "a fox", "seed": 3, "steps": 4})
        found = http.get("/v1/jobs").json()
        assert http.get("/ready").status_code == 200
        (job,) = live.service.jobs()
    assert np.array_equal(pixels(made.json()["data"][0]["b64_json"]), alone("a fox", seed=3, steps=4))
    assert (job.replica, job.state, found["running"]) == ("local", "done", 0)


def alone(prompt: str, **options) -> np.ndarray:
    return fake("/fake/0").run(Request(prompt, **options)).images[0]


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


# What needs a cluster.


@pytest.fixture(scope="module")
def serve() -> Iterator[object]:
    with cluster() as made:
        yield made


def client(serve) -> httpx.Client:
    return httpx.Client(base_url=address(serve), timeout=120, trust_env=False)


def ask(serve, seed: int, **body) -> httpx.Response:
    with client(serve) as http:
        return http.post("/v1/images/generations", json={"prompt": f"fox {seed}", "seed": seed, "steps": 10} | body)


def replicas(serve) -> list[tuple[str, int, list[str]]]:
    """Name, process, and models in memory of each replica that makes images."""
    return serve.get_deployment_handle("Images", NAME).broadcast("memory").results(timeout_s=30)


@ray_needed
def test_two_replicas_share_the_jobs_and_each_gets_its_own(serve):
    deploy(serve, models={"fake": "/fake/0.02"})
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda seed: ask(serve, seed), range(24)))
    for seed, answer in enumerate(answers):
        image = pixels(answer.json()["data"][0]["b64_json"]).astype(int)
        assert np.abs(image - alone(f"fox {seed}", seed=seed, steps=10)).max() <= 1
    made = {job.replica for job in serve.get_app_handle(NAME).jobs.remote().result()}
    assert len(made) == 2


@ray_needed
def test_a_job_is_followed_and_cancelled_wherever_it_is_made(serve):
    deploy(serve, models={"fake": "/fake/0.05"})
    with client(serve) as http:
        names = [
            http.post("/v1/jobs", json={"prompt": "a", "steps": 400, "id": f"job {i}"}).json()["id"] for i in range(6)
        ]
        until(lambda: all(http.get(f"/v1/jobs/{name}").json()["done"] > 2 for name in names), "steps of all")
        rows = [http.get(f"/v1/jobs/{name}").json() for name in names]
        assert len({row["replica"] for row in rows}) == 2
        assert http.post("/v1/jobs", json={"prompt": "a", "id": names[0]}).status_code == 400
        with http.stream("GET", f"/v1/jobs/{names[0]}/events") as stream:
            kinds, pictures = [], 0
            for line in stream.iter_lines():
                kinds += re.findall("^event: (.*)", line)
                pictures += "data:image/jpeg" in line
                if len(kinds) == 5:
                    http.delete(f"/v1/jobs/{names[0]}")
            assert kinds[-1] == "cancelled"
            assert pictures
        for name in names[1:]:
            http.delete(f"/v1/jobs/{name}")
        until(lambda: http.get("/health").json()["running"] == 0, "the end of all")
        until(lambda: not http.get("/v1/jobs").json()["in_flight"]["fake"], "the end of the calls")


@ray_needed
def test_partial_images_come_as_a_stream_and_who_leaves_takes_the_job_along(serve):
    deploy(serve, models={"fake": "/fake/0.05"})
    body = {"prompt": "a", "steps": 40, "stream": True, "partial_images": 2}
    with client(serve) as http:
        with http.stream("POST", "/v1/images/generations", json=body) as stream:
            began = time.monotonic()
            kinds = []
            for line in stream.iter_lines():
                kinds += [
                    (kind, time.monotonic() - began) for kind in re.findall("^event: image_generation.(.*)", line)
                ]
        assert [kind for kind, _ in kinds] == ["partial_image", "partial_image", "completed"]
        assert kinds[0][1] < kinds[-1][1] - 0.5  # it came while the rest was being made
        with http.stream("POST", "/v1/images/generations", json=body | {"steps": 900}) as stream:
            next(line for line in stream.iter_lines() if line)
    job = serve.get_app_handle(NAME).jobs.remote().result()[-1]
    until(lambda: serve.get_app_handle(NAME).jobs.remote().result()[-1].state == "cancelled", job.id)


@ray_needed
def test_where_all_is_full_clients_are_told_503_and_come_again(serve):
    few = ARGS["replicas"] | {"max_ongoing_requests": 1}
    deploy(serve, models={"fake": "/fake/0.2"}, replicas=few, queue=2)
    with client(serve) as http:
        names = [http.post("/v1/jobs", json={"prompt": "a", "steps": 100}).json()["id"] for _ in range(2)]
        until(lambda: all(http.get(f"/v1/jobs/{name}").json()["done"] for name in names), "both replicas at work")
        waiting = [http.post("/v1/jobs", json={"prompt": "a", "steps": 1}).json()["id"] for _ in range(2)]
        told = http.post("/v1/images/generations", json={"prompt": "a"})
        assert (told.status_code, int(told.headers["retry-after"]) >= 1) == (503, True)
        assert "wait already" in told.json()["error"]["message"]
        assert [http.get(f"/v1/jobs/{name}").json()["position"] for name in waiting] == [1, 2]
        assert http.delete(f"/v1/jobs/{names[0]}").json()["state"] == "cancelled"  # lookers pass those that wait
        until(lambda: all(http.get(f"/v1/jobs/{name}").json()["state"] == "done" for name in waiting), "their turn")
        assert http.post("/v1/images/generations", json={"prompt": "a", "steps": 1}).status_code == 200
        http.delete(f"/v1/jobs/{names[1]}")


@ray_needed
def test_models_beyond_those_that_fit_leave_and_come_back(serve):
    one = ARGS["replicas"] | {"num_replicas": 1}
    deploy(serve, models={"a": "/fake/0", "b": "/fake/0.001", "c": "/fake/0.002"}, models_in_memory=2, replicas=one)
    (former,) = replicas(serve)
    assert former[2] == ["a", "b"]
    held = []
    with client(serve) as http:
        for model in ("a", "c", "b", "a"):
            made = http.post("/v1/images/generations", json={"prompt": "x", "model": model, "seed": 5, "steps": 4})
            assert np.array_equal(pixels(made.json()["data"][0]["b64_json"]), alone("x", seed=5, steps=4))
            ((_, process, names),) = replicas(serve)
            held.append(sorted(names))
            assert process == former[1]
    assert held == [["a", "b"], ["a", "c"], ["b", "c"], ["a", "b"]]


@ray_needed
def test_what_a_file_says_of_users_changes_without_new_processes(serve):
    rows = {"models": {"fake": "/fake/0"}, "open_to_everyone": True}
    deploy_file(serve, rows)
    until(lambda: len(replicas(serve)) == 2, "the replicas")
    before = {process for _, process, _ in replicas(serve)}
    with client(serve) as http:
        kept = http.post("/v1/jobs", json={"prompt": "a", "id": "kept"}).json()["id"]
        until(lambda: http.get(f"/v1/jobs/{kept}").json()["state"] == "done", "the job")
        more = {"models": rows["models"] | {"other": "/fake/0.001"}, "aliases": {"gpt-image-1": "other"}}
        deploy_file(serve, rows | more)
        until(lambda: len(http.get("/v1/models").json()["data"]) == 3, "the new model")
        assert http.post("/v1/images/generations", json={"prompt": "a", "model": "gpt-image-1"}).is_success
        assert http.get(f"/v1/jobs/{kept}/images/0").is_success
    assert {process for _, process, _ in replicas(serve)} == before


def deploy_file(serve, rows) -> None:
    """What `serve deploy` does with a file, where a cluster has no dashboard to send it to."""
    from ray.serve._private.api import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    changing = [{"name": name, "user_config": rows} for name in ("Images", "Front")]
    application = {"name": NAME, "route_prefix": "/", "import_path": "ray_server:build_fakes", "args": ARGS}
    file = ServeDeploySchema.model_validate({"applications": [application | {"deployments": changing}]})
    _get_global_client().deploy_apps(file, _blocking=True)


def load(serve, count: int, during) -> list[httpx.Response]:
    """Answers to so many requests, eight at a time; meanwhile something happens."""
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, serve, seed, steps=20) for seed in range(count)]
        until(lambda: sum(each.done() for each in asked) > 2, "the first answers")
        during()
        return [each.result() for each in asked]


def judged(answers: list[httpx.Response]) -> None:
    """Each request is answered, and with what was asked for."""
    for seed, answer in enumerate(answers):
        assert answer.status_code == 200, answer.text
        image = pixels(answer.json()["data"][0]["b64_json"]).astype(int)
        assert np.abs(image - alone(f"fox {seed}", seed=seed, steps=20)).max() <= 1


def none_doubled(serve, answers: list[httpx.Response]) -> None:
    """There is a job for each request, and no other."""
    jobs = [job for job in serve.get_app_handle(NAME).jobs.remote().result() if job.request.steps == 20]
    assert sorted(job.request.seed for job in jobs) == list(range(len(answers)))
    assert {job.state for job in jobs} == {"done"}


@ray_needed
def test_a_replica_that_is_killed_loses_no_request(serve):
    deploy(serve, models={"fake": "/fake/0.03"})
    answers = load(serve, 24, lambda: os.kill(replicas(serve)[0][1], signal.SIGKILL))
    judged(answers)
    none_doubled(serve, answers)
    until(lambda: len(replicas(serve)) == 2, "the new replica")


@ray_needed
def test_replicas_are_replaced_under_load_without_a_lost_request(serve):
    deploy(serve, models={"fake": "/fake/0.03"})
    before = {process for _, process, _ in replicas(serve)}
    other = ARGS["replicas"] | {"ray_actor_options": {"num_cpus": 0.4}}
    judged(load(serve, 24, lambda: deploy(serve, models={"fake": "/fake/0.03"}, replicas=other)))  # the front, too
    assert not {process for _, process, _ in replicas(serve)} & before


@ray_needed
def test_a_bundle_that_is_not_there_is_told_by_the_deployment(serve, tmp_path: Path):
    args = ARGS | {"models": {"a": str(tmp_path / "none")}}
    with pytest.raises(RuntimeError):
        serve.run(ray_app.build(args), name="other", route_prefix="/other")
    told = serve.status().applications["other"]
    assert str(tmp_path / "none") in told.message + "".join(each.message for each in told.deployments.values())
    serve.delete("other")


@ray_needed
def test_a_real_bundle_is_served_and_its_images_are_those_of_one_process(serve, shapes_bundle: Path):
    from latentrt import load as load_bundle

    serve.run(
        ray_app.build(ARGS | {"models": {"shapes": str(shapes_bundle)}, "backend": "onnxruntime"}),
        name=NAME,
        route_prefix="/",
    )
    request = Request("a red circle on a white background", seed=7, steps=3, size=(64, 64))
    with client(serve) as http:
        body = {"prompt": request.prompt, "seed": 7, "steps": 3, "size": "64x64"}
        made = http.post("/v1/images/generations", json=body)
    with load_bundle(shapes_bundle, backend="onnxruntime", threads=1) as pipe:
        image = pipe.run(request).images[0]
    assert np.array_equal(pixels(made.json()["data"][0]["b64_json"]), image)


NODES = """
import os, sys
os.environ["PYTHONPATH"] = sys.argv[1]
sys.path[:0] = sys.argv[1:]
from latentrt.environment.ray_cluster import check_nodes, import_ray
ray = import_ray()
from ray import serve
from ray.cluster_utils import Cluster
from live_server import free_port
import ray_server, test_ray
small = {"num_cpus": 1, "object_store_memory": 100 << 20}
made = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, "resources": {"head": 1}, **small})
second = made.add_node(**small)
ray.init(made.address, log_to_driver=False, logging_level="ERROR")
check_nodes(ray)
serve.start(http_options={"host": "127.0.0.1", "port": free_port()}, proxy_location="HeadOnly")
front = ray_server.ARGS["front"] | {"ray_actor_options": {"num_cpus": 0.1, "resources": {"head": 0.1}}}
replicas = ray_server.ARGS["replicas"] | {"max_replicas_per_node": 1}
ray_server.deploy(serve, models={"fake": "/fake/0.03"}, replicas=replicas, front=front)
answers = test_ray.load(serve, 24, lambda: made.remove_node(second, allow_graceful=False))
test_ray.judged(answers)
test_ray.none_doubled(serve, answers)
print("all answered", flush=True)
serve.shutdown()
ray.shutdown()
made.shutdown()
"""


@ray_needed
def test_a_node_that_is_killed_loses_no_request():
    folders = [str(ROOT / "tests"), str(ROOT / "tests" / "serving")]
    run = subprocess.run(
        [sys.executable, "-c", NODES, *folders],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "all answered" in run.stdout, run.stdout[-2000:] + run.stderr[-4000:]
