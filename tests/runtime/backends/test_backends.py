"""Backends against each other, against the contract of the seam, and against what can go wrong."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from standin.cudart import Cudart
from standin.onnxruntime import FakeProvider

from latentrt import backends
from latentrt.arrays import to_host
from latentrt.backends.base import GraphEngine
from latentrt.backends.cache import CompileCache, cache_key, compiled_entries, limit_for, trim
from latentrt.backends.onnxruntime.engine import OnnxRuntimeEngine
from latentrt.engine import Engine, Preparation
from latentrt.environment.install import install_command
from latentrt.errors import BackendError, BundleError, EnvironmentLacks, LatentRTError, RequestError
from latentrt.graph import GraphFile, TensorSpec

Array = np.ndarray
NAMES = ("onnxruntime", "openvino")
CHANNELS = 16
SHAPE = (2, CHANNELS, 6, 5)
EDGES = ("x", "extra", "unused", "flags", "same", "joined", "again", "picked")


@pytest.fixture(scope="session")
def graph(tmp_path_factory: pytest.TempPathFactory) -> GraphFile:
    """`next = 0.5 * state + push`, `view` = a convolution of `state` whose weights are external."""
    folder = tmp_path_factory.mktemp("graph")
    dims = ["B", CHANNELS, "h", "w"]
    weights = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 12
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["state", "half"], ["faded"]),
            helper.make_node("Add", ["faded", "push"], ["next"]),
            helper.make_node("Conv", ["state", "weights"], ["view"], pads=[1, 1, 1, 1]),
        ],
        "step",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in ("state", "push")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name in ("next", "view")],
        [numpy_helper.from_array(np.float32([0.5]), "half"), numpy_helper.from_array(weights, "weights")],
    )
    return _save(body, folder, spec=TensorSpec("float32", (None, CHANNELS, None, None)))


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest, graph: GraphFile) -> Engine:
    opened = backends.open_engine(graph, backend=request.param, threads=1)
    yield opened
    opened.close()


def _save(body: onnx.GraphProto, folder: Path, *, spec: TensorSpec) -> GraphFile:
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    path, weights = folder / f"{body.name}.onnx", folder / f"{body.name}.onnx.data"
    onnx.save(model, path, save_as_external_data=True, location=weights.name, size_threshold=1024)
    return GraphFile(
        body.name,
        path=path,
        inputs={value.name: spec for value in body.input},
        outputs={value.name: spec for value in body.output},
        weights=(weights,) if weights.exists() else (),
    )


def _feed(*, shape: tuple[int, ...] = SHAPE, seed: int = 1) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name in ("state", "push")}


def _run_host(engine: Engine, feed: Mapping[str, Array]) -> dict[str, Array]:
    return {name: to_host(value) for name, value in engine.run(feed).items()}


def _copy_graph(graph: GraphFile, folder: Path) -> GraphFile:
    for path in (graph.path, *graph.weights):
        (folder / path.name).write_bytes(path.read_bytes())
    return replace(graph, path=folder / graph.path.name, weights=tuple(folder / w.name for w in graph.weights))


# Running


def test_backends_agree_with_numpy_and_each_other(graph: GraphFile) -> None:
    feed = _feed()
    results = {}
    for name in NAMES:
        with backends.open_engine(graph, backend=name, threads=1) as engine:
            results[name] = _run_host(engine, feed)
    for outputs in results.values():
        assert list(outputs) == ["next", "view"]
        assert all(array.shape == SHAPE and array.dtype == np.float32 for array in outputs.values())
        assert np.array_equal(outputs["next"], np.float32(0.5) * feed["state"] + feed["push"])
    difference = np.abs(results["onnxruntime"]["view"] - results["openvino"]["view"]).max()
    assert difference <= 1e-5
    assert np.abs(results["openvino"]["view"]).max() > 1.0


def test_kept_output_fed_back_gives_the_exact_recurrence(engine: Engine) -> None:
    feed = _feed()
    state, expected, earlier = feed["state"], feed["state"].copy(), []
    for _ in range(10):
        outputs = engine.run({"state": state, "push": feed["push"]}, keep=("next",))
        earlier.append(to_host(state).copy())
        expected = np.float32(0.5) * expected + feed["push"]
        assert np.array_equal(to_host(state), earlier[-1]), "the fed state was overwritten"
        state = outputs["next"]
        assert np.array_equal(to_host(state), expected)


def test_kept_output_can_be_fed_where_it_lies(engine: Engine) -> None:
    kept = to_host(engine.run(_feed(), keep=("next",))["next"])
    assert kept.flags.c_contiguous
    assert kept.flags.writeable, "OpenVINO shares no memory that it could not write"
    again = engine.run({"state": kept, "push": _feed()["push"]}, keep=("next",))["next"]
    assert not np.shares_memory(kept, to_host(again))


def test_results_of_earlier_runs_stay_as_they_were(engine: Engine) -> None:
    first = _run_host(engine, _feed(seed=1))
    copies = {name: array.copy() for name, array in first.items()}
    _run_host(engine, _feed(seed=2))
    assert all(np.array_equal(first[name], copies[name]) for name in first)
    engine.close()
    assert all(np.array_equal(first[name], copies[name]) for name in first)


def test_feed_is_never_written(engine: Engine) -> None:
    feed = _feed()
    copies = {name: array.copy() for name, array in feed.items()}
    engine.run(feed)
    assert all(np.array_equal(feed[name], copies[name]) for name in feed)


def test_into_receives_the_output(engine: Engine) -> None:
    feed, target = _feed(), np.full(SHAPE, np.nan, np.float32)
    outputs = engine.run(feed, into={"next": target})
    assert outputs["next"] is target
    assert np.array_equal(target, np.float32(0.5) * feed["state"] + feed["push"])


@pytest.mark.parametrize("kind", ["strided", "read-only"])
def test_arrays_that_cannot_be_shared_are_taken_all_the_same(engine: Engine, kind: str) -> None:
    feed = _feed()
    expected = _run_host(engine, feed)
    if kind == "strided":
        feed["state"] = np.repeat(feed["state"], 2, axis=3)[..., ::2]
    else:
        feed["state"].flags.writeable = False
    outputs = _run_host(engine, feed)
    assert all(np.array_equal(outputs[name], expected[name]) for name in expected)


@pytest.mark.parametrize("shape", [(1, CHANNELS, 4, 4), (3, CHANNELS, 9, 13), (1, CHANNELS, 1, 1)])
def test_sizes_change_from_run_to_run(engine: Engine, shape: tuple[int, ...]) -> None:
    for size in (SHAPE, shape, SHAPE):
        feed = _feed(shape=size)
        assert np.array_equal(_run_host(engine, feed)["next"], np.float32(0.5) * feed["state"] + feed["push"])


@pytest.mark.parametrize("name", NAMES)
def test_graphs_with_unusual_ends(name: str, tmp_path: Path) -> None:
    """An empty input, an unused one, one passed through, a value under two names, a shape found by running."""
    rows = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [f"rows of {n}", 4]) for n in EDGES}
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Concat", ["x", "extra"], ["joined"], axis=0),
            helper.make_node("Identity", ["joined"], ["again"]),
            helper.make_node("Cast", ["flags"], ["chosen"], to=TensorProto.BOOL),
            helper.make_node("Slice", ["chosen", "zero", "one", "one"], ["column"]),
            helper.make_node("Squeeze", ["column", "one"], ["mask"]),
            helper.make_node("Compress", ["x", "mask"], ["picked"], axis=0),
        ],
        "edges",
        [rows[n] for n in ("x", "extra", "unused", "flags")],
        [rows[n] for n in ("same", "joined", "again", "picked")],
        [numpy_helper.from_array(np.int64([value]), label) for label, value in (("zero", 0), ("one", 1))],
    )
    x, extra = np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros((0, 4), np.float32)
    feed = {"x": x, "extra": extra, "unused": x, "flags": np.float32([[1] * 4, [0] * 4, [1] * 4])}
    target = np.empty((2, 4), np.float32)
    with backends.open_engine(_save(body, tmp_path, spec=TensorSpec("float32", (None, 4))), backend=name) as engine:
        outputs = _run_host(engine, feed)
        assert engine.run(feed, into={"picked": target})["picked"] is target
    assert all(np.array_equal(outputs[n], x) for n in ("same", "joined", "again"))
    assert np.array_equal(outputs["picked"], x[[0, 2]])
    assert np.array_equal(target, x[[0, 2]])
    assert not any(np.shares_memory(outputs[n], x) for n in outputs)


# Loops

CALLS = 7


def _rows() -> dict[str, Array]:
    return {"push": np.random.default_rng(2).standard_normal((CALLS, *SHAPE), dtype=np.float32)}


def _recurrence(state: Array, rows: Mapping[str, Array]) -> list[Array]:
    """What `next` is after each call."""
    states = []
    for push in rows["push"]:
        state = np.float32(0.5) * state + push
        states.append(state)
    return states


def test_a_sweep_feeds_rows_and_carries_the_state(engine: Engine) -> None:
    state, rows = _feed()["state"], _rows()
    outputs = [
        to_host(out["next"]).copy() for out in engine.sweep({"state": state}, rows=rows, carry={"state": "next"})
    ]
    engine.wait()
    assert len(outputs) == CALLS
    for found, expected in zip(outputs, _recurrence(state, rows), strict=True):
        assert np.array_equal(found, expected)


def test_onnxruntime_gives_back_what_it_worked_in_after_a_loop(graph: GraphFile, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def noted(engine: OnnxRuntimeEngine) -> object:
        options = plain(engine)
        try:
            asked.append(options.get_run_config_entry("memory.enable_memory_arena_shrinkage"))
        except RuntimeError:  # there is none
            asked.append("")
        return options

    plain = OnnxRuntimeEngine._run_options
    monkeypatch.setattr(OnnxRuntimeEngine, "_run_options", noted)
    state = np.zeros(SHAPE, np.float32)
    with OnnxRuntimeEngine(graph) as step:
        list(step.sweep({"state": state}, rows={"push": np.zeros((3, *SHAPE), np.float32)}, carry={"state": "next"}))
        step.run({"state": state, "push": state})
    with OnnxRuntimeEngine(replace(graph, component="decoder")) as decoder:
        decoder.run({"state": state, "push": state})
    assert asked == ["", "", "cpu:0", "", "cpu:0"]


def test_leaving_a_sweep_leaves_the_engine_usable(engine: Engine) -> None:
    state, rows = _feed()["state"], _rows()
    with closing(engine.sweep({"state": state}, rows=rows, carry={"state": "next"})) as sweep:
        next(sweep)
    assert np.array_equal(_run_host(engine, _feed())["next"], np.float32(0.5) * state + _feed()["push"])


@pytest.mark.parametrize(
    ("feed", "rows", "carry", "message"),
    [
        ({"state": SHAPE}, {}, {}, "expected one number of calls"),
        ({"state": SHAPE}, {"push": (0, *SHAPE)}, {}, "expected one number of calls"),
        ({"state": SHAPE, "push": SHAPE}, {"push": (2, *SHAPE)}, {}, "in both `feed` and `rows`"),
        ({"state": SHAPE}, {"push": (2, *SHAPE)}, {"state": "last"}, "unknown output last"),
        ({"state": SHAPE}, {"push": (2, *SHAPE)}, {"noise": "next"}, "no first value for noise"),
        ({}, {"push": (2, *SHAPE)}, {}, "no value for input state"),
        ({"state": SHAPE}, {"push": (2, *SHAPE[1:])}, {}, "has shape"),
    ],
)
def test_bad_sweeps_are_refused_at_once(
    engine: Engine, feed: dict, rows: dict, carry: dict[str, str], message: str
) -> None:
    arrays = {name: np.zeros(shape, np.float32) for name, shape in feed.items()}
    tables = {name: np.zeros(shape, np.float32) for name, shape in rows.items()}
    with pytest.raises(RequestError, match=message):
        engine.sweep(arrays, rows=tables, carry=carry)


# What a run refuses

Change = Callable[[dict[str, Array]], object]
BAD_FEEDS: dict[str, tuple[Change, str]] = {
    "missing input": (lambda f: f.pop("push"), "no value for input push of 'step'"),
    "unknown input": (lambda f: f.update(noise=f["push"]), "unknown input noise of 'step'"),
    "dtype": (lambda f: f.update(state=f["state"].astype(np.float64)), "input 'state' of 'step' is float64"),
    "rank": (lambda f: f.update(state=f["state"][0]), "has shape [16, 6, 5]"),
    "fixed length": (lambda f: f.update(state=f["state"][:, :3]), "expected float32 [*, 16, *, *]"),
    "not an array": (lambda f: f.update(state=[1.0]), "is a list"),
}


@pytest.mark.parametrize("case", BAD_FEEDS)
def test_bad_feed_is_a_request_error(engine: Engine, case: str) -> None:
    change, message = BAD_FEEDS[case]
    feed = _feed()
    change(feed)
    with pytest.raises(RequestError) as caught:
        engine.run(feed)
    assert message in str(caught.value)


def test_bad_destinations_are_request_errors(engine: Engine) -> None:
    feed, target = _feed(), np.empty(SHAPE, np.float32)
    cases = [
        ({"keep": ("last",)}, "unknown output last"),
        ({"into": {"next": target}, "keep": ("next",)}, "both `into` and `keep`"),
        ({"into": {"next": np.empty(SHAPE, np.float16)}}, "is float16"),
        ({"into": {"next": np.empty((*SHAPE[:3], 10), np.float32)[..., ::2]}}, "C-contiguous"),
        ({"into": {"next": feed["state"]}}, "shares memory with an input"),
    ]
    for arguments, message in cases:
        with pytest.raises(RequestError, match=message):
            engine.run(feed, **arguments)


def test_sizes_that_do_not_belong_together_are_a_backend_error(engine: Engine) -> None:
    feed = _feed()
    feed["push"] = feed["push"][..., :3].copy()
    with pytest.raises(BackendError) as caught:
        engine.run(feed)
    assert caught.value.hint is not None
    assert caught.value.__cause__ is not None
    engine.run(_feed())


def test_wrong_size_into_is_a_library_error(engine: Engine) -> None:
    with pytest.raises(LatentRTError):
        engine.run(_feed(), into={"next": np.empty((1, CHANNELS, 2, 2), np.float32)})


@pytest.mark.parametrize(
    "shape, accepted",
    [((1, 4, 8, 8), True), ((2, 4, 16, 8), True), ((1, 4, 4, 8), False), ((3, 4, 8, 8), False)],
)
def test_spec_holds_the_allowed_range(shape: tuple[int, ...], accepted: bool) -> None:
    spec = TensorSpec("float32", (None, 4, None, None), min=(1, 4, 8, 8), max=(2, 4, 16, 16))
    assert spec.accepts(shape) is accepted
    assert str(spec) == "float32 [*, 4, *, *] from 1x4x8x8 to 2x4x16x16"


# Lifetimes


def test_unload_then_prepare_and_run_again(engine: Engine) -> None:
    feed = _feed()
    before = _run_host(engine, feed)
    engine.unload()
    engine.unload()
    engine.prepare(dict.fromkeys(feed, SHAPE))
    after = _run_host(engine, feed)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_closed_engine_refuses(engine: Engine) -> None:
    engine.run(_feed())
    engine.close()
    engine.close()
    for attempt in (lambda: engine.run(_feed()), lambda: engine.prepare({"state": SHAPE, "push": SHAPE})):
        with pytest.raises(RequestError, match="engine 'step' is closed"):
            attempt()


def test_prepare_says_when_it_takes_time(engine: Engine, graph: GraphFile, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Preparation] = []
    assert isinstance(engine, GraphEngine)
    with (
        backends.open_engine(graph, backend=engine.backend, notify=heard.append) as fresh,
        caplog.at_level(logging.INFO, logger="latentrt"),
    ):
        for _ in range(2):
            fresh.prepare({"state": SHAPE, "push": SHAPE})
    assert [event.seconds is None for event in heard] == [True, False]
    assert {event.component for event in heard} == {"step"}
    assert "done in" in caplog.text


# OpenVINO's compiled forms


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch size of every compilation by OpenVINO from here on."""
    from latentrt.backends import openvino

    counted: list[int] = []
    compile_one = openvino.OpenVinoEngine._compile

    def counting(self: object, dims: Mapping[str, tuple[int, ...]]) -> object:
        counted.append(dims["state"][0])
        return compile_one(self, dims)

    monkeypatch.setattr(openvino.OpenVinoEngine, "_compile", counting)
    return counted


