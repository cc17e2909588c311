"""Datasets by a cluster, without a Ray: rows and what actors make of them, nodes that differ, what an actor takes."""

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentrt.datasets.dataset import Dataset
from latentrt.datasets.items import plan_items
from latentrt.datasets.making import Job, MakingOptions, Stored
from latentrt.datasets.request_file import read_lines
from latentrt.datasets.shards import FORMS
from latentrt.datasets.store import LocalStore
from latentrt.datasets.target import Layout, Target
from latentrt.errors import BackendError, EnvironmentLacks, LatentRTError, RequestError
from latentrt.ray_data import nodes
from latentrt.ray_data.actor import TRIES, Attempts, Maker, Order, row_of
from latentrt.ray_data.nodes import Look, PlannedThere, look_there, plan_there
from latentrt.ray_data.opening import Facts, Opening, pictures
from latentrt.ray_data.resources import Wish, actors_for
from latentrt.ray_data.run import _reports, pack_there
from latentrt.request import Request
from latentrt.testing import fake_pipeline

LINES = [
    "a fox",
    '{"prompt": "a hen", "images": 3, "guidance": 1}',
    '{"prompt": "an owl", "size": "72x64", "metadata": {"class": "owl"}}',
    "a cat",
    '{"prompt": "a dog", "image": "photo.png", "strength": 0.5}',
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray")
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(photo).save(folder / "photo.png")
    (folder / "bundle").mkdir()
    return folder


@pytest.fixture(scope="module")
def lines(root):
    found, bad = read_lines(LINES, defaults=Request("", steps=3), root=root)
    assert not bad
    return found


@pytest.fixture
def opening(root, monkeypatch):
    """Whatever is opened is the fake pipeline."""
    monkeypatch.setattr(Opening, "open", lambda self: fake_pipeline(root / "bundle"))
    monkeypatch.setattr(Facts, "of", classmethod(lambda cls, pipe: cls("weights", "fake", {"numpy": "2"})))
    return Opening(bundle="bundle")


@pytest.fixture
def order(opening, root, tmp_path):
    store = LocalStore(tmp_path / "out")
    store.prepare([])
    store.write("token", b"")
    facts = Facts.of(opening.open())
    return Order(opening, facts, store, "token", MakingOptions(), Attempts().begin)


class Spread:
    """Workers as a cluster has them: rows to and fro as bytes, out of order, by several actors."""

    def __init__(self, order, digests, *, actors, seed):
        self._order, self._digests = order, digests
        self._actors = [Maker(order) for _ in range(actors)]
        self._rng = np.random.default_rng(seed)

    def make(self, jobs):
        self._order.store.write(self._order.token, b"")
        rows = [row_of(index, job, self._digests) for index, job in enumerate(jobs)]
        for place in self._rng.permutation(len(rows)):
            row = pickle.loads(pickle.dumps(rows[place]))
            actor = self._actors[self._rng.integers(len(self._actors))]
            yield from _reports(actor({"index": np.array([row["index"]]), "job": [row["job"]]}), jobs)
        self._order.store.remove(self._order.token)

    def pack(self, shard):
        for _ in range(2):  # as after a process that died when it had done it
            assert pack_there(*pickle.loads(pickle.dumps((self._order.store, shard)))) is None

    def settle(self):
        pass


@pytest.mark.parametrize(("seed", "form"), [(0, None), (1, None), (2, "parquet"), (3, "webdataset")])
def test_rows_by_any_actor_in_any_order_give_the_bytes_of_one_process(seed, form, order, lines, root, tmp_path):
    pipe, layout = fake_pipeline(root / "bundle"), Layout(FORMS.get(form), shard=3)
    list(Dataset(pipe, lines, tmp_path / "one", seed=5, layout=layout).make(batch=2))
    planned = plan_items(pipe, lines, seed=5)
    target = Target(planned, order.store, layout=layout, overwrite=False)
    made = list(target.make(Spread(order, planned.digests, actors=2, seed=seed), batch=2))
    assert made[-1].done == made[-1].total == 7
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def job(order, lines):
    planned = plan_items(order.opening.open(), lines, seed=5)
    items = planned.items[1:3]
    return Job(items, frozenset(item.name for item in items)), planned.digests


def do(order, job, digests) -> Stored | LatentRTError:
    row = row_of(0, job, digests)
    try:
        (stored,) = _reports(Maker(order)({"index": [0], "job": [row["job"]]}), [job])
    except LatentRTError as error:
        return error
    return stored


def test_what_another_process_has_stored_is_not_made_again(order, job):
    job, digests = job
    first = sorted(job.wanted)[0]
    order.store.write(first, b"as the process left it that died")
    assert do(order, job, digests) == Stored(job, {})
    assert order.store.read(first) == b"as the process left it that died"
    assert order.store.there(job.wanted) == job.wanted


def test_a_row_at_which_process_after_process_dies_is_given_up(order, job):
    job, digests = job
    for _ in range(TRIES):
        order.begin(0)
    error = do(order, job, digests)
    assert isinstance(error, BackendError) and sorted(job.wanted)[0] in str(error)
    skipped = do(replace(order, options=MakingOptions(skip_failures=True)), job, digests)
    assert skipped.failed.keys() == job.wanted
    assert not order.store.there(job.wanted)


def test_an_actor_stores_nothing_for_a_run_that_is_over(order, job):
    job, digests = job
    order.store.remove(order.token)
    assert "is not the driver's folder" in str(do(order, job, digests))
    assert not order.store.there(job.wanted)


def test_an_actor_with_another_bundle_makes_nothing(order, job):
    job, digests = job
    error = do(replace(order, facts=Facts("others", "fake", {})), job, digests)
    assert isinstance(error, EnvironmentLacks) and "another bundle" in str(error)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Facts("weights", "fake", {"numpy": "2"}), None),
        (Facts("others", "fake", {"numpy": "2"}), "another bundle, LoRA or embedding"),
        (Facts("weights", "fake", {"numpy": "1"}), "numpy 1; expected numpy 2"),
        (Facts("weights", "real", {"numpy": "2"}), "backend real; expected backend fake"),
        (Facts("weights", "fake", {}), "numpy none; expected numpy 2"),
    ],
)
def test_nodes_with_other_facts_are_named(other, message):
    own = Facts("weights", "fake", {"numpy": "2"})
    if message is None:
        own.check(other, where="node 2")
        return
    with pytest.raises(EnvironmentLacks, match=f"node 2 has {message}"):
        own.check(other, where="node 2")