def _prepare_batches(engine: Engine, *batches: int) -> None:
    for batch in batches:
        engine.prepare(dict.fromkeys(engine.inputs, (batch, *SHAPE[1:])))


def test_openvino_drops_the_least_recently_used_size(graph: GraphFile, compilations: list[int]) -> None:
    with backends.open_engine(graph, backend="openvino") as engine:
        _prepare_batches(engine, 1, 2)
        _prepare_batches(engine, 1)
        _prepare_batches(engine, 3)
        assert compilations == [1, 2, 3]
        _prepare_batches(engine, 1, 3)
        assert compilations == [1, 2, 3], "a size used lately was dropped"
        _prepare_batches(engine, 2)
        assert compilations == [1, 2, 3, 2]


def test_openvino_holds_fewer_sizes_of_a_large_graph(
    graph: GraphFile, compilations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentrt.backends.openvino.MAX_COMPILED_BYTES", 1)
    with backends.open_engine(graph, backend="openvino") as engine:
        _prepare_batches(engine, 1, 2, 1)
    assert compilations == [1, 2, 1]


def test_openvino_bf16_is_near_float32_but_is_not_float32(graph: GraphFile) -> None:
    from latentrt.backends.openvino import capabilities

    if "BF16" not in capabilities():
        pytest.skip("this CPU has no bf16 arithmetic")
    views = {}
    for compute in ("fp32", "bf16"):
        with backends.open_engine(graph, backend="openvino", compute=compute) as engine:
            views[compute] = _run_host(engine, _feed())["view"]
    relative = np.abs(views["bf16"] - views["fp32"]).max() / np.abs(views["fp32"]).max()
    assert 1e-5 < relative < 2e-2  # 2e-3 measured, which is 2^-9, the rounding of one value


def test_openvino_refuses_bf16_where_the_cpu_lacks_it(graph: GraphFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentrt.backends.openvino.capabilities", lambda: ("FP32", "INT8"))
    with pytest.raises(EnvironmentLacks, match="this CPU has no bf16"):
        backends.open_engine(graph, backend="openvino", compute="bf16")


# The cache of compiled graphs


def test_second_process_worth_of_engine_loads_from_the_cache(graph: GraphFile, tmp_path: Path) -> None:
    actions: list[str] = []
    results = []
    for _ in range(2):
        with backends.open_engine(
            graph, backend="openvino", cache_dir=tmp_path, notify=lambda event: actions.append(event.action)
        ) as engine:
            results.append(_run_host(engine, _feed()))
    entries = list((tmp_path / "openvino" / graph.component).iterdir())
    assert len(entries) == 1
    assert any(entries[0].iterdir())
    assert [action.split()[0] for action in actions] == ["compiling", "compiling", "loading", "loading"]
    assert all(np.array_equal(results[0][name], results[1][name]) for name in results[0])


def test_truncated_cache_entry_is_compiled_anew(graph: GraphFile, tmp_path: Path) -> None:
    expected = None
    for _ in range(2):
        with backends.open_engine(graph, backend="openvino", cache_dir=tmp_path) as engine:
            outputs = _run_host(engine, _feed())
        assert expected is None or np.array_equal(outputs["view"], expected)
        expected = outputs["view"]
        for path in tmp_path.rglob("*.blob"):
            os.truncate(path, path.stat().st_size // 2)


def test_changed_weights_are_not_served_from_the_cache(graph: GraphFile, tmp_path: Path) -> None:
    copy = _copy_graph(graph, tmp_path)
    views = []
    for scale in (1.0, 2.0):
        values = np.fromfile(graph.weights[0], np.float32) * np.float32(scale)
        values.tofile(copy.weights[0])
        marked = replace(copy, digest=f"scale {scale}")
        with backends.open_engine(marked, backend="openvino", cache_dir=tmp_path / "cache") as engine:
            views.append(_run_host(engine, _feed())["view"])
    assert np.abs(views[1] - 2 * views[0]).max() <= 1e-5


def test_unusable_cache_folder_is_a_warning(graph: GraphFile, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with backends.open_engine(graph, backend="openvino", cache_dir=blocked) as engine:
        assert _run_host(engine, _feed())["next"].shape == SHAPE
    assert "compiled graphs are not kept" in caplog.text


def test_cache_removes_the_oldest_beyond_its_limit(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path / "openvino", limit_bytes=2500)
    bystander = tmp_path / "openvino" / "notes"
    bystander.mkdir(parents=True)
    (bystander / "large").write_bytes(bytes(9000))
    keys = [f"{n:032x}" for n in range(4)]
    for age, key in enumerate(keys[:3]):
        entry = cache.entry(key)
        assert entry is not None
        (entry / "graph.blob").write_bytes(bytes(1000))
        os.utime(entry, (age, age))
    cache.used(keys[0])
    left = {path.name for path in (tmp_path / "openvino").iterdir()}
    assert left == {keys[0], keys[2], "notes"}


def test_compiled_graphs_are_bounded_by_the_size_of_theirs(graph: GraphFile, tmp_path: Path) -> None:
    limit = limit_for(graph)
    assert limit == 3 * sum(path.stat().st_size for path in (graph.path, *graph.weights))
    with backends.open_engine(graph, backend="openvino", cache_dir=tmp_path) as engine:
        for width in range(1, 13):
            engine.run(_feed(shape=(1, CHANNELS, 4, width)))
            assert len(engine._requests) <= 2
    entries = compiled_entries(tmp_path)
    assert 1 <= len(entries) < 12
    latest = list(entries.values())[-1]
    assert sum(entries.values()) <= max(limit, latest)


def test_the_latest_compiled_graph_stays_however_large(tmp_path: Path) -> None:
    entry = tmp_path / "bundle" / "openvino" / "step" / f"{7:032x}"
    entry.mkdir(parents=True)
    (entry / "graph.blob").write_bytes(bytes(1000))
    trim(tmp_path, limit_bytes=10)
    assert compiled_entries(tmp_path) == {entry: 1000}


def test_cache_key_depends_on_graph_and_options(graph: GraphFile, tmp_path: Path) -> None:
    copy = _copy_graph(graph, tmp_path)
    keys = {
        cache_key(graph, "f32"),
        cache_key(graph, "bf16"),
        cache_key(copy, "f32"),
        cache_key(replace(graph, digest="a"), "f32"),
    }
    assert len(keys) == 4
    assert cache_key(graph, "f32") == cache_key(replace(graph), "f32")


# Choosing and opening


def _install_only(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    find = importlib.util.find_spec
    known = {row.package for row in backends.BACKENDS}
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, package=None: None if name in known - set(packages) else find(name, package),
    )


@pytest.mark.parametrize(
    "installed, device, compute, chosen",
    [
        (("openvino", "onnxruntime"), None, None, "openvino"),
        (("openvino", "onnxruntime"), "cpu", "bf16", "openvino"),
        (("openvino", "onnxruntime"), "cuda", None, "onnxruntime"),
        (("onnxruntime",), None, None, "onnxruntime"),
        (("openvino",), "cpu", "fp32", "openvino"),
    ],
)
def test_auto_takes_the_fastest_that_can(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    installed: tuple[str, ...],
    device: str | None,
    compute: str | None,
    chosen: str,
) -> None:
    _install_only(monkeypatch, *installed)
    with caplog.at_level(logging.INFO, logger="latentrt"):
        assert backends.choose("auto", device=device, compute=compute).name == chosen
    assert f"backend auto: {chosen}" in caplog.text
    assert set(backends.available()) == set(installed)


def test_a_bf16_graph_goes_to_a_backend_that_has_the_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, graph: GraphFile
) -> None:
    mixed = [replace(graph, precision="fp16"), replace(graph, component="decoder", precision="bf16")]
    with pytest.raises(RequestError) as caught:
        backends.choose("onnxruntime", graphs=mixed)
    for part in (
        "onnxruntime cannot run decoder in bf16 on the CPU; expected one of the backends",
        "tensorrt, tensorrt-rtx, openvino; ",
        "latentrt convert BUNDLE -o OTHER --precision fp16",
    ):
        assert part in str(caught.value)
    assert backends.choose("onnxruntime", graphs=mixed[:1]).name == "onnxruntime"
    with pytest.raises(RequestError, match=r"decoder in bf16 on CUDA.*tensorrt, tensorrt-rtx"):
        backends.choose("onnxruntime", graphs=mixed, device="cuda")
    assert backends.choose("auto", graphs=mixed).name == "openvino"

    _install_only(monkeypatch, "onnxruntime")
    assert backends.choose("auto", graphs=mixed[:1]).name == "onnxruntime"
    with (
        caplog.at_level(logging.INFO, logger="latentrt"),
        pytest.raises(EnvironmentLacks, match="that runs decoder in bf16; .*" + re.escape(install_command("openvino"))),
    ):
        backends.choose("auto", graphs=mixed)
    assert re.search("onnxruntime: .*decoder in bf16", caplog.text)


@pytest.mark.compatibility(kind="bundle", what="int8 or fp8, with onnxruntime on CUDA", recognised="its precision",
                           outcome="warns")  # fmt: skip
def test_opening_an_int8_graph_where_it_is_no_faster_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, graph: GraphFile
) -> None:
    FakeProvider(Cudart()).install(monkeypatch)
    for precision in ("int8", "fp8"):
        caplog.clear()
        backends.open_engine(replace(graph, precision=precision), backend="onnxruntime", device="cuda").close()
        assert f"{precision} is no faster than float32 with onnxruntime on CUDA" in caplog.text
        assert "fp16" in caplog.text
    for precision, slow in (("int8", True), ("fp8", False), ("fp16", False)):
        caplog.clear()
        backends.open_engine(replace(graph, precision=precision), backend="onnxruntime", device="cpu").close()
        assert ("int8 is no faster than float32 with onnxruntime on the CPU" in caplog.text) is slow
        assert ("use openvino" in caplog.text) is slow


def test_the_limits_of_every_device_are_told(graph: GraphFile) -> None:
    said = {
        precision: [limit for row in backends.BACKENDS for limit in row.limits([replace(graph, precision=precision)])]
        for precision in ("fp32", "fp16", "bf16", "int8")
    }
    assert said["fp32"] == said["fp16"] == []
    assert [line.split(" on ")[-1] for line in said["bf16"]] == ["the CPU", "CUDA"]
    assert [line.split(":")[0] for line in said["int8"]] == [
        f"int8 is no faster than float32 with onnxruntime on {place}" for place in ("the CPU", "CUDA")
    ]


@pytest.mark.parametrize(
    "name, extra", [("openvino", "openvino"), ("onnxruntime", "onnxruntime"), ("auto", "openvino")]
)
def test_missing_backend_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, graph: GraphFile, name: str, extra: str
) -> None:
    _install_only(monkeypatch)
    with pytest.raises(EnvironmentLacks) as caught:
        backends.open_engine(graph, backend=name)
    assert install_command(extra) in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["onnxruntime", "auto"])