def test_facts_of_a_real_backend_have_what_computes_and_encodes(tiny_bundle):
    facts = Facts.of(Opening(bundle=str(tiny_bundle), backend="onnxruntime").open())
    assert facts.backend == "onnxruntime"
    assert {"numpy", "pillow", "tokenizers", "onnxruntime", "machine"} <= facts.packages.keys()


def test_a_node_plans_and_another_compares(opening, lines, tmp_path):
    store = LocalStore(tmp_path)
    store.write("token", b"")
    look = Look(opening, store, "token")
    there = pickle.loads(pickle.dumps(plan_there(look, lines, 5)))
    assert isinstance(there, PlannedThere) and len(there.planned.items) == 7
    read = pictures(there.planned.items)
    assert [item.name for item in read] == ["000005.png"]
    assert look_there(look, there.facts, read, there.planned.digests) is None
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def test_what_a_node_warns_of_while_it_plans_comes_to_the_driver(opening, lines, tmp_path, monkeypatch):
    def warning(*arguments, **options):
        logging.getLogger("latentrt.text.conditioning").warning("embedding %s has no effect", "cat")
        return plan_items(*arguments, **options)

    monkeypatch.setattr(nodes, "plan_items", warning)
    store = LocalStore(tmp_path)
    store.write("token", b"")
    there = plan_there(Look(opening, store, "token"), lines, 5)
    assert isinstance(there, PlannedThere)
    assert there.warnings == (("latentrt.text.conditioning", "embedding cat has no effect"),)


def test_a_node_says_what_it_does_not_share(opening, lines, tmp_path):
    look = Look(opening, LocalStore(tmp_path), "token")
    assert "is not the driver's folder" in str(plan_there(look, lines, 5))
    assert "is not the driver's folder" in str(look_there(look, Facts("weights", "fake", {}), [], {}))


def test_a_photo_that_differs_between_nodes_is_refused(opening, root, lines, tmp_path):
    store = LocalStore(tmp_path)
    store.write("token", b"")
    look = Look(opening, store, "token")
    there = plan_there(look, lines, 5)
    read = pictures(there.planned.items)
    photo = (root / "photo.png").read_bytes()
    try:
        Image.new("RGB", (64, 64)).save(root / "photo.png")
        assert "000005.png is made from is another one here" in str(
            look_there(look, there.facts, read, there.planned.digests)
        )
        (root / "photo.png").unlink()
        assert "no file" in str(look_there(look, there.facts, read, there.planned.digests))
    finally:
        (root / "photo.png").write_bytes(photo)


NODES = [
    {"NodeID": "head", "Alive": True, "Resources": {"memory": 1.0}},
    {"NodeID": "small", "Alive": True, "Resources": {"CPU": 8.0}},
    {"NodeID": "large", "Alive": True, "Resources": {"CPU": 32.0, "GPU": 4.0}},
    {"NodeID": "dead", "Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
]


@pytest.mark.parametrize(
    ("wish", "options", "found"),
    [
        (Wish(), {}, (5, 8.0, 0.0, 8)),
        (Wish(), {"threads": 2}, (20, 2.0, 0.0, 2)),
        (Wish(), {"device": "cuda"}, (4, 1.0, 1.0, 1)),
        (Wish(), {"backend": "tensorrt"}, (4, 1.0, 1.0, 1)),
        (Wish(gpus=0.5), {}, (8, 1.0, 0.5, 1)),
        (Wish(cpus=0.5, actors=3), {}, (3, 0.5, 0.0, 1)),
        (Wish(cpus=20), {}, (1, 20.0, 0.0, 20)),
    ],
)
def test_an_actor_takes_what_a_process_alone_would(wish, options, found):
    given = {"backend": "auto", "device": None, "threads": None, **options}
    actors = actors_for(NODES, wish, **given)
    assert (actors.count, actors.cpus, actors.gpus, actors.threads) == found


def test_more_than_any_node_has_is_refused():
    with pytest.raises(EnvironmentLacks, match="no node of the cluster has 1 CPUs and 5 GPUs"):
        actors_for(NODES, Wish(gpus=5), backend="auto", device=None, threads=None)
    with pytest.raises(EnvironmentLacks, match="no node"):
        actors_for(NODES[:1], Wish(), backend="auto", device=None, threads=None)


def test_what_a_row_of_an_actor_says_ends_the_run():
    problem = json.dumps({"error": {"type": "RequestError", "found": "on a: b", "expected": None, "hint": None}})
    with pytest.raises(RequestError, match="on a: b"):
        list(_reports({"index": [0], "failed": ["{}"], "problem": [problem]}, []))