def test_a_device_has_an_extra_of_its_own(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """`onnxruntime` on the index has no CUDA."""
    _install_only(monkeypatch)
    with pytest.raises(EnvironmentLacks) as caught:
        backends.choose(name, device="cuda")
    assert install_command("onnxruntime-gpu") in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"backend": "openvinno"}, "did you mean 'openvino'?"),
        ({"backend": "tensorflow"}, "expected auto, tensorrt, tensorrt-rtx, openvino, onnxruntime"),
        ({"backend": "onnxruntime", "compute": "bf16"}, "use backend='openvino'"),
        ({"backend": "openvino", "device": "cuda"}, "backend='tensorrt-rtx' or backend='onnxruntime'"),
        ({"device": "cuda", "compute": "bf16"}, "no backend offers device 'cuda', compute 'bf16'"),
        ({"compute": "fp8"}, "no backend offers compute 'fp8'"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_bad_options_are_request_errors(graph: GraphFile, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        backends.open_engine(graph, **arguments)
    assert message in str(caught.value)


def test_cuda_without_its_provider_is_named(graph: GraphFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EnvironmentLacks, match="no CUDAExecutionProvider"):
        backends.open_engine(graph, backend="onnxruntime", device="cuda")


# Files that are not what they should be


def _break_garbage(graph: GraphFile) -> None:
    graph.path.write_bytes(b"\x08 this is no graph" * 20)


def _break_half(graph: GraphFile) -> None:
    graph.path.write_bytes(graph.path.read_bytes()[: graph.path.stat().st_size // 2])


def _break_empty(graph: GraphFile) -> None:
    graph.path.write_bytes(b"")


def _break_no_graph(graph: GraphFile) -> None:
    graph.path.unlink()


def _break_no_weights(graph: GraphFile) -> None:
    graph.weights[0].unlink()


def _break_short_weights(graph: GraphFile) -> None:
    os.truncate(graph.weights[0], 64)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "damage",
    [_break_garbage, _break_half, _break_empty, _break_no_graph, _break_no_weights, _break_short_weights],
    ids=lambda f: f.__name__.removeprefix("_break_"),
)
def test_damaged_files_give_a_clear_error(
    graph: GraphFile, tmp_path: Path, name: str, damage: Callable[[GraphFile], None]
) -> None:
    copy = _copy_graph(graph, tmp_path)
    damage(copy)
    with (
        backends.open_engine(copy, backend=name) as engine,
        pytest.raises((BundleError, BackendError)) as caught,
    ):
        engine.run(_feed())
    assert caught.value.hint is not None
    assert copy.path.name in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_graph_that_is_not_the_manifests_is_a_bundle_error(graph: GraphFile, name: str) -> None:
    other = replace(graph, outputs={"next": graph.outputs["next"]})
    with (
        backends.open_engine(other, backend=name) as engine,
        pytest.raises(BundleError, match="has the outputs next, view"),
    ):
        engine.run(_feed())
